"""pix2pix convert, from every format that is read: the new file makes the same pixels."""

from __future__ import annotations

from pathlib import Path

import pytest

import pix2pix
from pix2pix.cli import main

from ..models import pictures

DATA = Path(__file__).parent / "data"
MODELS = ["batch.pth", "instance_stale.pth", "legacy.pth", "bfloat16.pth", "converted.safetensors", "course.bin"]
MODELS += ["keras_3_tutorial.keras", "keras_3_instance.keras", "keras_2_tutorial.h5", "keras_3_bare.weights.h5"]
MODELS += ["tfjs_image", "tfjs_uint16", "tf1_trained"]


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_makes_the_same_pixels(name: str, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    assert main(["convert", str(DATA / name), str(target)]) == 0
    first, second = pix2pix.load(DATA / name, device="cpu"), pix2pix.load(target, device="cpu")
    assert first.generator == second.generator
    side = first.generator.size
    b = pictures(2, side, 2 * side, first.generator.in_channels)
    y = first.translate(b)
    assert y.std() > 10 and (y == second.translate(b)).all()


def test_a_model_converted_with_a_key_and_corrections(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    options = ["--key", "shadow", "--set", "eps=0.01", "--statistics", "running"]
    assert main(["convert", str(DATA / "objects.pth"), str(target), *options]) == 0
    engine = pix2pix.load(
        DATA / "objects.pth", device="cpu", key="shadow", overrides={"eps": 0.01}, statistics="running"
    )
    b = pictures(1, 64, 32)
    y = engine.translate(b)
    assert y.std() > 10 and (y == pix2pix.load(target, device="cpu").translate(b)).all()
    assert (y != pix2pix.load(DATA / "objects.pth", device="cpu", key="netG").translate(b)).any()
