"""Whole runs from option values, without a command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pix2pix
from pix2pix.errors import InputError, RecordError
from pix2pix.factory import EngineOptions
from pix2pix.files.options import TranslateOptions
from pix2pix.files.outcome import Outcome
from pix2pix.files.record import RECORD_NAME
from pix2pix.files.translate import Listener, translate
from tests.files.samples import SIZE, noise, pixels_of, save

MODEL = Path(__file__).parents[1] / "checkpoints" / "data" / "batch.pth"

# What version 0.1.0 wrote for this model and these options.
RECORD_OF_0_1_0 = {
    "model": "bb6b705e6d1b54a72a45d4196ad9462751014cd67a73023be44d3e820618b748",
    "key": None,
    "overrides": {"eps": 0.001},
    "statistics": "image",
    "precision": "float32",
    "tune": "throughput",
    "plan": "1477bc83efb8dea24a0a021e24aae8233d25c566ad4b55f138a32cf4983e0128",
    "size": "64x64",
    "fit": "resize",
    "pair": None,
    "format": "png",
}


class Notes(Listener):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.facts: list[str] = []
        self.total, self.count = 0, 0
        self.outcomes: list[Outcome] = []

    def loaded(self, facts: list[str]) -> None:
        self.facts += facts

    def started(self, total: int) -> None:
        self.total = total

    def progressed(self, count: int) -> None:
        self.count += count

    def outcome(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def options(tmp_path) -> TranslateOptions:
    """To translate three images."""
    for i in range(3):
        save(tmp_path, f"in/x{i}.png", SIZE, SIZE, i)
    return TranslateOptions(
        (tmp_path / "in",),
        tmp_path / "out",
        MODEL,
        EngineOptions(device="cpu"),
        overrides={"eps": 0.001},
        size=(64, 64),
    )


def test_a_program_translates_without_a_command_line(options, capsys):
    notes = Notes()
    report = translate(options, notes)
    assert notes.facts[0].startswith("device: cpu, ") and (notes.total, notes.count) == (3, 3)
    assert sorted(outcome.job.name for outcome in notes.outcomes) == ["x0.png", "x1.png", "x2.png"]
    assert dict(report.counts) == {"done": 3} and not report.stopped and json.dumps(report.to_dict())
    with pix2pix.load(MODEL, overrides={"eps": 0.001}) as engine:
        resized = Image.fromarray(noise(SIZE, SIZE, 1)).resize((64, 64), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(pixels_of(options.output / "x1.png"), engine.translate(np.asarray(resized)))
    assert capsys.readouterr() == ("", "")
    assert dict(translate(options).counts) == {"skipped": 3}


def test_runs_that_cannot_start_raise(options, tmp_path):
    with pytest.raises(InputError):
        translate(TranslateOptions((tmp_path / "nothing",), tmp_path / "out", MODEL))
    (options.output).mkdir()
    save(options.output, "x0.png")
    with pytest.raises(RecordError):
        translate(options)


def test_a_folder_begun_by_version_0_1_0_goes_on(options):
    options.output.mkdir()
    record = options.output / RECORD_NAME
    record.write_text(json.dumps(RECORD_OF_0_1_0, indent=2) + "\n")
    whole = save(options.output, "x0.png", 64, 64, 77)
    before = whole.read_bytes()
    assert dict(translate(options).counts) == {"skipped": 1, "done": 2}
    assert whole.read_bytes() == before
    record.write_text(json.dumps(RECORD_OF_0_1_0 | {"plan": "direct"}, indent=2) + "\n")
    with pytest.raises(RecordError, match="plan: direct there, 1477bc83"):
        translate(options)
