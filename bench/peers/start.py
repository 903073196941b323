"""A start from nothing: a new process that imports an engine, loads its model, translates one picture and ends.

    python -m bench.start ENGINE FOLDER THREADS [PLAN]

FOLDER holds the model as :func:`.files.export` writes it for one picture, and the picture as picture.npy.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from .engines import ENGINES, Task

TOP = Path(__file__).parent.parent
RUNS = 3


def write_picture(folder: Path, x: np.ndarray) -> None:
    """Write the picture, float32 (1,256,256,3), that :func:`cold_start` translates."""
    np.save(folder / "picture.npy", x)


def cold_start(name: str, folder: Path, threads: int, plan: str | None) -> dict[str, float]:
    """Seconds from the start of such a process to its end, files in the page cache: minimum and median of RUNS."""
    command = [sys.executable, "-m", "bench.start", name, folder, str(threads), *([plan] if plan else [])]
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise RuntimeError(f"a start of {name} ended with {done.returncode}: {done.stderr}")
    return {"min_s": round(min(seconds), 3), "median_s": round(float(np.median(seconds)), 3)}


def main(name: str, folder: str, threads: str, plan: str | None = None) -> int:
    """Translate the picture; exit status 1 if all of the result is one value."""
    task = Task(Path(folder), np.load(Path(folder, "picture.npy")), int(threads), plan)
    call, to_nhwc = ENGINES[name].load(task)
    return int(to_nhwc(call()).std() == 0)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
