"""Loading and switching checkpoints, against diffusers' from_single_file: CPU seconds of one thread, and memory.

    python -m bench.models [--folder DIR] [--size full|tiny] [--dtype float32|bfloat16] [--rounds 6] [--no-sdxl]

Two Stable Diffusion 1.5 files and an SDXL of random numbers are made in the folder, 11 GB in all, unless they are
there; without --folder in a temporary one. Each group of figures comes from a process of its own.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.rows import Row
from pipelines.types import ModelInfo

Figures = dict[str, float]
MB = 2**20
SWITCHES = 50
SAMPLE_SECONDS = 0.005


class Setting(argparse.Namespace):
    folder: Path
    size: str
    dtype: str
    rounds: int
    sdxl: bool
    group: str | None


def run(arguments: list[str]) -> list[Row]:
    """All groups, one after another. The files stay if a folder was named."""
    setting = parsed(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        setting.folder = setting.folder or Path(temporary)
        files = made(setting)
        groups = ["switch", "back", "many", *(["sdxl", "sdxl-cast"] if setting.sdxl else [])]
        found: Figures = {}
        for group in groups:
            found |= child(setting, group)
        return rows(found, files)


def parsed(arguments: list[str]) -> Setting:
    parser = argparse.ArgumentParser(prog="python -m bench.models")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--no-sdxl", dest="sdxl", action="store_false")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    return parser.parse_args(arguments, namespace=Setting())


def made(setting: Setting) -> dict[str, Path]:
    from tests.checkpoints import save_checkpoint

    wanted = {"a": ("sd1", 0), "b": ("sd1", 1), **({"xl": ("sdxl", 0)} if setting.sdxl else {})}
    files = {name: setting.folder / f"{setting.size}-{name}.safetensors" for name in wanted}
    for name, (family, seed) in wanted.items():
        if not files[name].exists():
            save_checkpoint(files[name], family, seed, full=setting.size == "full")
    return files


def child(setting: Setting, group: str) -> Figures:
    """In a process of its own, since threads are counted when torch is imported, and memory is never all given back."""
    command = [sys.executable, "-m", "bench.models", "--group", group, "--folder", str(setting.folder)]
    command += ["--size", setting.size, "--dtype", setting.dtype, "--rounds", str(setting.rounds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(found: Figures, files: dict[str, Path]) -> list[Row]:
    theirs = found["theirs"]
    table = [
        *(
            Row(f"{words}{end}", found[f"{way}{key}"], "CPU s")
            for way, words in (("theirs", "from_single_file"), ("in place", "ours, in place"), ("fresh", "ours, fresh"))
            for key, end in (("", ", median"), (" least", ", least"), (" most", ", most"))
        ),
        Row("C3 first switch, into the last model's memory", found["in place"] / theirs, "of theirs (bar 0.60)"),
        Row("C3 first switch, into fresh memory", found["fresh"] / theirs, "of theirs (bar 0.60)"),
        Row("C4 return switch", found["back"] / theirs, "of that (bar 0.05)"),
        Row("C4 return switch", found["back"] * 1000, "CPU ms (bar 150)"),
        Row("C5 resident after 10 switches less after 2", found["rss 10"] - found["rss 2"], "MB (bar 30)"),
        Row("C5 resident after 50 switches over after 2", found["rss 50"] / found["rss 2"], "(bar 1.03)"),
        Row("C6 anonymous peak of a switch over steady", found["anonymous peak"] / found["anonymous"], "(bar 1.15)"),
        Row("   with the file's pages", found["rss peak"] / found["rss 50"], ""),
    ]
    if "xl" in files:
        size = files["xl"].stat().st_size / MB
        table += [
            Row("SDXL in the file's type, peak over the file", found["xl mapped"] / size, "(bar 1.25)"),
            Row("SDXL cast to bfloat16, peak over the file", found["xl cast"] / size, "(bar 1.25)"),
        ]
    return table


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


OWN = ("RssAnon", "RssShmem")
ALL = (*OWN, "RssFile")


def memory(fields: tuple[str, ...]) -> float:
    """In MB. OWN: what belongs to the process, shared memory included; ALL: with the pages of files."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return sum(int(line[1]) for line in lines if line[0].rstrip(":") in fields) / 1024


def timed(work: Callable[[], object]) -> float:
    start = cpu_seconds()
    kept = work()
    seconds = cpu_seconds() - start
    del kept
    gc.collect()
    return seconds


def warm(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(16 * MB)
        while file.readinto(buffer):
            pass


@contextmanager
def peaks() -> Generator[Figures, None, None]:
    """The highest figures while the block runs, looked at every few milliseconds."""
    highest: Figures = {"all": 0.0, "own": 0.0}
    over = threading.Event()

    def look() -> None:
        while not over.wait(SAMPLE_SECONDS):
            for name, fields in (("all", ALL), ("own", OWN)):
                highest[name] = max(highest[name], memory(fields))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield highest
    finally:
        over.set()
        thread.join()


class Bench:
    """One process: two checkpoints, our manager, and diffusers."""

    def __init__(self, setting: Setting) -> None:
        import torch

        from pipelines.loading.manager import ModelManager, OneDtype

        dtype = getattr(torch, setting.dtype)
        self.setting = setting
        self.torch = torch
        self.dtypes = OneDtype(dtype, dtype, dtype)
        self.files = made(setting)
        self._manager = ModelManager

    def manager(self, budget_bytes: int = 0) -> Any:
        """0: for the model that is asked for, and no other."""
        return self._manager(self.torch.device("cpu"), self.dtypes, budget_bytes)

    def load(self, manager: Any, name: str, family: str = "sd1") -> Any:
        path = self.files[name]
        info = ModelInfo(name=name, family=family, path=path, size_bytes=path.stat().st_size)
        return manager.get(info, lambda status: None)

    def switch(self) -> Figures:
        """By turns, so that a busy machine is as busy for all."""
        from tests.reference import pipeline

        configs = self.setting.folder / f"{self.setting.size}-configs"
        full, dtype = self.setting.size == "full", self.dtypes.unet
        manager = self.manager()
        self.load(manager, "a")
        pipeline(self.files["b"], configs, "sd1", full, torch_dtype=dtype)
        seconds: dict[str, list[float]] = {"in place": [], "fresh": [], "theirs": []}
        for turn in range(self.setting.rounds):
            name = "ba"[turn % 2]
            ways: dict[str, Callable[[], object]] = {
                "in place": lambda name=name: self.load(manager, name),  # type: ignore[misc]
                "fresh": lambda name=name: self.load(self.manager(), name),  # type: ignore[misc]
                "theirs": lambda name=name: pipeline(  # type: ignore[misc]
                    self.files[name], configs, "sd1", full, torch_dtype=dtype
                ),
            }
            order = [*ways]
            for way in order[turn % 3 :] + order[: turn % 3]:  # nobody always gets the pages that another just freed
                warm(self.files[name])
                seconds[way].append(timed(ways[way]))
        spread = {f"{way} {word}": pick(each) for way, each in seconds.items() for word, pick in SPREAD.items()}
        return {way: statistics.median(each) for way, each in seconds.items()} | spread

    def back(self) -> Figures:
        manager = self.manager(2**60)
        self.load(manager, "a")
        self.load(manager, "b")
        turns = [timed(lambda name=name: self.load(manager, name)) for name in "ab" * 10]  # type: ignore[misc]
        return {"back": statistics.median(turns)}

    def many(self) -> Figures:
        manager, found = self.manager(), {}
        self.load(manager, "a")
        for turn in range(1, SWITCHES + 1):
            name = "ab"[turn % 2]
            if turn < SWITCHES:
                self.load(manager, name)
            else:
                found["anonymous"] = memory(OWN)
                with peaks() as highest:
                    self.load(manager, name)
                found |= {"anonymous peak": highest["own"], "rss peak": highest["all"]}
            gc.collect()
            found[f"rss {turn}"] = memory(ALL)
        return {name: found[name] for name in found if name in (*FIXED, "rss 2", "rss 10", "rss 50")}

    def sdxl(self, dtype: str = "float16") -> Figures:
        """With every weight looked at, as a first picture does; for weights in the file, that is what counts."""
        self.dtypes = self.dtypes._replace(**dict.fromkeys(self.dtypes._fields, getattr(self.torch, dtype)))
        with peaks() as highest:
            model = self.load(self.manager(), "xl", "sdxl")
            for part in model.parts.values():
                for weight in part.module.parameters():
                    weight.view(-1)[::1024].sum()
        return {"xl mapped" if dtype == "float16" else "xl cast": highest["all"]}


SPREAD: dict[str, Callable[[list[float]], float]] = {"least": min, "most": max}

FIXED = ("anonymous", "anonymous peak", "rss peak")

GROUPS: dict[str, Callable[[Bench], Figures]] = {
    "switch": Bench.switch,
    "back": Bench.back,
    "many": Bench.many,
    "sdxl": Bench.sdxl,
    "sdxl-cast": lambda bench: bench.sdxl("bfloat16"),
}


def main() -> None:
    setting = parsed(sys.argv[1:])
    if setting.group:
        setting.sdxl = setting.group.startswith("sdxl")
        sys.stdout.write(json.dumps(GROUPS[setting.group](Bench(setting))) + "\n")
        return
    start = time.monotonic()
    for row in run(sys.argv[1:]):
        sys.stdout.write(f"{row}\n")
    sys.stdout.write(f"in {time.monotonic() - start:.0f} s\n")


if __name__ == "__main__":
    main()
