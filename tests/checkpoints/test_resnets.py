"""ResNet generators and their kin in PyTorch files, and TorchScript programs, against what PyTorch computes.

The expected images were computed by tests/checkpoints/data/make_resnets.py.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pix2pix.checkpoints import CheckpointError, read, write
from pix2pix.cli.info import describe
from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.model.generator import Generator
from pix2pix.model.unet import unet
from tests.checkpoints.seeded import input_image, state_dict

DATA = Path(__file__).parent / "data"
TOLERANCE = 2e-5  # PyTorch computes in float32, the oracle in float64; found: up to 9e-6

EXPECTED = np.load(DATA / "resnets.npz")
SHAPES = {key[7:]: json.loads(str(EXPECTED[key])) for key in EXPECTED.files if key.startswith("shapes/")}
CONTAINERS = sorted({key.split("/")[0] for key in EXPECTED.files if ".pt" in key})
OVERRIDES = {"cyclegan_replicate": {"padding_mode": "replicate"}, "resize_corners": {"align_corners": "true"}}


def saved(path: Path, case: str, prefix: str = "") -> Path:
    """A state dict of a case in a safetensors file."""
    save_file({prefix + name: array for name, array in state_dict(SHAPES[case]).items()}, path)
    return path


def check_images(name: str, generator: Generator, weights: dict[str, np.ndarray]) -> None:
    """Whether the model computes what PyTorch did, at all sizes and under all statistics."""
    keys = [key for key in EXPECTED.files if key.startswith(f"{name}/")]
    assert keys
    for key in keys:
        _, size, statistics = key.split("/")
        h, w = map(int, size.split("x"))
        x = to_float(input_image(h, w, generator.in_channels))
        if generator.takes == "labels":  # of which the program's network reads (x + 1) / 2
            x = 2 * x - 1
        y = ReferenceEngine(generator.with_statistics(statistics), weights).run(x)
        assert np.ptp(x) > 1 and np.std(EXPECTED[key]) > 0.03
        assert np.abs(y[::3, ::3] - EXPECTED[key]).max() < TOLERANCE, key


@pytest.mark.parametrize("case", SHAPES)
def test_same_image_as_pytorch(case: str, tmp_path: Path) -> None:
    generator, weights = read(saved(tmp_path / "x", case))
    assert not generator.problems(weights)
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in weights.values())
    check_images(case, generator.with_overrides(OVERRIDES.get(case, {})), weights)


@pytest.mark.parametrize("name", CONTAINERS)
def test_same_image_from_every_container(name: str) -> None:
    file, _, key = name.partition(":")
    check_images(name, *read(DATA / file, key=key or None))


@pytest.mark.parametrize(
    ("case", "names"),
    [  # as the programs' own files have them
        ("cyclegan", "1 4 7 10.conv_block.1 10.conv_block.5 18.conv_block.5 19 22 26"),
        ("cyclegan_6_dropout", "10.conv_block.1 10.conv_block.6 15.conv_block.6 16 19 23"),
        ("cyclegan_4_zero", "10.conv_block.0 10.conv_block.3 14 17 21"),
        ("cyclegan_zero_dropout", "10.conv_block.0 10.conv_block.4"),
        ("resize", "10.conv_block.1 11.conv_block.5 14 19 23"),
        ("cut", "1 4 8 12.conv_block.1 20.conv_block.5 22 26 30"),
        ("cut_blur", "4 8 12.conv_block.5 14 17 21"),
        ("cut_filter", "4 7 10.conv_block.3 13 17 21"),
        ("hd_global", "1 4 7 10 13 16.conv_block.1 17.conv_block.5 18 21 24 27 31"),
        ("gan_cyclegan", "10.block.1 12.block.5 14 18 22"),
    ],
)
def test_names_of_the_restated_networks(case: str, names: str) -> None:
    for name in names.split():
        assert len(SHAPES[case][f"model.{name}.weight"]) == 4, name
    filters = [name for name in SHAPES[case] if name.endswith("filt")]
    places = {"cut": (7, 11, 21, 25), "cut_blur": (7, 11), "cut_filter": (12, 16)}.get(case, ())
    assert filters == [f"model.{number}.filt" for number in places]


FACTS = {
    "cyclegan": ("ResNet generator of CycleGAN (9 blocks)", 2, (3, 3), True, 256),
    "cyclegan_6_dropout": ("CycleGAN (6 blocks, trained with dropout)", 2, (3, 3), True, 256),
    "cyclegan_4_zero": ("CycleGAN (4 blocks, zero padding)", 2, (3, 3), True, 256),
    "cyclegan_zero_dropout": ("(2 blocks, zero padding, trained with dropout)", 2, (3, 3), False, 256),
    "cyclegan_batch": ("CycleGAN (2 blocks)", 2, (1, 2), False, 256),
    "cyclegan_stale": ("CycleGAN (2 blocks)", 2, (3, 3), True, 256),
    "affine_zero_dropout": ("CycleGAN (2 blocks, zero padding, trained with dropout)", 2, (3, 3), True, 256),
    "resize": ("CycleGAN with resize-convolutions (2 blocks)", 2, (3, 3), True, 256),
    "cut": ("ResNet generator of CUT (9 blocks)", 2, (3, 3), True, 256),
    "cut_4": ("ResNet generator of CUT (4 blocks, trained with dropout)", 2, (3, 3), True, 256),
    "cut_filter": ("ResNet generator of CUT (2 blocks, zero padding)", 2, (3, 3), True, 256),
    "hd_global": ("global generator of pix2pixHD (2 blocks)", 4, (36, 3), True, 512),
    "hd_local": ("local enhancer of pix2pixHD (1 x 2 blocks)", 4, (3, 3), True, 512),
    "hd_local_2": ("local enhancer of pix2pixHD (2 x 3 blocks)", 4, (36, 3), True, 512),
    "gan_cyclegan": ("PyTorch-GAN's CycleGAN (3 blocks)", 2, (3, 3), True, 256),
    "gan_unet": ("U-Net of PyTorch-GAN", 5, (3, 3), False, 32),
    "transformer_stale": ("TransformerNet of fast style transfer (2 blocks)", 2, (3, 3), True, 256),
}


@pytest.mark.parametrize("case", FACTS)
def test_inferred_network(case: str, tmp_path: Path) -> None:
    origin, depth, channels, biased, size = FACTS[case]
    generator, _ = read(saved(tmp_path / "x", case))
    assert generator.origin.startswith("PyTorch state dict, safetensors: a ") and generator.origin.endswith(origin)
    assert (generator.depth, generator.channels, generator.size) == (depth, channels, size)
    assert generator.layers[0].bias == biased and generator.layers[-1].bias
    assert generator.remarks == () or "36 channels" in generator.remarks[0] and channels[0] == 36


@pytest.mark.parametrize(
    ("case", "statistics", "assumed"),
    [
        ("cyclegan", "image", "eps padding_mode size"),
        ("cyclegan_none", "image", "padding_mode size"),
        ("cyclegan_4_zero", "image", "eps size"),
        ("cyclegan_batch", "image", "eps statistics padding_mode size"),
        ("cyclegan_stale", "image", "eps padding_mode size"),
        ("block_affine", "image", "eps padding_mode size"),
        ("block_batch", "running", "eps statistics padding_mode size"),  # its program switches to evaluation mode
        ("resize", "image", "eps align_corners padding_mode size"),
        ("cut", "image", "eps padding_mode size"),
        ("gan_unet", "image", "eps slope size"),
        ("transformer_stale", "image", "eps size"),
    ],
)
def test_what_a_state_dict_does_not_say(case: str, statistics: str, assumed: str, tmp_path: Path) -> None:
    generator, _ = read(saved(tmp_path / "x", case))
    assert generator.statistics == statistics and generator.assumed == tuple(assumed.split())


def test_info_names_what_corrects_a_resize_convolution(tmp_path: Path) -> None:
    generator, _ = read(saved(tmp_path / "x", "resize"))
    lines = [" ".join(line.split()) for line in describe(generator).splitlines()]
    assert "align_corners false --set align_corners=true" in lines
    assert "padding_mode reflect --set padding_mode=replicate" in lines
    corrected = generator.with_overrides({"align_corners": True, "padding_mode": "replicate"})
    assert corrected.assumed == ("eps", "size") and corrected.align_corners and corrected.padding_mode == "replicate"
    assert [corrected[name].padding_mode for name in ("first", "block_1_1", "block_2_2", "up_1")] == [
        "reflect",
        "replicate",
        "replicate",
        "reflect",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"align_corners": True}, "no bilinear upsampling"),
        ({"padding_mode": "reflect"}, "no blocks that pad by reflection"),
        ({"align_corners": "maybe"}, "'maybe': expected true or false"),
        ({"padding_mode": "zeros"}, "'zeros': expected reflect or replicate"),
    ],
)
def test_corrections_that_make_no_sense(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet(ngf=1, depth=2).with_overrides(overrides)


@pytest.mark.parametrize("prefix", ["module.", "netG.module.", "generators.1.", "a.b.c."])
@pytest.mark.parametrize("case", ["cyclegan_batch", "cut_blur", "hd_local", "gan_unet", "transformer_stale"])
def test_prefixes_mean_nothing(case: str, prefix: str, tmp_path: Path) -> None:
    plain, weights = read(saved(tmp_path / "x", case))
    generator, others = read(saved(tmp_path / "y", case, prefix))
    assert generator == plain and all((others[name] == array).all() for name, array in weights.items())


@pytest.mark.parametrize("case", ["cyclegan_batch", "hd_local_2", "transformer_stale", "gan_unet", "cut_filter"])
def test_converted_models_stay_the_same(case: str, tmp_path: Path) -> None:
    generator, weights = read(saved(tmp_path / "x", case))
    write(tmp_path / "y", generator, weights)
    again, others = read(tmp_path / "y")
    assert again == generator and all((others[name] == array).all() for name, array in weights.items())


def test_several_families_in_one_file(tmp_path: Path) -> None:
    state = {
        f"{prefix}{name}": array
        for prefix, case in (("netG_A.", "cyclegan_batch"), ("netG_B.", "hd_local"), ("style.", "transformer_stale"))
        for name, array in state_dict(SHAPES[case]).items()
    }
    save_file(state, tmp_path / "x")
    with pytest.raises(CheckpointError, match="3 generators: choose one with key .*: 'netG_A', 'netG_B', 'style'"):
        read(tmp_path / "x")
    assert "local enhancer" in read(tmp_path / "x", key="netG_B")[0].origin
    assert "TransformerNet" in read(tmp_path / "x", key="style")[0].origin


def test_one_of_two_generators() -> None:
    with pytest.raises(CheckpointError, match=r"2 generators.*: 'state\.G_A', 'state\.G_B'"):
        read(DATA / "resnet_two.pth")
    a, b = (read(DATA / "resnet_two.pth", key=key) for key in ("G_A", "G_B"))
    assert a[0] == b[0] and (a[1]["first.kernel"] != b[1]["first.kernel"]).any()


@pytest.mark.parametrize(
    ("case", "network", "gone", "wrong"),
    [
        ("cyclegan", "a ResNet generator of CycleGAN (9 blocks)", "model.14.conv_block.5.bias", "model.22.weight"),
        ("cut", "a ResNet generator of CUT (9 blocks)", "model.7.filt", "model.21.filt"),
        ("hd_local", "a local enhancer of pix2pixHD (1 x 2 blocks)", "model1_1.4.bias", "model.7.weight"),
        ("gan_unet", "a U-Net of PyTorch-GAN", "up2.model.0.weight", "final.2.bias"),
        ("transformer", "a TransformerNet of fast style transfer (5 blocks)", "in4.bias", "conv2.conv2d.bias"),
    ],
)
def test_all_problems_are_listed_at_once(case: str, network: str, gone: str, wrong: str, tmp_path: Path) -> None:
    state = state_dict(SHAPES[case])
    state[wrong] = np.zeros(state[wrong].shape + (1,), np.float32)
    shape = state.pop(gone).shape
    prefix = "model." if gone.startswith("model.") and case != "hd_local" else ""
    state[f"{prefix}surplus"] = np.zeros(7, np.float32)
    save_file(state, tmp_path / "x")
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / "x")
    heading, *lines = str(caught.value).splitlines()
    assert f"not those of {network} (3 problems" in heading
    assert {line.split()[0] for line in lines} == {"missing", "surplus", wrong.removeprefix(prefix)}
    assert f"  missing {gone.removeprefix(prefix)} {shape}" in lines and "  surplus 'surplus' (7,)" in lines


def test_half_of_a_local_enhancer_is_named(tmp_path: Path) -> None:
    state = state_dict(SHAPES["hd_local"])
    save_file({name: array for name, array in state.items() if not name.startswith("model.")}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="local enhancer of pix2pixHD.*those in 'model.'"):
        read(tmp_path / "x")


def test_other_filters_are_refused(tmp_path: Path) -> None:
    state = state_dict(SHAPES["cut"])
    state["model.25.filt"] = state["model.25.filt"][..., ::-1] + np.float32(0.01)
    save_file(state, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"(?s)other filters than a ResNet generator of CUT.*\n  25\.filt$"):
        read(tmp_path / "x")


@pytest.mark.parametrize("channels", [1, 4])
def test_networks_whose_images_change_size_are_refused(channels: int, tmp_path: Path) -> None:
    shapes = dict(SHAPES["gan_cyclegan"])
    last = f"model.{max(int(name.split('.')[1]) for name in shapes)}."
    shapes |= {"model.1.weight": [4, channels, 7, 7], f"{last}weight": [channels, 4, 7, 7], f"{last}bias": [channels]}
    save_file(state_dict(shapes), tmp_path / "x")
    with pytest.raises(CheckpointError, match=f"takes {channels} channels.*only 3 channels are supported"):
        read(tmp_path / "x")


NO_GENERATORS = {
    "discriminator": {"model.0": (8, 3, 4, 4), "model.2": (8, 8, 4, 4), "model.5": (1, 8, 4, 4)},
    "discriminator of pix2pixHD": {f"scale0_layer{n}.0": (1 if n == 4 else 8, 8, 4, 4) for n in range(5)},
    "features of pix2pixHD": {"model.1": (8, 3, 7, 7), "model.4": (16, 8, 3, 3), "model.7": (16, 8, 3, 3)},
    "classifier with blocks": {"features.0.0": (8, 3, 3, 3), **{f"features.{n}.block.0": (8, 1, 7, 7) for n in (1, 2)}},
    "classifier": {"conv1": (8, 3, 7, 7), "layer1.0.conv1": (8, 8, 3, 3), "fc": (10, 8)},
    "discriminator with blocks": {
        **{f"model.{number}": (8, 8, 3, 3) for number in (1, 4, 7)},
        **{f"model.{block}.conv_block.{n}": (8, 8, 3, 3) for block in (10, 11) for n in (1, 5)},
        "model.12": (1, 8, 4, 4),
    },
}


@pytest.mark.parametrize("kind", NO_GENERATORS)
def test_what_is_no_generator_is_no_family(kind: str, tmp_path: Path) -> None:
    arrays = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in NO_GENERATORS[kind].items()}
    save_file(arrays, tmp_path / "x")
    message = "holds a discriminator" if kind.startswith("discriminator") else "but no generator that is known here"
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "x")


# -- TorchScript ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "origin", "statistics"),
    [
        ("script_unet.pt", "TorchScript", "running"),  # saved in evaluation mode
        ("script_resnet.pt", "TorchScript: a ResNet generator of CycleGAN (1 block)", "running"),
        ("script_cut.pt", "TorchScript: a ResNet generator of CUT (1 block)", "image"),  # saved in training mode
        ("script_local.pt", "TorchScript: a local enhancer of pix2pixHD (1 x 1 block)", "image"),
    ],
)
def test_programs_say_their_statistics(file: str, origin: str, statistics: str) -> None:
    generator, _ = read(DATA / file)
    assert (generator.origin, generator.statistics) == (origin, statistics)
    assert "statistics" not in generator.assumed


def test_the_code_of_a_program_is_not_even_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(DATA / "script_unet.pt") as source, zipfile.ZipFile(tmp_path / "x", "w") as target:
        for info in source.infolist():
            is_code = "/code/" in info.filename
            method = zipfile.ZIP_DEFLATED if is_code else zipfile.ZIP_STORED
            target.writestr(info.filename, b"import os; os.abort()" if is_code else source.read(info), method)
    (generator, weights), (same, others) = read(tmp_path / "x"), read(DATA / "script_unet.pt")
    assert generator == same and all((others[name] == array).all() for name, array in weights.items())


def test_a_frozen_program_is_explained() -> None:
    with pytest.raises(CheckpointError, match=r"torch\.jit\.freeze.*nameless constants.*state_dict"):
        read(DATA / "script_frozen.pt")


def test_modules_that_contain_each_other_come_to_an_end(tmp_path: Path) -> None:
    module = b"c__torch__.net\nNet\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sX\x01\x00\x00\x00b"
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02" + module[:-6] + b"X\x01\x00\x00\x00bh\x00sb.")
        archive.writestr("net/code/net.py", b"")
    with pytest.raises(CheckpointError, match="more (steps|memory) than any model"):
        read(tmp_path / "x")
