"""A seeded fuzzer of the checkpoint readers: ``python -m tests.checkpoints.fuzz FORMAT CASES SEED FOLDER``.

Makes damaged and hostile files out of small real ones and reads each. Every file must give a whole model or a
CheckpointError, within 2 s of CPU time and 200 MB beyond the file's size; nothing may be executed, and no file outside
FOLDER opened. Memory is limited by the operating system, which needs a process of its own; an audit hook watches the
rest. A case is reproduced by its seed alone: FORMAT 1 SEED+i.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import resource
import shutil
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402 - threads would count as memory

from pix2pix import checkpoints  # noqa: E402
from tests.checkpoints.fuzz_amplified import amplified_cases  # noqa: E402
from tests.checkpoints.fuzz_cases import DATA, FORMATS, Case  # noqa: E402
from tests.checkpoints.fuzz_tensorflow_cases import TENSORFLOW  # noqa: E402

SECONDS = 2.0
BYTES = 200 << 20
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess", "socket", "ctypes", "exec", "compile")
FORBIDDEN += ("pickle", "os.remove", "os.rename", "os.mkdir", "shutil", "import", "code")


class Watch:
    """An audit hook that, while it is on, raises at whatever a reader must not do."""

    def __init__(self, folder: Path) -> None:
        self.on = False
        self.folder = os.path.realpath(folder)
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event.startswith(FORBIDDEN):
            raise RuntimeError(f"a reader caused {event} {arguments!r:.200}")
        if event == "open" and isinstance(arguments[0], str | bytes):
            real = os.path.realpath(os.fsdecode(arguments[0]))
            if not real.startswith(self.folder) or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise RuntimeError(f"a reader opened {real}")


def place(case: Case, folder: Path) -> Path:
    """Write a case into an empty ``folder``; the path to read."""
    files, name, links = case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file, data in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data)
    for link, target in links.items():
        (folder / link).unlink(missing_ok=True)
        (folder / link).symlink_to(target)
    return folder / name


def outcome(path: Path, watch: Watch) -> str:
    """How reading ended: 'model' or 'error'. Anything else raises."""
    watch.on = True
    try:
        generator, weights = checkpoints.read(path)
    except checkpoints.CheckpointError as error:
        if len(str(error)) > 20_000:
            raise RuntimeError("the message has no end") from None
        return "error"
    finally:
        watch.on = False
    generator.check_weights(weights)
    if not all(np.isfinite(array).all() and array.flags.c_contiguous for array in weights.values()):
        raise RuntimeError("a model that is not whole was returned")
    return "model"


def limit_memory() -> None:
    """Let this process have ``BYTES`` more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(kind: str, cases: int, seed: int, folder: Path) -> None:
    """Run the cases; print a summary, or raise at the first that goes wrong."""
    make = (FORMATS | TENSORFLOW | {"amplified": amplified_cases})[kind](folder)
    watch = Watch(folder / "case")
    for path in DATA.iterdir():  # so that every module is loaded before anything is measured
        try:
            checkpoints.read(path)
        except checkpoints.CheckpointError:
            continue
    gc.collect()
    if Path("/proc/self/statm").exists():
        limit_memory()
    faulthandler.dump_traceback_later(600, exit=True)
    counts, slowest = Counter(), 0.0
    warnings.filterwarnings("ignore", "Duplicate name")
    for number in range(seed, seed + cases):
        path = place(make(random.Random(number)), folder / "case")
        start = time.process_time()
        try:
            counts[outcome(path, watch)] += 1
        except BaseException as error:
            raise RuntimeError(f"{kind} case {number} went wrong, its files are in {folder / 'case'}") from error
        slowest = max(slowest, time.process_time() - start)
        if slowest > SECONDS:
            raise RuntimeError(f"{kind} case {number} took {slowest:.1f} s")
    print(f"{kind}: {counts['model']} models, {counts['error']} errors, slowest {slowest:.3f} s")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
