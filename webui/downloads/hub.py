"""Hugging Face: which files of a repository are the model. From the hub's list of files, with sizes and SHA-256."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from pipelines.types import Kind
from webui.downloads.folders import SUFFIXES, safe_name, safe_path
from webui.downloads.sources import HubSource
from webui.downloads.types import BadSource, DownloadFailed, Plan, Wanted
from webui.downloads.web import Web

INDEX = "model_index.json"
PAGES = 50
"""A list of files longer than this many pages is no model."""

VARIANTS = ("fp16", "bf16", "", "fp32")
"""The first that is there is taken: half the bytes, and what nearly every card computes in."""

WEIGHTS = re.compile(
    r"(?P<base>diffusion_pytorch_model|model|pytorch_model|pytorch_lora_weights)"
    r"(?:\.(?P<before>[A-Za-z]\w*))?(?P<shard>-\d{5}-of-\d{5})?(?:\.(?P<after>[A-Za-z]\w*))?"
    r"\.(?P<format>safetensors|bin)"
)
SHARD_LIST = re.compile(
    r"(?P<base>\w+?)(?:\.(?P<before>\w+))?\.(?P<format>safetensors|bin)\.index(?:\.(?P<after>\w+))?\.json"
)
TEXTS = (".json", ".txt", ".model", ".jinja")
UNNEEDED = frozenset({"safety_checker"})
"""1.2 GB that no family of ours loads."""


class Lfs(BaseModel):
    oid: str = ""
    size: int | None = None


class Entry(BaseModel):
    """A row of the hub's list."""

    type: str
    path: str
    size: int = 0
    lfs: Lfs | None = None


class Weights(NamedTuple):
    """What a file name of weights says, and the file."""

    format: str
    variant: str
    sharded: bool
    entry: Entry


async def plan(web: Web, base: str, source: HubSource) -> Plan:
    """Raises BadSource, DownloadFailed, TryLater."""
    entries = {entry.path: entry for entry in await _list(web, base, source)}
    if source.path:
        if source.path not in entries:
            raise _no_file(source, entries)
        return _single(base, source, entries[source.path])
    if INDEX in entries:
        index, _ = await web.json(_url(base, source, INDEX))
        chosen = diffusers_files(entries.values(), components(index))
        files = tuple(_wanted(base, source, entry, path) for path, entry in chosen.items())
        return Plan(name=safe_name(_name(source)), kind=Kind.CHECKPOINT, folder=True, files=files)
    return _single(base, source, _only(source, entries))


def components(index: Any) -> frozenset[str]:
    """The folders that a model_index.json names."""
    if not isinstance(index, dict):
        raise DownloadFailed(f"The repository's {INDEX} is no list of parts. Take another repository.")
    return frozenset(
        name
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and value and value[0] and name not in UNNEEDED
    )


def diffusers_files(entries: Iterable[Entry], parts: frozenset[str]) -> dict[str, Entry]:
    """Path below our folder -> file of the repository. `model_index.json` comes last: with it the folder is a model."""
    folders: dict[str, list[Entry]] = {}
    index: dict[str, Entry] = {}
    for entry in entries:
        folder = entry.path.rpartition("/")[0]
        if folder in parts:
            folders.setdefault(folder, []).append(entry)
        elif entry.path == INDEX:
            index[INDEX] = entry
    chosen: dict[str, Entry] = {}
    for folder, files in folders.items():
        weights = choose_weights(files)
        chosen |= {f"{folder}/{_plain(row)}": row.entry for row in weights}
        chosen |= {entry.path: entry for entry in files if _is_text(entry.path, weights)}
    if not any(PurePosixPath(path).suffix in (".safetensors", ".bin") for path in chosen):
        raise BadSource("This repository has no weights in a form that can be read. Take another one.")
    return chosen | index


def choose_weights(files: Iterable[Entry]) -> list[Weights]:
    """One complete set: safetensors before pickles, then by VARIANTS."""
    found = [row for entry in files if (row := _weights(entry))]
    if any(row.format == "safetensors" for row in found):
        found = [row for row in found if row.format == "safetensors"]
    known = {row.variant for row in found}
    variant = next((name for name in VARIANTS if name in known), min(known, default=""))
    found = [row for row in found if row.variant == variant]
    if len({row.sharded for row in found}) == 2:  # the same weights twice
        found = [row for row in found if not row.sharded]
    return found


def _weights(entry: Entry) -> Weights | None:
    match = WEIGHTS.fullmatch(PurePosixPath(entry.path).name)
    if match is None:
        return None
    variant = match["before"] or match["after"] or ""
    return Weights(match["format"], variant, match["shard"] is not None, entry)


def _plain(row: Weights) -> str:
    """Without the variant, so that whatever opens the folder need not be told of it. Shards are named in their list."""
    name = PurePosixPath(row.entry.path).name
    return name if row.sharded or not row.variant else name.replace(f".{row.variant}", "", 1)


def _is_text(path: str, weights: list[Weights]) -> bool:
    """Configs and vocabularies; of the lists of shards only the chosen weights' own."""
    name = PurePosixPath(path).name
    if match := SHARD_LIST.fullmatch(name):
        variant = match["before"] or match["after"] or ""
        return any(row.sharded and (row.format, row.variant) == (match["format"], variant) for row in weights)
    return name.endswith(TEXTS)


def _only(source: HubSource, entries: Mapping[str, Entry]) -> Entry:
    """The one model in a repository of single files. Raises BadSource if there are several to choose from."""
    models = [path for path in entries if path.lower().endswith(SUFFIXES)]
    safe = [path for path in models if path.lower().endswith((".safetensors", ".sft", ".gguf"))]
    models = safe or models
    usual = [row for row in choose_weights(entries[path] for path in models if "/" not in path) if not row.sharded]
    if len(models) > 1 and len(usual) == 1 and all(WEIGHTS.fullmatch(path) for path in models if "/" not in path):
        return usual[0].entry
    if len(models) == 1:
        return entries[models[0]]
    if not models:
        raise BadSource(f"{source.repo} holds no model file. They end in {', '.join(SUFFIXES)}.")
    names = ", ".join(models[:12]) + (", ..." if len(models) > 12 else "")
    raise BadSource(f"{source.repo} holds several models. Add one of them, as in {source.repo}:{models[0]}. ({names})")


def _single(base: str, source: HubSource, entry: Entry) -> Plan:
    name = PurePosixPath(entry.path).name
    if WEIGHTS.fullmatch(name):  # half of all repositories call their file so
        folder = "".join(f"-{part}" for part in PurePosixPath(entry.path).parts[:-1])
        name = f"{_name(source)}{folder}{PurePosixPath(name).suffix}"
    name = safe_name(name)
    return Plan(name=name, files=(_wanted(base, source, entry, name),))


def _wanted(base: str, source: HubSource, entry: Entry, path: str) -> Wanted:
    size = entry.lfs.size if entry.lfs and entry.lfs.size is not None else entry.size
    sha256 = entry.lfs.oid.removeprefix("sha256:").lower() if entry.lfs else ""
    return Wanted(url=_url(base, source, entry.path), path=safe_path(path), size=size, sha256=sha256 or None)


async def _list(web: Web, base: str, source: HubSource) -> list[Entry]:
    url: str | None = f"{base}/api/models/{source.repo}/tree/{quote(source.revision, safe='')}?recursive=true"
    entries: list[Entry] = []
    for _ in range(PAGES):
        if url is None:
            break
        rows, url = await web.json(url)
        try:
            entries += [Entry.model_validate(row) for row in rows]
        except (ValidationError, TypeError) as error:
            raise DownloadFailed(
                f"{base} lists the files of {source.repo} in a way that cannot be read. "
                "Is the mirror address in the settings right?"
            ) from error
    return [entry for entry in entries if entry.type == "file"]


def _url(base: str, source: HubSource, path: str) -> str:
    return f"{base}/{source.repo}/resolve/{quote(source.revision, safe='')}/{quote(path)}"


def _name(source: HubSource) -> str:
    return source.repo.partition("/")[2]


def _no_file(source: HubSource, entries: Mapping[str, Entry]) -> BadSource:
    models = [path for path in entries if path.lower().endswith(SUFFIXES)]
    close = difflib.get_close_matches(source.path, models, 5, 0.3) or models[:5]
    return BadSource(f"{source.repo} has no file {source.path}. It has: {', '.join(close) or 'no model at all'}.")
