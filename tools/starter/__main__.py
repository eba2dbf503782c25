"""The command line: `uv run --group starter python -m tools.starter COMMAND`; the README lists the steps."""

import argparse
import logging
import os
from pathlib import Path
from tempfile import gettempdir
from types import ModuleType

from tools.starter import data, evaluate, install, latents, sheet, text, unet, vae

COMMANDS: dict[str, ModuleType] = {
    "data": data,
    "vae": vae,
    "latents": latents,
    "text": text,
    "unet": unet,
    "evaluate": evaluate,
    "sheet": sheet,
    "install": install,
}
"""Each module has `add_arguments(parser)` and `run(options)`; its first line is the command's help."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.starter", description="Makes the starter model.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        words = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=words.replace("%", "%%"), description=words)
        default = Path(gettempdir()) / "inkstone-starter"
        command.add_argument("--work", type=Path, default=default, help=f"data and checkpoints ({default})")
        command.add_argument("--device", default="cpu", help="cpu or cuda")
        command.add_argument("--workers", type=int, help="processes that train in step: 2 on a CPU, 1 on a GPU")
        command.add_argument("--nice", type=int, default=15, help="how far to let other programs go first")
        module.add_arguments(command)
    return parser


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options = make_parser().parse_args()
    os.nice(options.nice)
    options.workers = options.workers or (2 if options.device == "cpu" else 1)
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    COMMANDS[options.command].run(options)


if __name__ == "__main__":
    main()
