"""Damaged and hostile files give a whole model or a CheckpointError, fast, in little memory, executing nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FORMATS = ("pytorch", "keras", "tfjs", "safetensors", "course", "bundle", "objects", "saved_model", "pict")

SOME, SOME_SLOW, MANY = 400, 200, 20_000
SLOW = ("pytorch", "keras", "bundle", "objects")
FEWER = {"objects": 8_000, "saved_model": 6_000, "amplified": 1_000}  # which take long to make and to read
PARTS = 2  # of many files, for processes side by side


def fuzz(kind: str, cases: int, seed: int, folder: Path) -> str:
    """The summary of a run of the fuzzer, in a process of its own because it limits its memory."""
    command = [sys.executable, str(TESTS / "fuzz.py"), kind, str(cases), str(seed), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parents[1])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.parametrize("kind", FORMATS)
def test_some_hostile_files(kind: str, tmp_path: Path) -> None:
    summary = fuzz(kind, SOME_SLOW if kind in SLOW else SOME, 0, tmp_path)
    assert " 0 models" not in summary and " 0 errors" not in summary


def test_some_files_that_ask_for_more_than_their_size(tmp_path: Path) -> None:
    fuzz("amplified", 60, 0, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", [*FORMATS, "amplified"])
def test_many_hostile_files(kind: str, part: int, tmp_path: Path) -> None:
    cases = FEWER.get(kind, MANY) // PARTS
    print(fuzz(kind, cases, 1_000_000 + part * cases, tmp_path))
