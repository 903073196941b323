"""This project's own files, what is common to all readers, and the explanations of what is no model."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pix2pix.checkpoints import CheckpointError, files_of, read, write
from pix2pix.model.generator import Generator, Norm
from pix2pix.model.unet import UnetVariant, unet

DATA = Path(__file__).parent / "data"


def random_weights(generator: Generator, statistics: str = "running", seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = generator.with_statistics(statistics).tensors()
    return {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Generator, dict[str, np.ndarray]]:
    """A small model in this project's format."""
    generator = unet(
        2,
        3,
        1,
        2,
        output_scale=255.5,
        origin="a test",
        variant=UnetVariant(skip_slope=0.2, bias="last", norm=Norm(1e-3)),
    )
    weights = random_weights(generator)
    write(tmp_path / "model.safetensors", generator, weights)
    return tmp_path / "model.safetensors", generator, weights


def with_header(path: Path, change) -> Path:
    """The file after ``change(header)`` of its header."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


def described(path: Path, **fields: object) -> Path:
    """The file with other fields in its generator's description."""

    def change(header: dict) -> None:
        content = json.loads(header["__metadata__"]["pix2pix"])
        content["generator"] |= fields
        header["__metadata__"]["pix2pix"] = json.dumps(content)

    return with_header(path, change)


def test_round_trip(model) -> None:
    path, generator, weights = model
    again, arrays = read(path)
    assert again == generator and arrays.keys() == weights.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous and np.array_equal(array, weights[name])
    assert list(path.parent.iterdir()) == [path]
    assert load_file(path).keys() == weights.keys()  # any other program can read it too


def test_round_trip_in_float16(model, tmp_path: Path) -> None:
    path, generator, weights = model
    write(tmp_path / "half.safetensors", generator, weights, "float16")
    again, arrays = read(tmp_path / "half.safetensors")
    assert again == generator
    for name, array in arrays.items():
        expected = weights[name].astype(np.float16) if name.endswith("kernel") else weights[name]
        assert array.dtype == np.float32 and np.array_equal(array, expected.astype(np.float32))
    assert (tmp_path / "half.safetensors").stat().st_size < path.stat().st_size


def test_the_same_model_gives_the_same_bytes(model, tmp_path: Path) -> None:
    path, generator, weights = model
    write(tmp_path / "again.safetensors", generator, dict(reversed(weights.items())))
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_failed_write_leaves_the_old_file(model) -> None:
    path, generator, weights = model
    before = path.read_bytes()
    with pytest.raises(ValueError, match="missing"):
        write(path, generator, {})
    with pytest.raises(ValueError, match=r"encoder_1\.kernel .*float16"):
        write(path, generator, weights | {"encoder_1.kernel": weights["encoder_1.kernel"] + 1e6}, "float16")
    with pytest.raises(ValueError, match="expected float32 or float16"):
        write(path, generator, weights, "int8")
    with pytest.raises(OSError):
        write(path / "below", generator, weights)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_all_problems_are_listed_at_once(model) -> None:
    path, generator, weights = model
    arrays = dict(weights)
    del arrays["encoder_2.beta"]
    arrays["encoder_1.kernel"] = np.zeros((4, 4, 1, 3), np.float32)
    arrays["encoder_9.kernel"] = np.zeros(3, np.float32)
    arrays["decoder_1.bias"] = np.zeros(2, np.int32)
    save_file(arrays, path, {"pix2pix": json.dumps({"version": 1, "generator": generator.to_dict()})})
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert sorted(line.strip() for line in str(caught.value).splitlines()[1:]) == [
        "decoder_1.bias has dtype I32, expected float32 or float16",
        "encoder_1.kernel has shape (4, 4, 1, 3), expected (4, 4, 1, 2)",
        "missing encoder_2.beta (4,)",
        "surplus 'encoder_9.kernel' (3,)",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "256"}, "wrong type"),
        ({"size": 12}, "multiples of 8"),
        ({"output_scale": -1}, "output_scale"),
        ({"statistics": "batch"}, "statistics"),
        ({"layers": []}, "at least one layer"),
        ({"layers": 7}, "makes no sense"),
        ({"surprise": 1}, "makes no sense"),
    ],
)
def test_descriptions_without_sense_are_refused(model, fields: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(described(model[0], **fields))


def test_another_version_is_explained(model) -> None:
    def change(header: dict) -> None:
        header["__metadata__"]["pix2pix"] = header["__metadata__"]["pix2pix"].replace('"version":1', '"version":2')

    with pytest.raises(CheckpointError, match="version 2 .*reads version 1.*update"):
        read(with_header(model[0], change))


def test_a_tensor_twice_is_refused(model) -> None:
    def twice(header: dict) -> str:
        return json.dumps(header)[:-1] + ', "encoder_1.kernel": ' + json.dumps(header["encoder_1.kernel"]) + "}"

    with pytest.raises(CheckpointError, match="a name twice"):
        read(with_header(model[0], twice))


@pytest.mark.parametrize(
    "start", [b"\xff\xff\xff\x7f\0\0\0\0{", b"\x10\0\0\0\0\0\0\0{" + b"[" * 15, b"\x09\0\0\0\0\0\0\0{"]
)
def test_hostile_headers_are_refused(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "x").write_bytes(start)
    with pytest.raises(CheckpointError):
        read(tmp_path / "x")


def test_cut_off_files_are_refused(model) -> None:
    data = model[0].read_bytes()
    for length in (9, 100, len(data) // 2, len(data) - 1):
        model[0].write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            read(model[0])


def test_numbers_that_are_not_finite_are_refused(model) -> None:
    path, generator, weights = model
    for name, number in (("encoder_2.kernel", np.nan), ("decoder_1.bias", np.inf)):
        weights[name].flat[1] = number
    weights["encoder_2.variance"][1] = -1
    save_file(weights, path, {"pix2pix": json.dumps({"version": 1, "generator": generator.to_dict()})})
    with pytest.raises(CheckpointError, match="(?s)encoder_2.kernel.*not finite") as caught:
        read(path)
    assert "decoder_1.bias" in str(caught.value) and "encoder_2.variance holds variances below zero" in str(
        caught.value
    )


def test_large_finite_numbers_are_taken(model) -> None:
    path, generator, weights = model
    weights["encoder_1.kernel"][:] = 3e38  # their sum overflows float32
    write(path, generator, weights)
    assert np.array_equal(read(path)[1]["encoder_1.kernel"], weights["encoder_1.kernel"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5 file is damaged or cut off"),
        (b"\x80\x04\x95", "pickle that torch.save did not write"),
        (b"PK\x03\x04 and no more", "damaged or cut off"),
        (b"[1, 2]", "no known kind of model"),
        (b"{}", "this is JSON, but"),
    ],
)
def test_what_is_no_model_is_explained(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "latest_net_G.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "latest_net_G.pth")


def test_folders(model) -> None:
    path, generator, weights = model
    (path.parent / "notes.txt").write_text("mine")
    assert read(path.parent)[0] == generator
    write(path.parent / "b", generator, weights)
    with pytest.raises(CheckpointError, match="2 models, give one of them: b, model.safetensors"):
        read(path.parent)
    (path.parent / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no model"):
        read(path.parent / "empty")
    (path.parent / "empty" / "model-1.index").write_text("x")
    with pytest.raises(CheckpointError, match="does not end as a sorted table does"):
        read(path.parent / "empty")


def test_a_folder_of_git_lfs_pointers_is_explained(tmp_path: Path) -> None:
    (tmp_path / "generator.h5").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match="of generator.h5 in the folder: this is a Git LFS pointer"):
        read(tmp_path)


def test_missing_and_special_files(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path / ("x" * 5000), "a\0b"):
        with pytest.raises(CheckpointError, match="no such file|cannot read"):
            read(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        read(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["course.bin", "tfjs_image", "model"])
def test_a_key_where_there_is_one_generator(model, name: str) -> None:
    path = model[0] if name == "model" else DATA / name
    with pytest.raises(CheckpointError, match="leave the key out"):
        read(path, key="netG")


# -- files of other programs ----------------------------------------------------------------------------------


def converted(path: Path, dtype: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The converted PyTorch state dict with all float32 tensors in another number type of the same name."""
    data = (DATA / "converted.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header, numbers = json.loads(data[8 : 8 + length]), b""
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        begin, end = entry["data_offsets"]
        content = data[8 + length + begin : 8 + length + end]
        if entry["dtype"] == "F32":
            entry["dtype"], content = dtype, change(np.frombuffer(content, "<u4")).tobytes()
        entry["data_offsets"] = [len(numbers), len(numbers) + len(content)]
        numbers += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)
    return path


def test_bfloat16_is_read(tmp_path: Path) -> None:
    path = converted(tmp_path / "x", "BF16", lambda bits: (bits >> 16).astype("<u2"))
    weights, expected = read(path)[1], read(DATA / "converted.safetensors")[1]
    for name, array in weights.items():
        assert np.array_equal(array.view(np.uint32), expected[name].view(np.uint32) & 0xFFFF0000)


def test_8_bit_floating_point_is_called_so(tmp_path: Path) -> None:
    path = converted(tmp_path / "x", "F8_E4M3", lambda bits: (bits >> 24).astype("u1"))
    with pytest.raises(CheckpointError, match="8-bit floating point .float8_e4m3.*float16, bfloat16 or float32"):
        read(path)


def test_long_metadata_are_called_so(model) -> None:
    def change(header: dict) -> None:
        header["__metadata__"]["log"] = "x" * (3 << 20)

    with pytest.raises(CheckpointError, match="long metadata.*without it"):
        read(with_header(model[0], change))


def test_tensors_must_cover_the_file(model) -> None:
    def moved(header: dict) -> None:
        entry = header["encoder_1.kernel"]
        entry["data_offsets"] = [number + 4 for number in entry["data_offsets"]]

    with pytest.raises(CheckpointError, match="overlap or leave gaps"):
        read(with_header(model[0], moved))


def test_the_one_generator_of_a_folder_of_training(tmp_path: Path) -> None:
    for name in ("discriminator.pth", "optimizer.pth", "batch.pth", "keras_3_discriminator.keras"):
        shutil.copy(DATA / name, tmp_path / name)
    assert read(tmp_path)[0] == read(DATA / "batch.pth")[0] and files_of(tmp_path) == [tmp_path / "batch.pth"]
    shutil.copy(DATA / "module_inside.pth", tmp_path / "other.pth")  # may be a generator, but cannot be read
    with pytest.raises(CheckpointError, match="holds 2 models, give one of them: batch.pth, other.pth"):
        read(tmp_path)
    for name in ("batch.pth", "other.pth"):
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="holds 3 models, give one of them: discriminator.pth, keras_3"):
        read(tmp_path)


# -- files of a model -----------------------------------------------------------------------------------------


def test_all_files_of_a_model(tmp_path: Path) -> None:
    shutil.unpack_archive(DATA / "tf2_keras3.tar.xz", tmp_path, filter="data")
    found = {
        "course.bin": ["course.bin"],
        "tfjs_uint8": ["model.json", "group1-shard1of2.bin", "group1-shard2of2.bin"],
        "tf1_trained/model-200": ["model-200.index", "model-200.data-00000-of-00001", "options.json"],
        tmp_path / "training": ["ckpt-2.index", "ckpt-2.data-00000-of-00001"],
        tmp_path / "saved_model" / "saved_model.pb": [
            "saved_model.pb",
            "variables.index",
            "variables.data-00000-of-00001",
        ],
    }
    for path, names in found.items():
        files = files_of(DATA / path)
        assert [file.name for file in files] == names and all(file.is_file() for file in files)
    with pytest.raises(CheckpointError, match="no such file"):
        files_of(tmp_path / "nothing")


def test_a_palette(model, tmp_path: Path) -> None:
    path, generator, weights = model
    palette = (("sky", (170, 220, 255)), ("7", (0, 0, 0)), ("Straße", (1, 2, 3)))
    named = replace(generator, palette=palette)
    write(tmp_path / "named.safetensors", named, weights)
    again, _ = read(tmp_path / "named.safetensors")
    assert again.palette == palette and again == generator and not read(path)[0].palette
    assert again.with_statistics("running").palette == palette


@pytest.mark.parametrize(
    "palette",
    [
        *("{", "[]", "{}", '{"sky": 7}', '{"sky": "#fff"}', '{"": "#000000"}', '{"a\\u001b[2J": "#000000"}'),
        *('{"a": "#000000", "a": "#ffffff"}', '{"a": "#00000a", "b": "#00000A"}', json.dumps({"a" * 61: "#000000"})),
        json.dumps({str(i): f"#{i:06x}" for i in range(257)}),
    ],
)
def test_palettes_that_make_no_sense(model, palette: str) -> None:
    path = with_header(model[0], lambda header: header["__metadata__"].update(palette=palette))
    with pytest.raises(CheckpointError):
        read(path)
