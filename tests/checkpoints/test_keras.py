"""Keras files: archives, whole HDF5 models and weights alone, of Keras 2 and 3, read without Keras and without h5py.

The expected images were computed by Keras: tests/checkpoints/data/make_keras.py.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pix2pix
from pix2pix.checkpoints import CheckpointError, read, write
from pix2pix.checkpoints.budget import Budget
from pix2pix.checkpoints.containers import hdf5
from pix2pix.checkpoints.keras import weights as keras_weights
from pix2pix.checkpoints.model_file import opened
from pix2pix.engines.reference import ReferenceEngine, to_float
from tests.checkpoints.archives import changed_archive

DATA = Path(__file__).parent / "data"
TOLERANCE = 1e-5  # Keras computes in float32, the oracle in float64; found: up to 2e-6

EXPECTED = {**np.load(DATA / "keras_2.npz"), **np.load(DATA / "keras_3.npz")}
INPUTS = np.load(DATA / "pytorch.npz")


@pytest.mark.parametrize("key", EXPECTED)
def test_same_image_as_keras(key: str) -> None:
    name, size, statistics = key.split("/")
    generator, weights = read(DATA / name)
    if any(f"{layer.name}.mean" not in weights for layer in generator.layers if layer.norm):
        statistics = "image"  # instance norms have no others
    y = ReferenceEngine(generator.with_statistics(statistics), weights).run(to_float(INPUTS[f"input/{size}x3"]))
    assert np.std(EXPECTED[key]) > 0.1
    assert np.abs(y[::3, ::3] - EXPECTED[key]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("name", "depth", "ngf", "eps", "slope", "statistics", "assumed", "biases"),
    [
        ("keras_3_tutorial.keras", 5, 2, 1e-3, 0.3, "running", ("statistics",), 1),
        ("keras_2_tutorial.keras", 5, 1, 1e-3, 0.3, "running", ("statistics",), 1),
        ("keras_2_tutorial.h5", 5, 1, 1e-3, 0.3, "running", ("statistics",), 1),
        ("keras_2_tutorial_weights.h5", 5, 1, 1e-3, 0.3, "running", ("eps", "slope", "statistics", "size"), 1),
        ("keras_3_tutorial.weights.h5", 5, 2, 1e-3, 0.3, "running", ("eps", "slope", "statistics", "size"), 1),
        ("keras_3_bare.weights.h5", 3, 1, 1e-3, 0.3, "running", ("eps", "slope", "statistics", "size"), 6),
        ("keras_3_flat.h5", 5, 1, 1e-4, 0.2, "image", (), 10),
        ("keras_3_instance.keras", 3, 1, 1e-3, 0.3, "image", (), 1),
        ("keras_3_cyclegan.keras", 3, 1, 1e-5, 0.3, "image", ("size",), 1),
        ("keras_3_cyclegan.weights.h5", 3, 1, 1e-5, 0.3, "image", ("eps", "slope", "size"), 1),
    ],
)
def test_inferred_network(name, depth, ngf, eps, slope, statistics, assumed, biases) -> None:
    generator, weights = read(DATA / name)
    assert (generator.depth, generator.ngf, generator.eps, generator.slope) == (depth, ngf, eps, slope)
    assert (generator.statistics, generator.assumed) == (statistics, assumed)
    assert sum(layer.bias for layer in generator.layers) == biases
    sized = name in ("keras_3_instance.keras", "keras_2_tutorial.keras")  # those of 3 and of 5 levels
    assert generator.channels == (3, 3) and generator.size == (32 if sized else 2**depth)
    assert ("tutorial on pix2pix" in " ".join(generator.remarks)) == ("weights" in name)
    assert not generator.problems(weights)
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in weights.values())


def test_all_layouts_hold_the_same_model() -> None:
    names = ("keras_2_tutorial.keras", "keras_2_tutorial.h5", "keras_2_tutorial_weights.h5")
    (first, weights), *others = [read(DATA / name) for name in names]
    for generator, same in others:
        assert same.keys() == weights.keys() and all((same[key] == weights[key]).all() for key in weights)
        assert generator.layers == first.layers


def test_neither_keras_nor_h5py_is_needed() -> None:
    read(DATA / "keras_2_tutorial.h5")
    assert not {"keras", "tensorflow", "h5py"} & sys.modules.keys()


@pytest.mark.parametrize("name", ["keras_3_flat.h5", "keras_2_tutorial.keras", "keras_3_bare.weights.h5"])
def test_converted_models_make_the_same_image(name: str, tmp_path: Path) -> None:
    generator, weights = read(DATA / name)
    write(tmp_path / "model.safetensors", generator, weights)
    again, arrays = read(tmp_path / "model.safetensors")
    x = to_float(INPUTS["input/32x64x3"])
    assert (ReferenceEngine(again, arrays).run(x) == ReferenceEngine(generator, weights).run(x)).all()


# -- archives -------------------------------------------------------------------------------------------------


def archive(
    path: Path, change: Callable[[dict], None] = lambda config: None, without: str = "", method: int = 0
) -> Path:
    """keras_3_tutorial.keras at ``path``, after ``change`` of its config and without one of its members."""
    return changed_archive(DATA / "keras_3_tutorial.keras", path, change, without, method)


def first_block(config: dict) -> dict:
    return config["config"]["layers"][1]


def test_lambdas_are_never_executed(tmp_path: Path) -> None:
    def change(config: dict) -> None:
        first_block(config)["class_name"] = "Lambda"

    with pytest.raises(CheckpointError, match="'sequential' is a Lambda: .* never executed"):
        read(archive(tmp_path / "x", change))


def test_what_is_no_generator_is_explained() -> None:
    with pytest.raises(CheckpointError, match="this is a discriminator .3 convolutions.*take the generator"):
        read(DATA / "keras_3_discriminator.keras")


def test_models_of_a_class_of_their_own_are_called_so(tmp_path: Path) -> None:
    def wrapped(config: dict) -> None:
        config |= {"class_name": "Wrapped", "config": {}, "registered_name": "mine>Wrapped"}

    with pytest.raises(CheckpointError, match="a class of its own, 'Wrapped' .a subclassed Keras model.*functional"):
        read(archive(tmp_path / "x", wrapped))


def test_an_instance_norm_without_its_epsilon_has_the_usual_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(DATA / "keras_3_cyclegan.keras") as source, zipfile.ZipFile(tmp_path / "x", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b'"epsilon": 1e-05, ', b""))
    generator, _ = read(tmp_path / "x")
    assert generator.eps == 1e-5 and generator.assumed == ("eps", "size")


def test_archives_without_a_member_or_packed_are_refused(tmp_path: Path) -> None:
    for name in ("config.json", "model.weights.h5"):
        with pytest.raises(CheckpointError, match=f"no {name}"):
            read(archive(tmp_path / "x", without=name))
    with pytest.raises(CheckpointError, match="'metadata.json' .* is compressed"):
        read(archive(tmp_path / "x", method=zipfile.ZIP_DEFLATED))


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    def change(config: dict) -> None:
        first_block(config)["config"]["layers"][1]["config"]["use_bias"] = True
        config["config"]["layers"][-1]["config"] |= {"filters": 4, "use_bias": False}

    with pytest.raises(CheckpointError) as caught:
        read(archive(tmp_path / "x", change))
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "missing 'layers/sequential/layers/conv2d/vars/1' (2,)",
        "'layers/conv2d_transpose/vars/0' has shape (4, 4, 3, 4), expected (4, 4, 4, 4)",
        "surplus 'layers/conv2d_transpose/vars/1' (3,)",
    ]


# -- HDF5 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("soft_link", r"a link \('kernel:0' leads elsewhere\)"),
        ("external_link", "links to other files"),
        ("outside", "numbers in other files"),
        ("compressed", "compressed arrays"),
        ("latest", "a newer form"),
        ("never_written", "'kernel:0' has no numbers"),
    ],
)
def test_what_keras_does_not_write_is_refused(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(DATA / f"hdf5_{name}.h5")


def test_numbers_of_all_types_and_groups_of_many() -> None:
    with opened(DATA / "hdf5_types.h5", Budget()) as file:
        root = hdf5.open_root(file)
        assert set(root.group("arrays").names()) == {"float16", "float32", "float64"}
        for path, array in root.arrays("arrays").items():
            assert (path, array.shape) == (f"arrays/{array.dtype}", (1, 3))
            assert array.read().tolist() == [[1.5, -2.25, 0.0]] and array.read().dtype == np.float32
        assert sorted(array.read().item() for array in root.arrays("many").values()) == list(range(100))


def test_numbers_of_a_type_that_is_not_known_are_refused(tmp_path: Path) -> None:
    data = (DATA / "keras_2_tutorial_weights.h5").read_bytes()
    little, big = bytes.fromhex("11201f00 04000000"), bytes.fromhex("11211f00 04000000")
    assert data.count(little) == 43
    (tmp_path / "x").write_bytes(data.replace(little, big))
    with pytest.raises(
        CheckpointError, match="43 problems(.|\n)*/kernel' has numbers of type unknown, expected floating"
    ):
        read(tmp_path / "x")


def test_absurd_lengths_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    data = (DATA / "keras_2_tutorial_weights.h5").read_bytes()
    shape = struct.pack("<4Q", 4, 4, 3, 1)
    assert data.count(shape) >= 1
    (tmp_path / "x").write_bytes(data.replace(shape, struct.pack("<4Q", 2**31, 2**31, 3, 1)))
    with pytest.raises(CheckpointError, match="more than are there"):
        read(tmp_path / "x")


def test_cut_off_files_are_refused(tmp_path: Path) -> None:
    data = (DATA / "keras_2_tutorial.h5").read_bytes()
    for length in (8, 50, 96, 1000, len(data) // 2, len(data) - 1):
        (tmp_path / "x").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="damaged or cut off"):
            read(tmp_path / "x")


def test_an_archive_whose_weights_are_no_hdf5_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(DATA / "keras_3_tutorial.keras") as archive, zipfile.ZipFile(tmp_path / "x", "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name).replace(b"\x89HDF\r\n", b"\x89HDG\r\n"))
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        read(tmp_path / "x")


# -- weights without a graph ----------------------------------------------------------------------------------


class Array:
    """An array of some shape, as the inference sees it."""

    dtype = "float32"

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def read(self) -> np.ndarray:
        return np.zeros(self.shape, np.float32)


def kernels(*shapes: tuple[int, ...], **others: Array) -> dict[str, Array]:
    """Kernels of layers a, b, ..., and other arrays as "<layer>__<part>"."""
    arrays = {f"{layer}/kernel": Array(*shape) for layer, shape in zip("abcdefgh", shapes, strict=False)}
    return arrays | {name.replace("__", "/"): array for name, array in others.items()}


def test_instance_norms_of_the_tutorial_on_cyclegan() -> None:
    widths = [(4, 4, 3, 2), (4, 4, 2, 4), (4, 4, 2, 4), (4, 4, 3, 4)]
    arrays = {}
    for layer, shape in zip("abcd", widths, strict=True):
        arrays[f"{layer}/kernel"] = Array(*shape)
        if layer == "b":
            arrays |= {"norm/scale": Array(4), "norm/offset": Array(4)}
    generator, weights = keras_weights.read(keras_weights.from_list(arrays), arrays, "")
    assert (generator.eps, generator.statistics, generator.assumed) == (1e-5, "image", ("eps", "slope", "size"))
    assert generator["encoder_2"].norm and not generator["encoder_1"].norm and "encoder_2.gamma" in weights


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (kernels((4, 4, 6, 2), (4, 4, 2, 4), (4, 4, 4, 1)), "a discriminator .3 convolutions, the last with 1 filter"),
        (
            kernels((7, 7, 3, 2), (3, 3, 2, 4), (7, 7, 2, 3)),
            "a ResNet generator, which don't say how it pads .*: save the whole model",
        ),
        (kernels((4, 4, 3, 2), (4, 4, 2, 4), (4, 4, 2, 4)), "3 convolutions, expected as many down as up"),
        (kernels((4, 4, 3, 2), (4, 4, 5, 4), (4, 4, 2, 4), (4, 4, 3, 4)), "encoder_2 takes 5 channels"),
        (kernels((4, 4, 3, 2), (3, 3, 2, 4), (4, 4, 2, 4), (4, 4, 3, 4)), r"'b/kernel' has shape \(3, 3, 2, 4\)"),
        (kernels((4, 4, 3, 2), (4, 4, 2, 4), a__alpha=Array(1)), "'a/alpha' is of a kind that no pix2pix U-Net has"),
        (kernels((4, 4, 3), (4, 4, 2, 4)), "odd ones"),
        ({}, "has 0 convolutions"),
    ],
)
def test_weights_of_something_else_are_explained(arrays: dict[str, Array], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        keras_weights.read(keras_weights.from_list(arrays), arrays, "")


def test_group_norms_without_their_groups_are_refused() -> None:
    arrays = kernels((4, 4, 3, 2), (4, 4, 2, 4), (4, 4, 2, 4), (4, 4, 3, 4))
    arrays |= {f"group_normalization_1/{part}": Array(4) for part in ("gamma", "beta")}
    with pytest.raises(CheckpointError, match="GroupNormalization layers, but not their number of groups"):
        keras_weights.read(keras_weights.from_list(arrays), arrays, "")


def grouped(*layers: tuple[str, tuple[int, ...]]) -> dict[str, Array]:
    return {f"layers/{name}/vars/0": Array(*shape) for name, shape in layers}


@pytest.mark.parametrize("inside", [(0,), (1, 2), (3,), (0, 1, 2, 3)])
def test_layers_inside_and_outside_of_sequentials_are_put_in_order(inside: tuple[int, ...]) -> None:
    down, up = "conv2d", "conv2d_transpose"
    network = [(down, (4, 4, 3, 2)), (down, (4, 4, 2, 5)), (up, (4, 4, 2, 5)), (up, (4, 4, 3, 4))]
    names, counts = [], {down: 0, up: 0}
    for number, (kind, _) in enumerate(network):
        if number in inside:
            names.append(f"sequential_{number}/layers/{kind}")
        else:
            names.append(f"{kind}_{counts[kind]}" if counts[kind] else kind)
            counts[kind] += 1
    arrays = grouped(*((name, shape) for name, (_, shape) in zip(names, network, strict=True)))
    generator, _ = keras_weights.read(keras_weights.from_groups(arrays), arrays, "")
    assert [(layer.in_channels, layer.filters) for layer in generator.layers] == [(3, 2), (2, 5), (5, 2), (4, 3)]


def test_norms_that_could_follow_any_layer_are_refused() -> None:
    network = [("conv2d", (4, 4, 3, 2)), ("conv2d_1", (4, 4, 2, 5)), ("conv2d_2", (4, 4, 5, 5))]
    network += [("conv2d_transpose", (4, 4, 5, 5)), ("conv2d_transpose_1", (4, 4, 2, 10))]
    arrays = grouped(*network, ("conv2d_transpose_2", (4, 4, 3, 4)))
    arrays |= {f"layers/batch_normalization/vars/{number}": Array(5) for number in range(4)}
    with pytest.raises(CheckpointError, match="which of 6 convolutions the 1 norms follow"):
        keras_weights.read(keras_weights.from_groups(arrays), arrays, "")


# -- live -----------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.weights.h5"])
def test_live_keras_at_full_width(name: str, tmp_path: Path) -> None:
    make = live("make_keras")
    widths = [64, 128, 256, 512, 512, 512, 512, 512]
    model = make.trained(make.tutorial(widths, 256), 3)
    (model.save_weights if "weights" in name else model.save)(tmp_path / name)
    images = [INPUTS["input/256x256x3"], np.tile(INPUTS["input/256x256x3"], (2, 2, 1))[::-1].copy()]
    for key, expected in make.outputs(make.tutorial, model, widths, images).items():
        size, statistics = key.split("/")
        engine = pix2pix.load(tmp_path / name, device="cpu", statistics=statistics)
        x = to_float(next(b for b in images if str(b.shape[0]) == size.split("x")[0]))
        assert np.abs(engine.run(x) - expected).max() < 2e-4, key


def live(script: str):
    """The script that made the fixtures, as a module; the test is skipped where its framework is missing."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    spec = importlib.util.spec_from_file_location(script, DATA / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
