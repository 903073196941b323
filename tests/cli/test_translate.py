"""``pix2pix translate`` as a user meets it: what is made, messages and summaries."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pix2pix
from pix2pix import checkpoints
from pix2pix.files.record import RECORD_NAME
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from tests.cli.commands import expected, names, noise, pixels_of, save, translate


def test_a_folder(capsys):
    assert translate("in", "-o", "out") == 0
    assert names("out") == [RECORD_NAME, *(f"x{i}.png" for i in range(5))]
    np.testing.assert_array_equal(pixels_of("out/x3.png"), expected(32, 32, 3))
    printed = capsys.readouterr()
    assert "5 done, 0 skipped, 0 failed" in printed.out
    assert printed.err.startswith("device: cpu, ")


def test_padding_keeps_sizes():
    save("in/wide.png", 20, 70, 9)
    assert translate("in", "-o", "out", "--fit", "pad") == 0
    np.testing.assert_array_equal(pixels_of("out/wide.png"), expected(20, 70, 9))


def test_a_size_of_its_own():
    assert translate("in", "-o", "out", "--size", "96x64") == 0
    assert pixels_of("out/x0.png").shape == (64, 96, 3)


@pytest.mark.parametrize("output", ["y.png", "deep/y.jpg"])
def test_one_image_to_a_file(capsys, output):
    assert translate("in/x1.png", "-o", output) == 0
    result = pixels_of(output).astype(int)
    assert abs(result - expected(32, 32, 1)).max() <= (0 if output.endswith("png") else 60)
    assert not list(Path().rglob(RECORD_NAME))
    assert translate("in/x1.png", "-o", output) == 0  # the same is made again
    before = Path(output).read_bytes()
    assert translate("in/x2.png", "-o", output) == 2
    assert Path(output).read_bytes() == before and "exists already" in capsys.readouterr().err
    assert translate("in/x2.png", "-o", output, "--overwrite") == 0
    assert Path(output).read_bytes() != before


def test_label_maps(capsys):
    labelled = dataclasses.replace(unet(ngf=2, depth=5, in_channels=4), takes="labels")
    checkpoints.write("labels.safetensors", labelled, random_weights(labelled))
    for folder in ("labels", "inst"):
        Path(folder).mkdir()
        Image.fromarray(noise()[..., 0] % 3).save(f"{folder}/x.png")
    assert translate("labels", "-o", "out", "--instances", "inst", model="labels.safetensors") == 0
    assert names("out") == [RECORD_NAME, "x.png"] and pixels_of("out/x.png").std() > 1
    assert translate("labels", "-o", "other", "--no-instance", model="labels.safetensors") == 0
    assert (pixels_of("out/x.png") != pixels_of("other/x.png")).any()
    assert translate("labels", "-o", "none", model="labels.safetensors") == 2
    assert "--instances" in capsys.readouterr().err and not Path("none").exists()
    with pytest.raises(SystemExit):
        translate("labels", "-o", "both", "--instances", "inst", "--no-instance", model="labels.safetensors")
    assert "not allowed with argument" in capsys.readouterr().err


def test_formats():
    assert translate("in", "-o", "jpg", "-f", "jpg") == 0
    assert names("jpg")[1] == "x0.png.jpg"
    Path("in/x0.png").rename("in/x0.webp")
    assert translate("in", "-o", "same", "--format", "same") == 0
    assert names("same")[1:3] == ["x0.webp", "x1.png"]


def test_options_reach_the_engine():
    assert translate("in/x0.png", "-o", "a.png") == 0
    assert translate("in/x0.png", "-o", "b.png", "--set", "output_scale=100", "--set", "eps=0.5") == 0
    with pix2pix.load("model.safetensors", overrides={"output_scale": 100, "eps": 0.5}) as engine:
        np.testing.assert_array_equal(pixels_of("b.png"), engine.translate(noise()))
    assert (pixels_of("a.png") != pixels_of("b.png")).any()
    assert translate("in", "-o", "c", "--threads", "1", "--batch-size", "2", "--tune", "latency") == 0
    np.testing.assert_array_equal(pixels_of("a.png"), pixels_of("c/x0.png"))


def test_the_summary_as_json():
    Path("in/x2.png").write_bytes(b"no image")
    assert translate("in", "-o", "out", "--json", "deep/summary.json") == 1
    summary = json.loads(Path("deep/summary.json").read_text())
    assert (summary["done"], summary["skipped"], summary["failed"]) == (4, 0, 1)
    failure = {"input": str(Path("in/x2.png")), "reason": "damaged, or no image of a known format"}
    assert summary["failures"] == [failure]
    assert summary["device"] == "cpu" and summary["threads"] >= 1 and summary["images_per_second"] > 0
    assert summary["metrics"] is None and summary["stopped"] is None
    assert sorted(image["status"] for image in summary["images"]) == ["done"] * 4 + ["failed"]


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_the_summary_as_json_on_stdout(capsys, quiet):
    assert translate("in", "-o", "out", "--json", "-", *quiet) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["done"] == 5
    assert ("5 done" in printed.err) == (not quiet) and not Path("-").exists()


def test_a_summary_that_cannot_be_written_is_refused_before_the_run(monkeypatch, capsys):
    Path("closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "closed")  # root may write everywhere
    assert translate("in", "-o", "out", "--json", "closed/deep/j.json") == 2
    assert "may not be written to" in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize("output", ["a.tga/", "b.png/", "c.v2", "there.tga"])
def test_outputs_that_are_folders(output):
    Path("there.tga").mkdir()
    assert translate("in/x1.png", "-o", output) == 0
    assert names(output) == [RECORD_NAME, "x1.png"]


def test_pairs_are_compared_and_shown(capsys):
    y = expected(32, 32, 0)
    Path("pairs").mkdir()
    Image.fromarray(np.hstack([noise(32, 32, 0), y])).save("pairs/same.png")
    Image.fromarray(np.hstack([noise(32, 32, 0), 255 - y])).save("pairs/other.png")
    assert translate("pairs", "-o", "out", "--pair", "AtoB", "--gallery", "--json", "j.json") == 0
    summary = json.loads(Path("j.json").read_text())
    same, other = sorted(summary["images"], key=lambda image: image["input"], reverse=True)
    assert (same["psnr"], same["l1"]) == (None, 0) and same["ssim"] == pytest.approx(1)
    assert other["psnr"] == summary["metrics"]["psnr"] and other["l1"] > 0
    assert "mean PSNR" in capsys.readouterr().out
    page = Path("out/gallery.html").read_text()
    assert page.count("<figcaption>target</figcaption>") == 2 and "identical" in page


def test_the_gallery_shows_what_was_made_earlier_too():
    assert translate("in", "-o", "out") == 0
    save("in/new.png", 32, 32, 9)
    assert translate("in", "-o", "out", "--gallery", "--json", "j.json") == 0
    assert json.loads(Path("j.json").read_text())["skipped"] == 5
    assert Path("out/gallery.html").read_text().count("<article") == 6


def test_quiet_says_the_device_and_failures_alone(capsys):
    Path("in/x2.png").write_bytes(b"no image")
    assert translate("in", "-o", "out", "-q") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    device, failed = printed.err.splitlines()
    assert device.startswith("device: cpu") and failed.startswith(f"failed: {Path('in/x2.png')}: damaged")


def test_what_is_left_out_of_a_folder_is_told(capsys, monkeypatch):
    Path("in/notes.txt").write_text("no image")
    save("in/closed/x.png")
    scandir = os.scandir

    def refuse(path):  # root may read everything
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert translate("in", "-o", "out", "--json", "j.json") == 1
    printed = capsys.readouterr()
    assert "5 done, 0 skipped, 1 failed" in printed.out and "left out: 1 ending in .txt" in printed.out
    assert f"failed: {Path('in/closed')}: cannot read this folder: Permission denied" in printed.err
    summary = json.loads(Path("j.json").read_text())
    assert summary["left_out"] == {"ending in .txt": 1}
    assert summary["failures"][0]["input"] == str(Path("in/closed"))


def test_images_that_take_too_much_fail_alone(capsys):
    save("in/large.png", 3000, 3000)
    Path("in/slow.ppm").write_bytes(b"P3\n32 32 255\n" + b"#\n" * 1_000_000 + b"1 " * 3072)
    limits = ["--memory", "1M", "--image-timeout", "0.1"]
    assert translate("in", "-o", "out", "--fit", "pad", *limits) == 1
    printed = capsys.readouterr()
    assert "5 done, 0 skipped, 2 failed" in printed.out
    assert "in/large.png: 3000x3000 pixels need some" in printed.err and "slow.ppm: decoding takes" in printed.err
    assert translate("in", "-o", "out", "--fit", "pad") == 0
