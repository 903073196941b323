"""A cold start: this program imports one engine, loads its model, translates one image and ends.

    python -m bench.peers.start ENGINE FOLDER THREADS [PLAN]

FOLDER holds the model as :func:`.model_files.export` writes it for one image, and the image as image.npy, float32
(1,H,W,C). Only the engine's own libraries are imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from .engines import ENGINES, Task


def main(name: str, folder: str, threads: str, plan: str | None = None) -> int:
    """Translate the image; exit status 1 if the result is constant."""
    task = Task(Path(folder), np.load(Path(folder, "image.npy")), int(threads), plan)
    call, to_nhwc = ENGINES[name].load(task)
    return int(to_nhwc(call()).std() == 0)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
