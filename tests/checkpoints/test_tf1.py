"""TensorFlow 1 checkpoints and .pict files, read without TensorFlow and run by the oracle.

The expected images were computed by TensorFlow: tests/checkpoints/data/make_tf1.py.
"""

from __future__ import annotations

import json
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
from pix2pix.checkpoints.containers.crc32c import crc32c
from pix2pix.checkpoints.tensorflow import tf1
from pix2pix.engines.reference import ReferenceEngine, to_float, to_uint8

from .bundles import bundle, field, table, table_of

DATA = Path(__file__).parent / "data"
TOLERANCE = 2e-5  # TensorFlow computes in float32, the oracle in float64; found: up to 1.4e-5
LIVE_TOLERANCE = 2e-4

EXPECTED = np.load(DATA / "tf1.npz")
INPUTS = np.load(DATA / "pytorch.npz")
KEYS = [key for key in EXPECTED.files if key.startswith("tf1_")]
STEPS = {"32x32": 3, "64x64": 3, "256x256": 9, "512x512": 31}  # of which rows and columns were stored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writeable copy of the folder of a training."""
    return Path(shutil.copytree(DATA / "tf1_trained", tmp_path / "model"))


def network_input(size: str, channels: int) -> np.ndarray:
    image = EXPECTED["input/512x512"] if size == "512x512" else INPUTS[f"input/{size}x3"]
    return to_float(image if channels == 3 else INPUTS[f"input/{size}x1"] if size == "32x32" else image[:, :, :1])


@pytest.mark.parametrize("key", KEYS)
def test_same_image_as_tensorflow_1(key: str) -> None:
    case, size, statistics = key.split("/")
    generator, weights = read(DATA / case)
    x = network_input(size, generator.in_channels)
    y = ReferenceEngine(generator.with_statistics(statistics), weights).run(x)
    assert np.ptp(x) > 1 and np.std(EXPECTED[key]) > 0.3
    assert np.abs(y[:: STEPS[size], :: STEPS[size]] - EXPECTED[key]).max() < TOLERANCE


def test_everything_is_inferred() -> None:
    generator, _ = read(DATA / "tf1_trained")
    assert (generator.ngf, generator.depth, generator.channels, generator.eps) == (1, 5, (3, 3), 1e-5)
    assert (generator.statistics, generator.output_scale) == ("image", 255.5)
    assert generator.origin == "TensorFlow 1 checkpoint, BtoA"
    assert read(DATA / "tf1_updated")[0].channels == (1, 2)
    assert not any(layer.bias for layer in read(DATA / "tf1_old")[0].layers)


def test_same_bytes_as_tensorflow_1() -> None:
    generator, _ = read(DATA / "tf1_trained")
    y = EXPECTED["tf1_trained/32x32/image"]
    assert (to_uint8(y, generator.output_scale) == EXPECTED["bytes"]).all()
    assert (to_uint8(y, 255.0) != EXPECTED["bytes"]).any()


def test_moving_statistics_are_kept_only_if_training_updated_them() -> None:
    kept = {name for name in read(DATA / "tf1_updated")[1] if name.endswith((".mean", ".variance"))}
    assert len(kept) == 2 * 8
    assert not any(name.endswith((".mean", ".variance")) for name in read(DATA / "tf1_trained")[1])


# -- folders, prefixes and names ------------------------------------------------------------------------------


def same_model(one: Path, other: Path) -> bool:
    (g, weights), (h, others) = read(one), read(other)
    return g == h and all(np.array_equal(weights[name], others[name]) for name in weights | others)


@pytest.mark.parametrize("name", ["model-200", "model-200.index", "model-200.data-00000-of-00001", "model-200.meta"])
def test_prefix_or_any_of_its_files(folder: Path, name: str) -> None:
    (folder / "model-200.meta").write_bytes(b"a graph")
    assert same_model(folder / name, DATA / "tf1_trained")


def test_the_record_chooses_the_latest(folder: Path) -> None:
    for suffix in ("index", "data-00000-of-00001"):
        shutil.copy(DATA / "tf1_old" / f"model-200.{suffix}", folder / f"model-100.{suffix}")
    assert same_model(folder, DATA / "tf1_trained")
    (folder / "checkpoint").write_text('model_checkpoint_path: "C:\\\\work\\\\facades\\\\model-100"\n')
    assert read(folder)[0].depth == 6
    (folder / "checkpoint").write_text('model_checkpoint_path: "/home/someone/facades/model-200"\n')
    assert read(folder)[0].depth == 5
    (folder / "checkpoint").unlink()
    with pytest.raises(CheckpointError, match="2 models, give one of them: model-100.index, model-200.index"):
        read(folder)
    (folder / "model-200.index").unlink()
    assert read(folder)[0].depth == 6


def test_several_generators_are_chosen_by_key(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="key 'g_AB' is none of the generators in the checkpoint: 'generator'"):
        read(DATA / "tf1_old", key="g_AB")
    assert read(DATA / "tf1_old", key="generator")[0].depth == 6


def test_options_are_honoured(folder: Path) -> None:
    (folder / "options.json").unlink()
    assert read(folder)[0].origin == "TensorFlow 1 checkpoint"
    (folder / "options.json").write_text(json.dumps({"lab_colorization": True}))
    with pytest.raises(CheckpointError, match="lab_colorization"):
        read(folder)


# -- what is refused ------------------------------------------------------------------------------------------


def test_shards_outside_the_folder_are_never_read(folder: Path) -> None:
    shard = folder / "model-200.data-00000-of-00001"
    shard.rename(folder.parent / "elsewhere")
    shard.symlink_to("../elsewhere")
    with pytest.raises(CheckpointError, match="only files inside the model's own folder are read"):
        read(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match="model-200.data-00000-of-00001, which has the numbers, is not in"):
        read(folder)


def test_a_linked_index_is_not_followed_out_of_the_folder(folder: Path) -> None:
    (folder / "model-200.index").rename(folder.parent / "elsewhere")
    (folder / "model-200.index").symlink_to("../elsewhere")
    with pytest.raises(CheckpointError, match="only files inside the model's own folder are read"):
        read(folder)


def test_every_damaged_byte_of_what_is_read_is_noticed(folder: Path) -> None:
    shard = folder / "model-200.data-00000-of-00001"
    tensor = bundle(folder / "model-200.index").entries["generator/encoder_3/conv2d/kernel"]
    for path, at in ((shard, tensor.offset + 5), (folder / "model-200.index", 1000)):
        whole = path.read_bytes()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match="wrong checksum"):
            read(folder)
        path.write_bytes(whole[:-100])
        with pytest.raises(CheckpointError, match="cut off"):
            read(folder)
        path.write_bytes(whole)


def reindexed(folder: Path, entries: list[tuple[bytes, bytes]]) -> Path:
    """The folder with these entries in its index."""
    (folder / "model-200.index").write_bytes(table_of(entries))
    return folder


def test_indices_with_true_checksums_that_lie(folder: Path) -> None:
    entries = list(table(folder / "model-200.index").items())
    assert same_model(reindexed(folder, entries), DATA / "tf1_trained")
    with pytest.raises(CheckpointError, match="a name twice or out of order"):
        read(reindexed(folder, [*entries, entries[-1]]))
    with pytest.raises(CheckpointError, match="a name twice or out of order"):
        read(reindexed(folder, [*entries[1:], entries[0]]))
    with pytest.raises(CheckpointError, match="lies inside another tensor"):
        read(reindexed(folder, sorted([*entries, (b"another", entries[1][1])])))
    with pytest.raises(CheckpointError, match="is cut off"):
        read(reindexed(folder, [*entries, (b"z", entries[1][1] + field(4, 1 << 40))]))
    with pytest.raises(CheckpointError, match="stored in slices"):
        read(reindexed(folder, [*entries, (b"z", entries[1][1] + field(7, b""))]))
    with pytest.raises(CheckpointError, match="big-endian"):
        read(reindexed(folder, [(b"", field(1, 1) + field(2, 1)), *entries[1:]]))


def test_a_discriminator_alone_is_explained() -> None:
    tensors = bundle(DATA / "tf1_trained" / "model-200.index").tensors()
    alone = {name: tensor for name, tensor in tensors.items() if name.startswith("discriminator/")}
    with pytest.raises(CheckpointError, match="a discriminator alone"):
        tf1.from_tensors(alone, None, "")


def test_all_problems_are_listed() -> None:
    tensors = bundle(DATA / "tf1_levels" / "model-200.index").tensors()
    tensors["generator/encoder_4/attention/kernel"] = tensors["generator/encoder_4/conv2d/kernel"]
    tensors["generator/decoder_2/conv2d_transpose/bias"] = tensors["generator/encoder_4/conv2d/kernel"]
    del tensors["generator/encoder_5/conv2d/kernel"]
    with pytest.raises(CheckpointError) as error:
        tf1.from_tensors(tensors, None, "")
    for line in (
        "missing 'encoder_5/conv2d/kernel'",
        "surplus 'encoder_4/attention/kernel' (4, 4, 4, 8)",
        "'decoder_2/conv2d_transpose/bias' has shape (4, 4, 4, 8), expected (1,)",
    ):
        assert line in str(error.value)


# -- checksums ------------------------------------------------------------------------------------------------


def test_checksums_of_the_standard() -> None:
    """The vectors of RFC 3720, appendix B.4, and the usual one."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 262_144, 300_001])
def test_checksums_of_all_lengths(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    assert crc32c(data) == register ^ 0xFFFFFFFF


# -- .pict ----------------------------------------------------------------------------------------------------


def pict_of(weights: dict[str, np.ndarray]) -> tuple[bytes, dict[str, np.ndarray]]:
    """A .pict file of these variables, and the values that it stands for."""
    flat = np.concatenate([weights[name].ravel() for name in sorted(weights)])
    codebook = np.quantile(flat, np.linspace(0, 1, 256)).astype("<f4")
    codes = np.abs(flat[:, None] - codebook).argmin(1).astype(np.uint8)
    described = json.dumps([{"name": name, "shape": weights[name].shape} for name in sorted(weights)]).encode()
    parts, position = {}, 0
    for name in sorted(weights):
        parts[name] = codebook[codes[position : position + weights[name].size]].reshape(weights[name].shape)
        position += weights[name].size
    sections = (described, codebook.tobytes(), codes.tobytes())
    return b"".join(struct.pack(">I", len(section)) + section for section in sections), parts


@pytest.mark.parametrize("case", ["tf1_levels", "tf1_old"])
def test_pict_files(tmp_path: Path, case: str) -> None:
    stored = bundle(DATA / case / "model-200.index").tensors()
    chosen = {k: t.read() for k, t in stored.items() if k.startswith("generator/") and "moving" not in k}
    data, parts = pict_of(chosen)
    (tmp_path / "model.pict").write_bytes(data)
    generator, weights = read(tmp_path / "model.pict")
    original, names = read(DATA / case)
    assert (generator.layers, generator.output_scale) == (original.layers, 255.0)
    assert weights.keys() == names.keys()
    stored = {array.tobytes() for array in parts.values()}
    assert {array.tobytes() for array in weights.values()} == stored and len(stored) > 20
    codes = sum(array.size for array in parts.values())
    one_more = data[: -codes - 4] + struct.pack(">I", codes + 1) + data[-codes:] + b"\0"
    for broken in (data[:-1], data + b"\0", data[:4] + b"[]" + data[6:], one_more):
        (tmp_path / "model.pict").write_bytes(broken)
        with pytest.raises(CheckpointError):
            read(tmp_path / "model.pict")


# -- live -----------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(("ngf", "depth"), [(64, 8), (48, 7)])
def test_live_tensorflow_1_at_full_width(ngf: int, depth: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    pytest.importorskip("tf_keras", reason="tf_keras, which the layers of TensorFlow 1 need, is not installed")
    command = [sys.executable, str(DATA / "make_tf1.py"), str(tmp_path), str(ngf), str(depth)]
    subprocess.run(command, env=os.environ | {"TF_USE_LEGACY_KERAS": "1"}, check=True, timeout=900)
    expected = np.load(tmp_path / "tf1.npz")
    for key in filter(lambda key: key.startswith("tf1_"), expected.files):
        _, size, statistics = key.split("/")
        engine = pix2pix.load(tmp_path / "tf1_live", device="cpu", statistics=statistics)
        x = expected["input/512x512"] if size == "512x512" else INPUTS[f"input/{size}x3"]
        step = 31 if size == "512x512" else 9
        y = engine.run(to_float(x))[::step, ::step]
        assert np.std(expected[key]) > 0.3 and np.abs(y - expected[key]).max() < LIVE_TOLERANCE
