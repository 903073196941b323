"""Runs that go on where they were stopped, and runs that do not start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pix2pix import checkpoints
from pix2pix.cli import main
from pix2pix.files.record import RECORD_NAME, RunRecord
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.cli.commands import GENERATOR, expected, names, noise, pixels_of, save, translate


def test_what_is_made_is_kept():
    assert translate("in", "-o", "out") == 0
    stamps = {name: Path("out", name).stat().st_mtime_ns for name in names("out")}
    Path("out/x3.png").unlink()
    assert translate("in", "-o", "out", "--json", "j.json") == 0
    summary = json.loads(Path("j.json").read_text())
    assert (summary["done"], summary["skipped"]) == (1, 4)
    del stamps["x3.png"]
    assert {name: Path("out", name).stat().st_mtime_ns for name in stamps} == stamps


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        (["--fit", "pad"], "fit: resize there, pad now"),
        (["--size", "64"], "size: 32x32 there, 64x64 now"),
        (["--set", "eps=0.5"], "overrides: {} there, {'eps': 0.5} now"),
        (["--plan", "direct"], " there, direct now"),
        (["--format", "jpg"], "format: png there, jpg now"),
    ],
)
def test_other_options_are_never_mixed(capsys, option, difference):
    assert translate("in", "-o", "out") == 0
    before = pixels_of("out/x0.png")
    assert translate("in", "-o", "out", *option) == 2
    printed = capsys.readouterr().err
    assert difference in printed and "--overwrite" in printed
    np.testing.assert_array_equal(pixels_of("out/x0.png"), before)
    assert translate("in", "-o", "out", *option, "--overwrite") == 0
    assert translate("in", "-o", "out", *option) == 0


def test_a_plan_is_known_by_what_it_does(monkeypatch, capsys):
    from pix2pix.plans import heuristics
    from pix2pix.plans.algorithms import parse

    assert translate("in", "-o", "out", "--plan", "direct") == 0
    monkeypatch.setattr(
        heuristics, "_on_cpu", lambda *_: parse("direct")
    )  # as another version of the package might choose
    assert translate("in", "-o", "out") == 0
    monkeypatch.setattr(heuristics, "_on_cpu", lambda *_: parse("winograd2"))
    assert translate("in", "-o", "out") == 2
    assert "plan: direct there" in capsys.readouterr().err


def test_another_model_is_never_mixed(capsys):
    assert translate("in", "-o", "out") == 0
    checkpoints.write("other.safetensors", GENERATOR, random_weights(GENERATOR, seed=1))
    assert translate("in", "-o", "out", model="other.safetensors") == 2
    assert "model: " in capsys.readouterr().err
    Path("other.safetensors").write_bytes(Path("model.safetensors").read_bytes())
    assert translate("in", "-o", "out", model="other.safetensors") == 0


def test_files_of_the_user_are_not_replaced(capsys):
    save("out/x0.png", 32, 32, 77)
    assert translate("in", "-o", "out") == 2
    assert "exists already" in capsys.readouterr().err
    np.testing.assert_array_equal(pixels_of("out/x0.png"), noise(32, 32, 77))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing", "-o", "out"], "there is no file or folder 'nothing'"),
        (["empty", "-o", "out"], "found no images in empty"),
        (["in", "-o", "in"], "is the input folder"),
        (["in", "-o", "model.safetensors"], "is a file: expected a folder"),
        (["in/x0.png", "same/x0.png", "-o", "out"], "would both be written to"),
        (["in", "-o", "out", "--size", "100"], "takes multiples of 32"),
        (["in", "-o", "out", "--device", "cuda:99"], "cuda"),
        (["in", "-o", "out", "--device", "tpu"], "expected auto, cpu, cuda"),
        (["in", "-o", "out", "--precision", "float16"], "in float32 or bfloat16"),
        (["in", "-o", "out", "--gpu-layers", "auto", "--device", "cpu"], "places layers on a GPU"),
        (["in", "-o", "out", "--set", "beta=1"], "cannot override 'beta'"),
        (["in", "-o", "out", "--statistics", "running"], "holds none: it needs 'image'"),
        (["in", "-o", "out", "--plan", "none.json"], "cannot read a plan"),
        (["in/x0.png", "-o", "y.png", "--gallery"], "is the name of a file"),
        (["in/x0.png", "-o", "y.gif"], "expected a name ending in .png"),
        (["in/x0.png", "-o", "y.tga"], "expected a name ending in .png, .jpg"),
        (["in/x0.png", "-o", "y.jpge"], "or a folder: 'y.jpge/'"),
        (["in", "-o", "out", "--json", "in"], "--json 'in' is a folder"),
        (["in", "-o", "out", "--json", "in/x0.png/j.json"], "is no folder"),
        (["in", "-o", "y.png"], "the name of one image: expected a folder"),
    ],
)
def test_runs_that_cannot_start(capsys, argv, message):
    Path("empty").mkdir()
    save("same/x0.png")
    before = names(".")
    assert translate(*argv) == 2
    assert message in capsys.readouterr().err
    assert names(".") == before


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["translate", "in"],
        ["translate", "in", "-o", "out", "-m", "m", "--size", "0"],
        ["translate", "in", "-o", "out", "-m", "m", "--size", "1x2x3"],
        ["translate", "in", "-o", "out", "-m", "m", "--batch-size", "-1"],
        ["translate", "in", "-o", "out", "-m", "m", "--set", "eps"],
        ["translate", "in", "-o", "out", "-m", "m", "--memory", "much"],
        ["translate", "in", "-o", "out", "-m", "m", "--image-timeout", "0"],
        ["translate", "in", "-o", "out", "-m", "m", "--overw"],
    ],
)
def test_command_lines_that_make_no_sense(argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_a_model_that_is_none(capsys):
    Path("bad.pth").write_bytes(b"no model")
    assert translate("in", "-o", "out", model="bad.pth") == 2
    assert translate("in", "-o", "out", model="none.pth") == 2
    assert "bad.pth" in (printed := capsys.readouterr().err) and "none.pth" in printed
    assert not Path("out").exists()


def test_channels_that_files_cannot_hold(capsys):
    for channels, argv in (((3, 2), []), ((3, 4), ["-f", "jpg"])):
        generator = unet(2, 5, *channels)
        checkpoints.write("model.safetensors", generator, random_weights(generator))
        assert translate("in", "-o", "out", *argv) == 2
    printed = capsys.readouterr().err
    assert "makes images of 2 channels" in printed and "no alpha" in printed
    assert not Path("out").exists()


def test_other_images_under_the_same_names_are_made_again(capsys):
    assert translate("in", "-o", "out") == 0
    for i in range(5):
        save(f"in2/x{i}.png", 32, 32, i + 10)
    save("in/x4.png", 32, 32, 44)
    assert translate("in", "-o", "out") == 0
    assert "1 done, 4 skipped" in capsys.readouterr().out
    np.testing.assert_array_equal(pixels_of("out/x4.png"), expected(32, 32, 44))
    assert translate("in2", "-o", "out") == 0
    assert "5 done, 0 skipped" in capsys.readouterr().out
    np.testing.assert_array_equal(pixels_of("out/x4.png"), expected(32, 32, 14))


def test_damaged_outputs_are_made_again(capsys):
    assert translate("in", "-o", "out") == 0
    content = Path("out/x1.png").read_bytes()
    Path("out/x1.png").write_bytes(b"")
    Path("out/x2.png").write_bytes(bytes(Path("out/x2.png").stat().st_size))
    assert translate("in", "-o", "out") == 0
    assert "1 done, 4 skipped" in capsys.readouterr().out and Path("out/x1.png").read_bytes() == content
    assert translate("in", "-o", "out", "--verify") == 0
    assert "1 done, 4 skipped" in capsys.readouterr().out


def test_another_raw_file_of_the_same_size_is_translated(capsys):
    for seed in (1, 2):
        frames = np.stack([noise(32, 32, seed)] * 2)
        Path("in.rgb").write_bytes(frames.tobytes())
        assert translate("in.rgb", "-o", "out.rgb") == 0
        assert "2 done, 0 skipped" in capsys.readouterr().out
        assert Path("out.rgb").read_bytes()[: 32 * 32 * 3] == expected(32, 32, seed).tobytes()


def test_two_runs_into_one_folder_do_not_mix(capsys):
    with RunRecord(Path("out") / RECORD_NAME):
        assert translate("in", "-o", "out") == 2
    assert f"another run writes into 'out': process {os.getpid()} on " in capsys.readouterr().err
    assert translate("in", "-o", "out") == 0
