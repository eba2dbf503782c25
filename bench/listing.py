"""10,000 model files in a folder: how long until they are listed, at first and when they are known?

The files are sparse, with the names, shapes and metadata that trainers write. On a busy machine wall time says little:
CPU seconds stand beside it. `python -m bench.listing [how many]`
"""

import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.rows import Row
from pipelines.library.registry import Registry

FILES = 10_000
BLOCKS = {
    "sd1": [
        *(f"down_blocks_{level}_attentions_{i}" for level in range(3) for i in range(2)),
        "mid_block_attentions_0",
        *(f"up_blocks_{level}_attentions_{i}" for level in range(1, 4) for i in range(3)),
    ],
    "sdxl": [
        *(f"input_blocks_{i}_1" for i in (4, 5, 7, 8)),
        "middle_block_1",
        *(f"output_blocks_{i}_1" for i in range(6)),
    ],
}
DEPTHS = {"sd1": 1, "sdxl": 6}
CONTEXT = {"sd1": 768, "sdxl": 2048}
LAYERS = ("attn1_to_q", "attn1_to_k", "attn1_to_v", "attn1_to_out_0", "attn2_to_q", "attn2_to_k", "attn2_to_v")
ENCODERS = {"sd1": (("lora_te", 12, 768),), "sdxl": (("lora_te1", 12, 768), ("lora_te2", 12, 1280))}
TAGS = ("1girl", "solo", "looking at viewer", "outdoors", "masterpiece", "night sky", "portrait", "forest", "car")

Shapes = dict[str, list[int]]


def run(files: int = FILES) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        header_bytes = write(models, files)
        cache = Path(folder) / "models.sqlite"
        rows = [Row("model files", files, ""), Row("header of the middle file", header_bytes / 1024, "KiB")]
        registry = Registry([models], cache)
        rows += timed("listed, never seen before", lambda: listed(registry, files))
        again = Registry([models], cache)
        rows += timed("listed after a restart", lambda: listed(again, files))
        rows += timed("listed again, nothing changed", lambda: listed(again, files))
        rows += timed("a look at the folders", again.stale)
        write_lora(models / "Lora" / "new.safetensors", lora("sd1", 8, True), random.Random(0))
        rows += timed("listed again, one file is new", lambda: listed(again, files + 1))
        return rows


def timed(name: str, action: Callable[[], object]) -> list[Row]:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return [
        Row(name, time.perf_counter() - wall, "s"),
        Row(name, time.process_time() - cpu, "CPU s"),
    ]


def listed(registry: Registry, count: int) -> None:
    registry.scan()
    found = [info for info in registry.models() if info.family]
    if len(found) != count:
        raise RuntimeError(f"{len(found)} of {count} were known")


def write(models: Path, files: int) -> int:
    """A collection as people have it: many makers, folders, ranks. Gives the median length of a header in bytes."""
    draw = random.Random(1)
    kinds = list(itertools.product(BLOCKS, (4, 8, 16, 32, 64, 128), (True, False), ("F16", "BF16", "F32")))
    headers = [(lora(family, rank, encoders), dtype) for family, rank, encoders, dtype in kinds]
    lengths = []
    for number in range(files):
        folder = models / "Lora" / f"maker {number % 97}"
        folder.mkdir(parents=True, exist_ok=True)
        shapes, dtype = draw.choice(headers)
        lengths.append(write_lora(folder / f"thing {number}.safetensors", shapes, draw, dtype))
    return sorted(lengths)[files // 2]


def lora(family: str, rank: int, encoders: bool) -> Shapes:
    """The tensors of kohya's LoRAs."""
    shapes: Shapes = {}
    for name, inside, outside in layers(family, encoders):
        shapes[f"{name}.alpha"] = []
        shapes[f"{name}.lora_down.weight"] = [rank, inside]
        shapes[f"{name}.lora_up.weight"] = [outside, rank]
    return shapes


def layers(family: str, encoders: bool) -> Iterator[tuple[str, int, int]]:
    for block, depth in itertools.product(BLOCKS[family], range(DEPTHS[family])):
        for layer in LAYERS[: 7 if family == "sd1" else 2 + depth % 2]:
            inside = CONTEXT[family] if layer in ("attn2_to_k", "attn2_to_v") else 640
            yield f"lora_unet_{block}_transformer_blocks_{depth}_{layer}", inside, 640
    for (prefix, count, width), layer in itertools.product(ENCODERS[family] if encoders else (), LAYERS[:4]):
        for number in range(count):
            yield f"{prefix}_text_model_encoder_layers_{number}_self_{layer}_proj", width, width


def write_lora(path: Path, shapes: Shapes, draw: random.Random, dtype: str = "F16") -> int:
    header: dict[str, object] = {"__metadata__": metadata(draw)}
    end, size = 0, 4 if dtype == "F32" else 2
    for name, shape in shapes.items():
        count = 1
        for side in shape:
            count *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count * size]}
        end += count * size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return len(text)


def metadata(draw: random.Random) -> dict[str, str]:
    """No two trainings write the same."""
    tags = {f"{draw.choice(TAGS)} {draw.randrange(10**6)}": draw.randrange(100) for _ in range(draw.randrange(200))}
    return {
        "ss_learning_rate": str(draw.random()),
        "ss_network_dim": "16",
        "ss_tag_frequency": json.dumps({"10_thing": tags}),
        "sshs_model_hash": f"{draw.getrandbits(256):064x}",
    }


def main() -> None:
    for row in run(int(sys.argv[1]) if len(sys.argv) > 1 else FILES):
        sys.stdout.write(f"{row}{os.linesep}")


if __name__ == "__main__":
    main()
