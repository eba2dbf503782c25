"""What it costs to change LoRAs, and to wear one: kohya's rank 16 on a full-size SD 1.5 of random weights, on the CPU.

    python -m bench.lora [--size full|tiny] [--dtype float32|bfloat16] [--rounds 4]

Counted are CPU seconds of one thread. "Change" is everything from two other names in the prompt to layers that are
ready to compute: the files are read, or known; terms are cut to the model, brought into its format and put on.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.rows import Row
from pipelines.prompt import LoraUse
from pipelines.types import Kind, ModelInfo

RANK = 16
ENDINGS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
SIDE = 32
"""Of the latents of a step: a picture of 256 pixels."""


def run(size: str = "full", dtype: str = "bfloat16", rounds: int = 4) -> list[Row]:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = Model(size, getattr(torch, dtype))
        names = [f"lora{number}" for number in range(2 * rounds + 2)]
        for seed, name in enumerate(names):
            model.save_lora(Path(folder) / f"{name}.safetensors", seed)
        return [*changes(model, Path(folder), names, rounds), *steps(model, Path(folder), names, rounds)]


class Model:
    """The U-Net and the text encoder of SD 1.5, of random numbers, as `Wardrobe` sees a model."""

    def __init__(self, size: str, dtype: Any) -> None:
        import torch

        from pipelines.families.sd1 import SD1
        from pipelines.loading.parts import Part
        from tests.checkpoints import FULL, TINY, shapes_of

        self.device = torch.device("cpu")
        self.parts: dict[str, Part] = {}
        shapes = shapes_of((FULL if size == "full" else TINY)["sd1"])
        for name in ("unet", "text_encoder"):
            recipe = SD1.RECIPES[name]
            prefix = recipe.prefixes[0]
            tensors = {
                key.removeprefix(prefix): torch.empty(shape, device="meta")
                for key, shape in shapes.items()
                if key.startswith(prefix)
            }
            with torch.device("meta"):
                module = recipe.build(recipe.config(tensors)).to(dtype)
            places = {key: buffer for key, buffer in module.named_buffers() if not buffer.is_meta}
            module.to_empty(device="cpu").eval().requires_grad_(False)
            for weight in module.parameters():
                weight.uniform_(-0.02, 0.02)
            for key, buffer in places.items():
                module.get_buffer(key).copy_(buffer)
            self.parts[name] = Part(name, module, dtype, name, 0)

    def save_lora(self, path: Path, seed: int) -> None:
        import torch

        from tests.loras import kohya, low_rank, save

        modules = {name: part.module for name, part in self.parts.items()}
        half = kohya(modules, (*ENDINGS, *TEXT), lambda layer, draw: low_rank(layer, RANK, draw), seed)
        save(path, {name: tensor.to(torch.float16) for name, tensor in half.items()})

    def step(self) -> None:
        import torch

        unet: Any = self.parts["unet"].module
        dtype, width = self.parts["unet"].dtype, unet.config.cross_attention_dim
        unet(
            torch.zeros(2, 4, SIDE, SIDE, dtype=dtype), torch.tensor([500, 500]), torch.zeros(2, 77, width, dtype=dtype)
        )


class Shelf:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, kind: Kind, name: str) -> ModelInfo:
        return ModelInfo(name=name, kind=kind, family="sd1", path=self._folder / f"{name}.safetensors", size_bytes=0)

    def note(self, text: str) -> None:
        raise RuntimeError(text)


def changes(model: Model, folder: Path, names: list[str], rounds: int) -> list[Row]:
    from pipelines.adapters.wardrobe import Wardrobe

    wardrobe, shelf = Wardrobe(set_bytes=0), Shelf(folder)
    loaded: Any = model

    def put_on(*uses: LoraUse) -> float:
        """CPU seconds until the first layer may compute."""
        start = time.process_time()
        with wardrobe.dressed(loaded, uses, shelf):
            for patch in next(reversed(wardrobe._sets.values())).patches:
                module: Any = model.parts[patch.part].module.get_submodule(patch.layer)
                patch.prepare(module, model.device, model.parts[patch.part].dtype)
            return time.process_time() - start

    put_on(LoraUse(names[-1], 1, 1))
    new = [put_on(LoraUse(names[2 * turn], 1, 1), LoraUse(names[2 * turn + 1], 1, 0.5)) for turn in range(rounds)]
    one = [put_on(LoraUse(names[0], 1, 1 - turn / 10)) for turn in range(rounds)]
    start = time.process_time()
    with wardrobe.dressed(loaded, [LoraUse(names[0], 1, 1 - (rounds - 1) / 10)], shelf):
        pass
    again = time.process_time() - start
    return [
        Row("two other LoRAs, files not read before", statistics.median(new), "CPU s"),
        Row("another weight for one", statistics.median(one), "CPU s"),
        Row("the same again, for the next picture", again, "CPU s"),
    ]


def steps(model: Model, folder: Path, names: list[str], rounds: int) -> list[Row]:
    """In turns: bare, with one, with four."""
    from pipelines.adapters.wardrobe import Wardrobe

    wardrobe, shelf = Wardrobe(), Shelf(folder)
    loaded: Any = model

    def worn(count: int) -> Callable[[], None]:
        uses = [LoraUse(name, 1, 1) for name in names[:count]]

        def step() -> None:
            with wardrobe.dressed(loaded, uses, shelf):
                model.step()

        return step

    ways = {"bare": worn(0), "one": worn(1), "four": worn(4)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:
                seconds[name].append(time.process_time() - start)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    return [
        Row("a step without", median["bare"], "CPU s"),
        Row("a step with one LoRA / without", median["one"] / median["bare"], ""),
        Row("a step with four LoRAs / without", median["four"] / median["bare"], ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.lora")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=4)
    for row in run(**vars(parser.parse_args())):
        sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
