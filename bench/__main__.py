"""`uv run python -m bench`: all figures in one run, as docs/performance.md holds them."""

import logging
import os
import subprocess
import sys

from bench import listing, start
from bench.rows import Row

log = logging.getLogger("bench")


def main() -> None:
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    log.info("The application, started by its command, on %s cores", os.cpu_count())
    report(start.run())
    log.info("\nModels in a folder, listed by their headers")
    report(listing.run())
    log.info("\nThe sampling loop against diffusers' pipeline, one thread, CPU seconds")
    # in a process of its own, since threads are counted when torch is imported
    subprocess.run([sys.executable, "-m", "bench.loop"], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    log.info("\nLoRAs on a full-size SD 1.5, one thread, CPU seconds")
    subprocess.run([sys.executable, "-m", "bench.lora"], check=True)
    log.info("\nLoading and switching checkpoints against diffusers' from_single_file, one thread, CPU seconds")
    subprocess.run([sys.executable, "-m", "bench.models"], check=True)


def report(rows: list[Row]) -> None:
    for row in rows:
        log.info("%s", row)


if __name__ == "__main__":
    main()
