"""ResNet generators and upsampling U-Nets of Keras 2 and 3, in every format that has a graph, run by the oracle.

The expected images were computed by Keras: tests/checkpoints/data/make_family.py.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pix2pix.checkpoints import CheckpointError, read, write
from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.model.generator import Generator, Norm, Source
from tests.checkpoints.archives import changed_archive

pytest.importorskip("lzma", reason="this Python has no lzma, which unpacks the files of the tests")

DATA = Path(__file__).parent / "data"
TOLERANCE = 2e-5  # of float32; found: up to 4e-6
FORMATS = {"keras": ".keras", "h5": ".h5", "saved_model": "", "tfjs": "_js"}  # and what follows a case's name

EXPECTED = {keras: np.load(DATA / f"family_{keras}.npz") for keras in ("keras2", "keras3")}
CASES = ("resnet", "functions", "upsampling", "sequential", "odd_kernels", "grouped")
KEYS = [f"{keras}/{name.removesuffix('/y')}" for keras, y in EXPECTED.items() for name in y if name.endswith("/y")]


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each Keras wrote; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("family")
    for keras in EXPECTED:
        shutil.unpack_archive(DATA / f"family_{keras}.tar.xz", folder / keras, filter="data")
    return folder


@pytest.mark.parametrize("suffix", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("key", KEYS)
def test_same_image_as_keras(key: str, suffix: str, unpacked: Path) -> None:
    keras, case, size = key.split("/")
    image, expected = (EXPECTED[keras][f"{case}/{size}/{which}"] for which in "xy")
    y = ReferenceEngine(*read(unpacked / keras / f"{case}{suffix}")).run(to_float(image))
    assert y.shape == expected.shape and np.std(expected) > 0.3
    assert np.abs(y - expected).max() < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_all_formats_hold_the_same_model(case: str, unpacked: Path) -> None:
    for keras in EXPECTED:
        models = [read(unpacked / keras / f"{case}{suffix}") for suffix in FORMATS.values()]
        for generator, weights in models:
            assert generator.layers == models[0][0].layers and generator.size == models[0][0].size
            assert weights.keys() == models[0][1].keys()
            assert all((weights[name] == models[0][1][name]).all() for name in weights)


def test_nothing_of_a_framework_is_needed(unpacked: Path) -> None:
    read(unpacked / "keras3" / "resnet.h5")
    assert not {"keras", "tensorflow", "h5py"} & sys.modules.keys()


def test_a_resnet_generator_as_data(unpacked: Path) -> None:
    generator, weights = read(unpacked / "keras3" / "resnet.keras")
    blocks = ["block_1_1", "block_1_2", "block_2_1", "block_2_2"]
    assert [y.name for y in generator.layers] == ["first", "down_1", "down_2", *blocks, "up_1", "up_2", "last"]
    assert (generator.size, generator.multiple, generator.statistics, generator.assumed) == (20, 4, "image", ())
    first, down, up = generator["first"], generator["down_1"], generator["up_1"]
    assert (first.kernel, first.stride, first.padding, first.padding_mode, first.bias) == (7, 1, 3, "reflect", False)
    # TensorFlow's SAME: below and on the right alone
    assert (down.padding, down.padding_mode, up.transposed, up.padding) == ((0, 0, 1, 1), "zeros", True, (0, 0, 1, 1))
    assert generator["block_1_2"].residual == Source("down_2", 0.0)
    assert generator["block_2_2"].residual == generator["block_2_1"].inputs[0] == Source("block_1_2")
    assert generator["last"].activation == "tanh" and generator["last"].norm is None
    assert not generator.problems(weights)


def test_an_upsampling_unet_as_data(unpacked: Path) -> None:
    generator, weights = read(unpacked / "keras2" / "upsampling.h5")
    assert [y.name for y in generator.layers] == [
        *("encoder_1", "encoder_2", "encoder_3", "decoder_3", "decoder_2", "decoder_1")
    ]
    assert (generator.statistics, generator.assumed, generator.size) == ("running", ("statistics",), 40)
    down, up = generator["encoder_2"], generator["decoder_2"]
    assert (down.inner_slope, down.inputs, down.padding) == (0.2, (Source("encoder_1", 0.2),), 1)
    assert (up.inner_slope, up.upsample, up.upsample_mode, up.padding) == (0.0, 2, "nearest", (1, 1, 2, 2))
    assert up.inputs == (Source("decoder_3"), Source("encoder_2"))
    assert "decoder_2.variance" in weights and "decoder_1.variance" not in weights


@pytest.mark.parametrize("suffix", [".keras", ".h5", "_js"])
def test_an_epsilon_that_no_config_names_is_assumed(suffix: str, unpacked: Path) -> None:
    generator, _ = read(unpacked / "keras2" / f"functions{suffix}")
    assert generator.eps == 1e-5 and generator.assumed == ("eps",)
    corrected = generator.with_overrides({"eps": 1e-3})
    assert corrected.eps == 1e-3 and corrected.assumed == ()
    assert ("the first is taken to be the scale" in " ".join(generator.remarks)) is (suffix == ".keras")
    traced, _ = read(unpacked / "keras2" / "functions")  # in a SavedModel it is a number of the graph
    assert traced.eps == 1e-5 and traced.assumed == ()


@pytest.mark.parametrize("case", CASES)
def test_converted_models_make_the_same_image(case: str, unpacked: Path, tmp_path: Path) -> None:
    generator, weights = read(unpacked / "keras3" / f"{case}.keras")
    write(tmp_path / "model.safetensors", generator, weights)
    again, arrays = read(tmp_path / "model.safetensors")
    x = to_float(next(EXPECTED["keras3"][key] for key in EXPECTED["keras3"] if key.startswith(f"{case}/")))
    assert (ReferenceEngine(again, arrays).run(x) == ReferenceEngine(generator, weights).run(x)).all()


# -- what is refused ------------------------------------------------------------------------------------------


def layer_of(config: dict, name: str) -> dict:
    return next(each for each in config["config"]["layers"] if each["name"] == name)


def changed(unpacked: Path, path: Path, case: str, change: Callable[[dict], None]) -> Path:
    """The archive of a case that Keras 3 wrote, after a change of its config, at ``path``."""
    return changed_archive(unpacked / "keras3" / f"{case}.keras", path, change)


def reading(unpacked: Path, path: Path, case: str, change: Callable[[dict], None]) -> Generator:
    return read(changed(unpacked, path, case, change))[0]


NORM = "group_normalization_1"
OWN_NORM = {"class_name": "InstanceNormalization", "registered_name": "InstanceNormalization", "module": None}


@pytest.mark.parametrize(
    ("layer", "entries", "config", "message"),
    [
        ("conv2d_1", {}, {"strides": [2, 1]}, r"'conv2d_1' .*strides \(2, 1\): expected as many rows as columns"),
        ("conv2d_1", {}, {"dilation_rate": [2, 2]}, r"'conv2d_1' .*dilation_rate is \(2, 2\)"),
        ("conv2d_1", {}, {"groups": 3}, "'conv2d_1' .*groups is 3"),
        ("conv2d_1", {}, {"padding": "valid"}, "'conv2d_1' .*3x3 of stride 2 with 0 pixels of padding in all does not"),
        ("conv2d_1", {}, {"data_format": "channels_first"}, "'conv2d_1' .*data_format"),
        ("conv2d_1", {"module": "mine", "registered_name": "Mine>Conv2D"}, {}, "'Mine>Conv2D'.* is code"),
        ("conv2d_3", {}, {"padding": "same"}, "'conv2d_3' .*pads what is padded already"),
        ("conv2d_transpose", {}, {"padding": "valid"}, "'conv2d_transpose' .*does not keep the map's size"),
        ("conv2d_transpose", {}, {"output_padding": 0}, "'conv2d_transpose' .*output_padding is 0"),
        ("activation_2", {}, {"activation": "sigmoid"}, "'activation_2' .*activation 'sigmoid'"),
        ("activation_2", {}, {"activation": "tanh"}, "follows the final tanh"),
        ("activation_2", {"class_name": "PReLU"}, {}, "'activation_2' .'PReLU'. is not supported: such layers"),
        (NORM, {}, {"groups": None}, "groups is None, expected a divisor of its 4 channels"),
        (NORM, {}, {"groups": 3}, "groups is 3, expected a divisor"),
        (NORM, {}, {"groups": 0}, "groups is 0, expected a divisor"),
        (NORM, {"class_name": "LayerNormalization"}, {}, "'LayerNormalization'. is not supported: such layers"),
        (NORM, OWN_NORM, {"axis": None}, "its axis shows keras_contrib's InstanceNormalization"),
        (NORM, OWN_NORM, {"axis": -1, "groups": 1}, "groups is 1, which no instance norm has"),
        (NORM, OWN_NORM, {"momentum": 0.1}, "known by its name, but the entry 'momentum' of its config is not"),
        (NORM, OWN_NORM, {"epsilon": 0}, "epsilon is 0, expected a small positive number"),
        (NORM, {"class_name": "Norm", "module": None}, {}, "'Norm'. .*what a class of the program's own computes"),
        ("reflection_padding2d", {}, {"padding": [3, 2]}, "which of its numbers .3, 2. is for which side"),
        ("reflection_padding2d", {}, {"mode": "SYMMETRIC"}, "the entry 'mode' of its config is not"),
        ("reflection_padding2d", {}, {"padding": 2.5}, "its padding is 2.5, expected pixels"),
        ("reflection_padding2d", {"class_name": "Wrapping"}, {}, "'Wrapping'. .*code"),
        ("reflection_padding2d", {"class_name": "Pad"}, {}, "it pads, but in which mode is not in the file"),
        ("add", {"class_name": "Multiply"}, {}, "'add' .'Multiply'. is not supported"),
    ],
)
def test_layers_whose_meaning_is_not_known_are_named(layer, entries, config, message, unpacked, tmp_path) -> None:
    def change(whole: dict) -> None:
        chosen = layer_of(whole, layer)
        if "class_name" in entries:
            chosen["registered_name"] = None
        chosen.update(entries)
        chosen["config"] = {"name": layer, **config} if entries == OWN_NORM else {**chosen["config"], **config}

    with pytest.raises(CheckpointError, match=message):
        reading(unpacked, tmp_path / "x", "resnet", change)


def test_a_reflection_whose_width_is_nowhere_is_refused(unpacked: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="by its name it pads by reflection, but by how many pixels is not"):
        reading(
            unpacked, tmp_path / "x", "resnet", lambda c: layer_of(c, "reflection_padding2d")["config"].pop("padding")
        )


@pytest.mark.parametrize(
    ("config", "eps", "assumed"),
    [
        ({"epsilon": 0.25}, 0.25, ()),
        ({"eps": 0.25, "scale_initializer": "ones"}, 0.25, ()),
        ({"axis": -1, "groups": -1, "epsilon": 0.25}, 0.25, ()),
        ({}, 1e-5, ("eps",)),
    ],
)
@pytest.mark.parametrize("kind", ["InstanceNormalization", "Mine>InstanceNorm2D", "instance_norm"])
def test_instance_norms_of_a_programs_own(kind, config, eps, assumed, unpacked: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unpacked / "keras3" / "resnet_js", tmp_path / "model"))
    model = json.loads((folder / "model.json").read_text())
    layer_of(model["modelTopology"]["model_config"], NORM).update(OWN_NORM, class_name=kind, config=config)
    (folder / "model.json").write_text(json.dumps(model))
    generator, _ = read(folder)
    assert (generator["down_1"].norm, generator.assumed) == (Norm(eps), assumed)
    assert generator["down_2"].norm == Norm(1e-3)


def rewired(name: str, *reads: str) -> Callable[[dict], None]:
    """A change of what a layer reads."""

    def change(whole: dict) -> None:
        call = layer_of(whole, name)["inbound_nodes"][0]
        tensor = call["args"][0][0] if isinstance(call["args"][0], list) else call["args"][0]
        tensors = [{**tensor, "config": {**tensor["config"], "keras_history": [read, 0, 0]}} for read in reads]
        call["args"] = [tensors if len(tensors) > 1 else tensors[0]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewired("add", "activation_2", "activation_3"), "'add' .*the last convolution of a block"),
        (rewired("add", NORM, "group_normalization_4"), "'add' .*different sizes or channels"),
        (rewired("add", "activation_2", "reflection_padding2d_2"), "'add' .*the sum of two maps"),
        (rewired("add", "group_normalization_4", "group_normalization_4"), "'add' .*the last convolution of a block"),
        (rewired("add", "activation_2"), "'add' .*the sum of two maps"),
        (rewired("activation_3", "conv2d_3"), "reads a convolution's map that a norm or a sum after it reads, too"),
        (rewired("conv2d_transpose_1", "reflection_padding2d_3"), "transposed convolution reads a padded"),
    ],
)
def test_graphs_that_no_layers_express_are_refused(change, message, unpacked: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        reading(unpacked, tmp_path / "x", "resnet", change)


@pytest.mark.parametrize(
    ("layer", "config", "message"),
    [
        ("up_sampling2d_5", {"size": [2, 3]}, r"size is \(2, 3\), expected as many rows as columns"),
        ("up_sampling2d_5", {"interpolation": "bicubic"}, "interpolation is 'bicubic'"),
        ("up_sampling2d_5", {"size": [4, 4]}, "it joins maps of different sizes"),
    ],
)
def test_upsampling_that_is_not_known_is_refused(layer, config, message, unpacked: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        reading(unpacked, tmp_path / "x", "upsampling", lambda c: layer_of(c, layer)["config"].update(config))


@pytest.fixture
def saved(unpacked: Path, tmp_path: Path) -> Path:
    """A writeable copy of a SavedModel."""
    return Path(shutil.copytree(unpacked / "keras2" / "functions", tmp_path / "model"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"REFLECT", b"MIRRORS", "'MirrorPad'.*pads by what is no constant, or with 'MIRRORS'"),
        (b"MirrorPad", b"MirrorBad", "'MirrorBad'. in it, which is not supported: such operations are not known"),
        (b"ResizeBilinear", b"ResizeBicubics", "'ResizeBicubics'"),
        (b"Rsqrt", b"Rroot", "'Rroot'"),
        (b"SquaredDifference", b"SquaredDifferenze", "'SquaredDifferenze'"),
        (b"half_pixel_centers", b"half_pixel_centerz", "it aligns pixels in a way that no layer does"),
    ],
)
def test_operations_that_are_not_known_are_named(saved: Path, old: bytes, new: bytes, message: str) -> None:
    path = saved / "saved_model.pb"
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    with pytest.raises(CheckpointError, match=message):
        read(saved)


@pytest.mark.parametrize("split, groups", [((1, 3), 1), ((3, 1), 0), ((3, 3), None), ((0, 3), None), ((-1, 3), None)])
def test_a_map_is_split_into_groups_of_channels(split, groups, unpacked: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unpacked / "keras3" / "resnet", tmp_path / "model"))
    path = folder / "saved_model.pb"
    data, each, others = path.read_bytes(), struct.pack("<5i", -1, 20, 20, 3, 1), struct.pack("<5i", -1, 20, 20, *split)
    assert each in data
    path.write_bytes(data.replace(each, others))
    if groups is None:
        with pytest.raises(CheckpointError, match="'Reshape'.*otherwise than by splitting them into groups"):
            read(folder)
    else:
        assert read(folder)[0]["first"].norm.groups == groups


def test_two_layers_that_share_a_variable_are_refused(unpacked: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unpacked / "keras3" / "functions", tmp_path / "model"))
    path = folder / "saved_model.pb"
    data, objects = path.read_bytes(), bytes(range(8, 24))  # that the function takes; 24 is the dropout's
    kernel, of_another_layer = bytes([20]), bytes([25])
    assert objects in data
    path.write_bytes(data.replace(objects, objects.replace(kernel, of_another_layer)))
    with pytest.raises(CheckpointError, match="two layers share the tensor"):
        read(folder)
    path.write_bytes(data.replace(objects, objects.replace(kernel, b"\x7f")))
    with pytest.raises(CheckpointError, match="takes an object that is not there"):
        read(folder)


def patched(data: bytes, name: bytes, old: bytes, new: bytes) -> bytes:
    """A graph with a number of all constants of that name changed."""
    at = data.find(name)
    assert at >= 0
    while at >= 0:
        begin = data.find(old, at, at + 200)
        data = data if begin < 0 else data[:begin] + new + data[begin + len(old) :]
        at = data.find(name, at + 1)
    return data


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (b"concatenate_1/concat/axis", b":\n\xff", b":\n\xfe", "expected a concatenation along the channels"),
        (b"Repeat/ExpandDims/dim", b":\1\2", b":\1\1", "no repetition of rows or columns"),
        (b"Repeat/strided_slice_1/stack", b":\1\1", b":\1\2", "no repetition of rows or columns"),
        (b"Repeat_1/repeats", b":\1\2", b":\1\3", "repeats columns otherwise than rows"),
    ],
)
def test_joins_and_repetitions_along_other_axes_are_refused(name, old, new, message, unpacked, tmp_path) -> None:
    folder = Path(shutil.copytree(unpacked / "keras3" / "upsampling", tmp_path / "model"))
    path = folder / "saved_model.pb"
    data = patched(path.read_bytes(), name, old, new)
    assert data != path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read(folder)
