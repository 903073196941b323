"""What films need is neither imported nor asked for by anything else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pix2pix.cli import main, translate, watch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("pix2pix", ("pix2pix.video", "pix2pix.cli")),
        ("pix2pix.cli.commands, pix2pix.cli.translate, pix2pix.cli.watch", ("av", "watchfiles")),
    ],
)
def test_nothing_imports_the_extras(modules, unwanted):
    """Nor the package its front ends, which alone import the extras."""
    program = f"import {modules}, sys; print([m for m in sys.modules if m in {unwanted}])"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_without_pyav(capsys, monkeypatch):
    monkeypatch.setattr(translate, "find_spec", lambda name: None)
    assert main(["translate", "x.mp4", "-o", "y.mp4", "-m", "model.safetensors"]) == 2
    assert "pip install 'pix2pix[video]'" in capsys.readouterr().err


def test_without_watchfiles(capsys, monkeypatch):
    monkeypatch.setattr(watch, "find_spec", lambda name: None)
    assert main(["watch", ".", "-o", "out", "-m", "model.safetensors"]) == 2
    assert "pip install 'pix2pix[watch]'" in capsys.readouterr().err
