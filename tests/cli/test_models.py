"""The commands that describe and convert models, and the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pix2pix
from pix2pix import checkpoints
from pix2pix.cli import main
from pix2pix.model.generator import Norm
from pix2pix.model.unet import UnetVariant, unet
from pix2pix.model.weights import random_weights
from tests.cli.commands import GENERATOR, names, pixels_of, translate
from tests.models import with_cancelling_layer


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2)])
def test_convert(dtype, tolerance):
    assert main(["convert", "model.safetensors", "new.safetensors", "--dtype", dtype, "--set", "eps=0.5"]) == 0
    generator, _ = checkpoints.read(Path("new.safetensors"))
    assert generator.eps == 0.5
    assert translate("in/x0.png", "-o", "a.png", "--set", "eps=0.5") == 0
    assert translate("in/x0.png", "-o", "b.png", model="new.safetensors") == 0
    assert abs(pixels_of("a.png").astype(int) - pixels_of("b.png")).max() <= tolerance


def test_conversions_that_make_no_sense(capsys):
    assert main(["convert", "model.safetensors", "new.pth"]) == 2
    assert main(["convert", "model.safetensors", "./model.safetensors"]) == 2
    printed = capsys.readouterr().err
    assert "ending in .safetensors" in printed and "is the source" in printed


def test_a_palette_goes_into_the_file_and_stays_there(capsys):
    Path("palette.json").write_text('{"sky": "#AADCFF", "wall": "#be3c28"}')
    assert main(["convert", "model.safetensors", "named.safetensors", "--palette", "palette.json"]) == 0
    assert main(["convert", "named.safetensors", "again.safetensors", "--dtype", "float16"]) == 0
    capsys.readouterr()
    assert main(["info", "again.safetensors"]) == 0
    assert "sky #aadcff, wall #be3c28" in capsys.readouterr().out
    Path("palette.json").write_text('{"sky": "blue"}')
    for file, words in (("palette.json", "palette.json: the label 'sky' has no colour"), ("none.json", "none.json")):
        assert main(["convert", "model.safetensors", "new.safetensors", "--palette", file]) == 2
        assert words in capsys.readouterr().err and not Path("new.safetensors").exists()


def test_info_of_this_build(capsys):
    assert main(["info", "--measure"]) == 0
    printed = capsys.readouterr().out
    assert pix2pix.__version__ in printed and "instruction set" in printed and "gflops" in printed


def test_info_of_a_model(capsys):
    assert main(["info", "model.safetensors", "--plan", "--set", "eps=0.25"]) == 0
    printed = capsys.readouterr().out
    parameters = sum(int(np.prod(shape)) for shape in GENERATOR.tensors().values())
    for fact in ("eps 0.25", "32x32, takes multiples of 32", f"{parameters:,}", "encoder_5", "decoder_1", "plan"):
        assert fact in printed
    assert main(["info", "--plan"]) == 2
    capsys.readouterr()


def test_info_names_groups_of_channels(tmp_path, capsys):
    generator = unet(ngf=4, depth=2, variant=UnetVariant(norm=Norm(groups=2)))
    checkpoints.write(tmp_path / "grouped.safetensors", generator, random_weights(generator))
    assert main(["info", str(tmp_path / "grouped.safetensors")]) == 0
    assert "2 groups" in capsys.readouterr().out


def plan_column(argv, capsys) -> dict[str, str]:
    """What ``info`` shows as the plan of each layer."""
    assert main(argv) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = {layer.name for layer in GENERATOR.layers}
    return {line[0]: " ".join(line[-2:]) for line in lines if line and line[0] in names}


def test_info_of_a_plan(capsys):
    from pix2pix.plans.heuristics import choose

    default = choose(GENERATOR, "throughput")
    shown = plan_column(["info", "model.safetensors", "--plan"], capsys)
    assert shown == {name: f"cpu {algorithm}" for name, algorithm in default.layers.items()}
    assert shown == plan_column(["info", "--plan", "model.safetensors"], capsys)
    direct = plan_column(["info", "model.safetensors", "--plan", "direct"], capsys)
    assert set(direct.values()) == {"cpu direct"}
    placed = plan_column(["info", "model.safetensors", "--gpu-layers", "encoder_2-4", "--plan", "im2col"], capsys)
    assert [name for name, what in placed.items() if what == "cuda im2col"] == ["encoder_2", "encoder_3", "encoder_4"]
    assert placed["decoder_2"] == shown["decoder_2"]
    integers = plan_column(["info", "model.safetensors", "--plan", "--precision", "int8"], capsys)
    assert [name for name, what in integers.items() if what == "cpu direct"] == ["encoder_1", "decoder_1"]
    assert all(what.startswith("cpu int8") for what in integers.values() if what != "cpu direct")
    checkpoints.write("cancelling.safetensors", *with_cancelling_layer())
    kept = plan_column(["info", "cancelling.safetensors", "--plan", "--precision", "int8"], capsys)
    floating = [name for name, what in kept.items() if not what.startswith("cpu int8")]
    assert floating == ["encoder_1", "encoder_2", "decoder_1"]
    default.save("plan.json")
    assert plan_column(["info", "model.safetensors", "--plan", "plan.json"], capsys) == shown
    for options in (["--plan", "absent.json"], ["--gpu-layers", "auto"], ["--gpu-layers", "encoder_9"]):
        assert main(["info", "model.safetensors", *options]) == 2
        assert capsys.readouterr().out == ""


def test_what_a_file_does_not_say_is_shown_with_its_correction(capsys):
    model = str(Path(__file__).parents[1] / "checkpoints" / "data" / "batch.pth")
    assert main(["info", model]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for line in ("eps 1e-05 --set eps=NUMBER", "slope 0.2 --set slope=NUMBER", "statistics image --statistics running"):
        assert line in printed
    assert "size 32 --set size=NUMBER" in printed
    corrections = ["--set", "eps=1e-3", "--set", "slope=0.3", "--set", "size=64", "--statistics", "running"]
    assert main(["convert", model, "new.safetensors", *corrections]) == 0
    assert "not in the file" not in capsys.readouterr().out
    generator, _ = checkpoints.read("new.safetensors")
    assert (generator.eps, generator.slope, generator.statistics) == (1e-3, 0.3, "running")


def test_what_was_found_in_a_model_is_told_before_the_run(capsys):
    model = Path(__file__).parents[1] / "checkpoints" / "data" / "keras_3_bare.weights.h5"
    assert main(["translate", "in/x0.png", "-o", "y.png", "--model", str(model), "--device", "cpu"]) == 0
    assert "model: the file holds weights and no graph of layers" in capsys.readouterr().err


def test_stored_statistics_that_are_not_there(capsys):
    model = str(Path(__file__).parents[1] / "checkpoints" / "data" / "instance.pth")
    assert main(["convert", model, "new.safetensors", "--statistics", "running"]) == 2
    assert "holds none: it needs 'image'" in capsys.readouterr().err and not Path("new.safetensors").exists()


def test_demo(capsys):
    assert main(["demo", "--output", "d"]) == 0
    page = Path("d/gallery.html")
    assert str(page.resolve()) in capsys.readouterr().out
    assert page.read_text().count("<article") == len([n for n in names("d") if n.endswith(".png")]) >= 2
    assert main(["demo", "--output", "d"]) == 0
