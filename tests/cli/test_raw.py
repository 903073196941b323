"""``pix2pix translate`` of raw files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pix2pix
from tests.cli.commands import noise, translate


def test_raw_files(capsys):
    frames = np.stack([noise(32, 32, i) for i in range(5)])
    Path("in.rgb").write_bytes(frames.tobytes())
    assert translate("in.rgb", "-o", "out.rgb", "--batch-size", "2", "--json", "j.json") == 0
    with pix2pix.load("model.safetensors") as engine:
        assert Path("out.rgb").read_bytes() == engine.translate(frames).tobytes()
    assert json.loads(Path("j.json").read_text())["done"] == 5
    stamp = Path("out.rgb").stat().st_mtime_ns
    assert translate("in.rgb", "-o", "out.rgb") == 0
    assert "0 done, 5 skipped" in capsys.readouterr().out and Path("out.rgb").stat().st_mtime_ns == stamp
    assert translate("in.rgb", "-o", "out.rgb", "--set", "eps=0.1") == 2
    assert translate("in.rgb", "-o", "out.rgb", "--set", "eps=0.1", "--overwrite") == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["in.rgb", "-o", "out"], "into an --output that is a .rgb file"),
        (["in.rgb", "in", "-o", "out.rgb"], "translated alone"),
        (["in.rgb", "-o", "out.rgb", "--gallery"], "takes --size alone"),
        (["in.rgb", "-o", "out.rgb", "--size", "64"], "expected a multiple of 12288"),
        (["in.rgb", "-o", "out.rgb", "--size", "33"], "multiples of 32"),
        (["in.rgb", "-o", "./in.rgb"], "would replace an input"),
        (["none.rgb", "-o", "out.rgb"], "there is no file 'none.rgb'"),
    ],
)
def test_raw_files_that_cannot_be_translated(capsys, argv, message):
    Path("in.rgb").write_bytes(bytes(5 * 32 * 32 * 3))
    assert translate(*argv) == 2
    assert message in capsys.readouterr().err and not Path("out.rgb").exists()
