"""TensorFlow 2's checkpoints and SavedModels, of Keras 2 and 3, read without TensorFlow and run by the oracle.

The expected images were computed by TensorFlow: tests/checkpoints/data/make_tf2.py.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pix2pix
from pix2pix.checkpoints import CheckpointError, read
from pix2pix.engines.reference import ReferenceEngine, to_float

pytest.importorskip("lzma", reason="this Python has no lzma, which unpacks the files of the tests")

DATA = Path(__file__).parent / "data"
TOLERANCE = 2e-4  # of float32; found: up to 5e-5, where an eps of 1e-5 meets variances as small, else 1e-5

INPUTS = np.load(DATA / "pytorch.npz")
LARGE = np.load(DATA / "tf1.npz")["input/512x512"]
EXPECTED = {k: np.load(DATA / f"tf2_{k}.npz") for k in ("keras2", "keras3")}
KEYS = [f"{keras}/{key}" for keras, images in EXPECTED.items() for key in images.files]


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the folders that each Keras wrote; tests leave them as they are."""
    folder = tmp_path_factory.mktemp("tf2")
    for keras in EXPECTED:
        shutil.unpack_archive(DATA / f"tf2_{keras}.tar.xz", folder / keras, filter="data")
    return folder


@pytest.fixture
def saved(unpacked: Path, tmp_path: Path) -> Path:
    """A writeable copy of a SavedModel."""
    return Path(shutil.copytree(unpacked / "keras3" / "saved_model", tmp_path / "model"))


def network_input(size: str, channels: int) -> np.ndarray:
    image = LARGE[:, :, :channels] if size == "512x512" else INPUTS[f"input/{size}x{channels}"]
    return to_float(image)


@pytest.mark.parametrize("key", KEYS)
def test_same_image_as_tensorflow_2(key: str, unpacked: Path) -> None:
    keras, case, size, statistics = key.split("/")
    expected = EXPECTED[keras][key.removeprefix(f"{keras}/")]
    generator, weights = read(unpacked / keras / case, key="generator_f" if case == "cyclegan" else None)
    x = network_input(size, generator.in_channels)
    y = ReferenceEngine(generator.with_statistics(statistics), weights).run(x)
    step = 31 if size == "512x512" else 3
    assert np.ptp(x) > 1 and np.std(expected) > 0.2
    assert np.abs(y[::step, ::step] - expected).max() < TOLERANCE


@pytest.mark.parametrize("keras", EXPECTED)
def test_what_a_saved_model_says_is_taken_from_it(keras: str, unpacked: Path) -> None:
    generator, _ = read(unpacked / keras / "saved_model")
    assert (generator.eps, generator.slope, generator.statistics, generator.size) == (1e-5, 0.2, "running", 32)
    assert all(layer.bias for layer in generator.layers) and not generator.assumed
    generator, _ = read(unpacked / keras / "saved_with_dropout")
    assert (generator.eps, generator.slope, generator.statistics, generator.channels) == (1e-3, 0.3, "image", (1, 2))
    assert generator.assumed == ("size",)
    skip, up = generator["decoder_3"].inputs
    assert (skip.layer, skip.slope, up.layer, up.slope) == ("encoder_3", 1.0, "decoder_4", 0.0)


@pytest.mark.parametrize("keras", EXPECTED)
def test_what_a_checkpoint_does_not_say_is_the_tutorials(keras: str, unpacked: Path) -> None:
    generator, weights = read(unpacked / keras / "training")
    assert (generator.eps, generator.slope, generator.statistics, generator.size) == (1e-3, 0.3, "image", 32)
    assert set(generator.assumed) == {"eps", "slope", "statistics", "size"}
    assert sum(name.endswith(".mean") for name in weights) == 8
    assert read(unpacked / keras / "training" / "ckpt-2")[0] == generator


def test_several_models_are_chosen_by_key(unpacked: Path) -> None:
    folder = unpacked / "keras3" / "cyclegan"
    with pytest.raises(CheckpointError, match="2 generators: choose one .*: 'generator_f', 'generator_g'"):
        read(folder)
    with pytest.raises(CheckpointError, match="key 'generator_h' is none of the models"):
        read(folder, key="generator_h")
    with pytest.raises(CheckpointError, match="the file holds a discriminator"):
        read(folder, key="discriminator_x")
    one, other = (read(folder, key=key)[1]["encoder_1.kernel"] for key in ("generator_f", "generator_g"))
    assert not np.array_equal(one, other)


def test_any_path_to_a_saved_model(saved: Path) -> None:
    assert read(saved)[0] == read(saved / "saved_model.pb")[0]


# -- what is refused ------------------------------------------------------------------------------------------


def replaced(folder: Path, old: bytes, new: bytes) -> Path:
    """The SavedModel with all ``old`` in its graph replaced by as many bytes."""
    path = folder / "saved_model.pb"
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return folder


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"Tanh", b"Sinh", "as its result, expected a tanh"),
        (b"LeakyRelu", b"LeakyCelu", "'LeakyCelu'"),
        (b"ConcatV2", b"ConcatV3", "'ConcatV3'"),
        (b"\1\2\2\1", b"\1\3\2\1", "other strides"),
        (b"SAME", b"FULL", "another padding"),
        (b"Rsqrt", b"Fsqrt", "'Fsqrt'"),
        (b"serving_default", b"serving_another", "0 signatures serving_default"),
    ],
)
def test_graphs_that_are_no_unet_are_refused(saved: Path, old: bytes, new: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(replaced(saved, old, new))


def test_each_norm_has_its_own_epsilon(saved: Path) -> None:
    path = saved / "saved_model.pb"
    data, eps = path.read_bytes(), struct.pack("<f", 1e-5)
    assert data.count(eps) == 8
    path.write_bytes(data.replace(eps, struct.pack("<f", 0.3), 1))
    eps_of = {layer.norm.eps for layer in read(saved)[0].layers if layer.norm}
    assert eps_of == {0.3, 1e-5}


def test_the_signature_tells_the_size(saved: Path) -> None:
    assert read(saved)[0].size == 32
    of_32, of_64 = (b"\x12\x02\x08" + bytes([side]) for side in (32, 64))
    with pytest.raises(CheckpointError, match="a size of its own, and not a multiple"):  # the graph's are of 32 pixels
        read(replaced(saved, of_32, of_64))


def test_folders_that_are_not_whole(saved: Path) -> None:
    (saved / "variables" / "variables.index").unlink()
    with pytest.raises(CheckpointError, match="variables.index, which belongs to saved_model.pb, is missing"):
        read(saved)
    shutil.rmtree(saved / "variables")
    (saved.parent / "elsewhere").mkdir()
    (saved / "variables").symlink_to("../elsewhere")
    with pytest.raises(CheckpointError, match="only files inside the model's own folder are read"):
        read(saved)


# -- live -----------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("keras", [2, 3])
def test_live_tensorflow_2_at_full_width(keras: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    if keras == 2:
        pytest.importorskip("tf_keras", reason="tf_keras, which is Keras 2, is not installed")
    command = [sys.executable, str(DATA / "make_tf2.py"), str(tmp_path), "64", "8"]
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1" if keras == 2 else "0"}
    subprocess.run(command, env=environment, check=True, timeout=900)
    expected = np.load(tmp_path / "tf2.npz")
    for name in ("live", "live_saved"):
        for key in expected.files:
            _, size, statistics = key.split("/")
            engine = pix2pix.load(tmp_path / name, device="cpu", statistics=statistics)
            step = 31 if size == "512x512" else 9
            y = engine.run(network_input(size, 3))[::step, ::step]
            assert np.std(expected[key]) > 0.2 and np.abs(y - expected[key]).max() < TOLERANCE
