"""Files of models: read within their length, and paid for from a budget that their size bounds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pix2pix.checkpoints import CheckpointError, read
from pix2pix.checkpoints.budget import Budget
from pix2pix.checkpoints.model_file import MAX_STRUCTURE, opened

DATA = Path(__file__).parent / "data"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 100 numbers."""
    np.arange(100, dtype="<f4").tofile(tmp_path / "x")
    return tmp_path / "x"


def test_numbers_and_structure_within_the_file(path: Path) -> None:
    with opened(path, Budget()) as file:
        assert file.size == 400 and file.numbers(40, "float32", (2, 3)).tolist() == [[10, 11, 12], [13, 14, 15]]
        assert file.read(4, 4) == np.float32(1).tobytes() and len(file.read()) == 400
        part = file.part(80, 40)
        assert part.numbers(0, "float32", (10,)).tolist() == list(range(20, 30)) and part.read() == file.read(80, 40)
        assert file.numbers(0, "bfloat16", (1,)).dtype == np.uint16 and file.numbers(400, "float32", (0,)).shape == (0,)
        for position, size in ((0, 401), (400, 1), (-1, 1), (0, -1), (2**70, 1), (0, 2**70)):
            with pytest.raises(CheckpointError, match="damaged or cut off"):
                file.read(position, size)
            with pytest.raises(CheckpointError, match="damaged or cut off"):
                file.part(position, size)
        with pytest.raises(CheckpointError, match="damaged or cut off"):
            part.numbers(0, "float32", (11,))


def test_a_file_that_becomes_shorter_meanwhile_is_an_error(path: Path) -> None:
    with opened(path, Budget()) as file:
        os.truncate(path, 100)
        with pytest.raises(CheckpointError, match="became shorter while it was read"):
            file.numbers(0, "float32", (100,))
        with pytest.raises(CheckpointError, match="became shorter while it was read"):
            file.read()


def test_structure_is_never_long(path: Path) -> None:
    os.truncate(path, 2 * MAX_STRUCTURE)
    with opened(path, Budget()) as file, pytest.raises(CheckpointError, match="in one place"):
        file.read(0, MAX_STRUCTURE + 1)


def test_work_is_bounded_by_the_size_of_the_files(path: Path) -> None:
    def steps() -> int:
        return next(count for count in range(10**6) if not spent(budget.spend))

    budget = Budget()
    with opened(path, budget):
        small = steps()
    os.link(path, path.with_name("y"))
    budget = Budget()
    with opened(path, budget), opened(path.with_name("y"), budget):
        assert steps() == small, "a file counts once, whatever its names"
    os.truncate(path, 100_000)
    budget = Budget()
    with opened(path, budget):
        assert steps() == small - 400 + 100_000
    os.truncate(path, 1 << 40)
    budget = Budget()
    with opened(path, budget):
        assert steps() < 300_000


def spent(spend, *size: int) -> bool:
    try:
        spend(*size)
    except CheckpointError:
        return False
    return True


def test_memory_is_bounded_by_the_size_of_the_files(path: Path) -> None:
    budget = Budget()
    with opened(path, budget) as file:
        assert spent(budget.spend_tensor, 16 << 20) and not spent(budget.spend_tensor, 401)
        with pytest.raises(CheckpointError, match="share their numbers"):
            file.numbers(0, "float32", (1,))
        assert spent(budget.spend_text, 4 << 20) and not spent(budget.spend_text, 4 << 20)


def test_nothing_stays_open_or_mapped() -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    models = [read(DATA / name) for name in ("batch.pth", "converted.safetensors", "keras_3_tutorial.keras")]
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
        assert not any(str(DATA) in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert len(models) == 3
