"""TensorFlow.js folders and the course's raw files.

The expected images come from PyTorch's operations: tests/checkpoints/data/make_tensorflow.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pix2pix.checkpoints import CheckpointError, course, read
from pix2pix.engines.reference import ReferenceEngine, to_float

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[3] / "shared"
TOLERANCE = 1e-5  # found: up to 2e-6

EXPECTED = np.load(DATA / "tensorflow.npz")
INPUTS = np.load(DATA / "pytorch.npz")


def model_path(name: str) -> Path:
    return DATA / ("course.bin" if name == "course" else name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writeable copy of a TensorFlow.js folder."""
    return Path(shutil.copytree(DATA / "tfjs_image", tmp_path / "model"))


def changed(folder: Path, change) -> Path:
    """The folder after ``change(model)`` of its model.json."""
    model = json.loads((folder / "model.json").read_text())
    change(model)
    (folder / "model.json").write_text(json.dumps(model))
    return folder


def layers_of(model: dict) -> list[dict]:
    return model["modelTopology"]["model_config"]["config"]["layers"]


@pytest.mark.parametrize("key", EXPECTED.files)
def test_same_image_as_tensorflow(key: str) -> None:
    name, size = key.split("/")
    generator, weights = read(model_path(name))
    y = ReferenceEngine(generator, weights).run(to_float(INPUTS[f"input/{size}x3"]))
    step = 9 if name == "course" else 3  # of which rows and columns were stored
    assert np.std(EXPECTED[key]) > 0.3
    assert np.abs(y[::step, ::step] - EXPECTED[key]).max() < TOLERANCE


def test_a_graph_becomes_a_generator() -> None:
    generator, weights = read(model_path("tfjs_image"))
    assert (generator.ngf, generator.depth, generator.eps, generator.statistics) == (2, 5, 1e-3, "image")
    assert [layer.name for layer in generator.layers[4:6]] == ["encoder_5", "decoder_5"]
    assert [(s.layer, s.slope) for s in generator["decoder_3"].inputs] == [("decoder_4", 0.0), ("encoder_3", 0.3)]
    assert generator["decoder_1"].activation == "tanh" and generator["decoder_1"].bias
    assert not generator.with_statistics("running").problems(weights)
    assert read(model_path("tfjs_image") / "model.json")[0] == generator


def test_real_edges2cats_model() -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads the input image")
    folder = SHARED / "models" / "edges2cats"
    if not folder.is_dir():
        pytest.skip("the real edges2cats model is not in ../shared/models")
    generator, weights = read(folder)
    assert generator.statistics == "image" and generator.eps == 1e-3
    x = to_float(np.asarray(image.open(SHARED / "images" / "edges2cats-input.png").convert("RGB")))
    y = ReferenceEngine(generator, weights).run(x)
    assert np.abs(y - np.load(folder / "expected_output.npz")["output"]).max() < 2e-4


def test_moving_averages_that_were_never_updated_are_not_used(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path("tfjs_running"), tmp_path / "model"))
    shards = sorted(folder.glob("*.bin"))
    data = bytearray(b"".join(shard.read_bytes() for shard in shards))
    sizes = {"float32": 4, "float16": 2}
    position = 0
    for weight in json.loads((folder / "model.json").read_text())["weightsManifest"][0]["weights"]:
        length = int(np.prod(weight["shape"])) * sizes[weight.get("quantization", weight)["dtype"]]
        if "/moving_" in weight["name"]:
            value = weight["name"].endswith("variance")
            data[position : position + length] = np.full(weight["shape"], value, "<f4").tobytes()
        position += length
    half = shards[0].stat().st_size
    shards[0].write_bytes(data[:half])
    shards[1].write_bytes(data[half:])
    assert position == len(data) and read(model_path("tfjs_running"))[0].statistics == "running"
    generator, weights = read(folder)
    assert generator.statistics == "image" and "never updated" in generator.remarks[0]
    assert not generator.with_statistics("running").problems(weights)  # whoever asks for them gets them


# -- graphs that are refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_name": "Mystery"}, r"'last' \('Mystery'\) is not supported: such layers"),
        ({"class_name": "Lambda"}, "'last' is a Lambda: it holds code"),
        ({"strides": [1, 1]}, "output has another size than its input"),
        ({"strides": [2, 1]}, r"'last' .*strides \(2, 1\): expected as many rows as columns"),
        ({"padding": "valid"}, r"'last' .*4x4 of stride 2 with 0 pixels of padding in all does not keep"),
        ({"padding": "causal"}, r"'last' .*padding is 'causal', expected 'same' or 'valid'"),
        ({"kernel_size": [3, 3]}, r"'last/kernel' has shape \(4, 4, 3, 4\), expected \(3, 3, 3, 4\)"),
        ({"activation": "sigmoid"}, r"'last' .*activation 'sigmoid'"),
        ({"filters": 4}, r"'last/kernel' has shape \(4, 4, 3, 4\), expected \(4, 4, 4, 4\)"),
        ({"use_bias": False}, r"surplus 'last/bias' \(3,\)"),
        ({"filters": 10**30}, "'last' .*filters is a int"),
        ({"filters": True}, "'last' .*filters is True"),
    ],
)
def test_unsupported_last_layer_is_named(folder: Path, changes: dict, message: str) -> None:
    def change(model: dict) -> None:
        last = layers_of(model)[-1]
        last["class_name"] = changes.get("class_name", last["class_name"])
        last["config"] |= {k: v for k, v in changes.items() if k != "class_name"}

    with pytest.raises(CheckpointError, match=message):
        read(changed(folder, change))


def test_a_norm_must_follow_its_convolution_alone(folder: Path) -> None:
    def norm_of_a_skip(model: dict) -> None:
        before = [[["sequential_1", 0, 0, {}]]]
        norm = {"class_name": "BatchNormalization", "name": "late", "config": {"axis": 3}, "inbound_nodes": before}
        layers_of(model).insert(4, norm)

    with pytest.raises(CheckpointError, match="'late' .*directly follow a convolution that nothing else reads"):
        read(changed(folder, norm_of_a_skip))


def test_a_leaky_relu_may_come_before_the_norm(folder: Path) -> None:
    def exchange(model: dict) -> None:
        block = next(y for y in layers_of(model) if y["name"] == "sequential_1")
        block["config"]["layers"].insert(1, block["config"]["layers"].pop())

    generator, _ = read(changed(folder, exchange))
    assert generator["encoder_2"].inner_slope == 0.3 and generator["encoder_3"].inputs[0].slope == 1


def test_graphs_that_double_are_bounded(folder: Path) -> None:
    def change(model: dict) -> None:
        for i in range(200):
            before = f"double_{i - 1}" if i else "input_1"
            node = [[[before, 0, 0, {}], [before, 0, 0, {}]]]
            config = {"name": f"double_{i}", "axis": 3}
            layers_of(model).append({"class_name": "Concatenate", "config": config, "inbound_nodes": node})

    with pytest.raises(CheckpointError, match="joins more than 64"):
        read(changed(folder, change))


def test_all_problems_of_the_weights_are_listed(folder: Path) -> None:
    def change(model: dict) -> None:
        weights = model["weightsManifest"][0]["weights"]
        by_name = {w["name"]: w for w in weights}
        by_name["last/bias"]["name"] = "last/other"
        by_name["sequential_2/down_norm_2/beta"]["shape"] = [4, 2]

    with pytest.raises(CheckpointError) as caught:
        read(changed(folder, change))
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "'down_norm_2/beta' has shape (4, 2), expected (8,)",
        "missing 'last/bias' (3,)",
        "surplus 'last/other' (3,)",
    ]


# -- shards that are refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("../outside.bin", "/etc/passwd", "a/../../outside.bin", "link.bin", "linked/outside.bin", "..", ".", ""),
        *("C:x", "a\\b", "\0", "x" * 2000, 7, None, ["x"]),
    ],
)
def test_shards_outside_the_folder_are_never_read(folder: Path, path: object) -> None:
    (folder.parent / "outside.bin").write_bytes(b"secret")
    (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
    (folder / "linked").symlink_to(folder.parent, target_is_directory=True)

    def change(model: dict) -> None:
        model["weightsManifest"][0]["paths"][1] = path

    with pytest.raises(CheckpointError, match="only files inside the model's own folder"):
        read(changed(folder, change))


def test_shards_must_fit_exactly(folder: Path) -> None:
    shard = folder / "group1-shard2of2.bin"
    whole, first = shard.read_bytes(), (folder / "group1-shard1of2.bin").stat().st_size
    for data in (whole[:-1], whole + b"\0"):
        shard.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"have {first + len(data)} bytes, expected {first + len(whole)}"):
            read(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match="'group1-shard2of2.bin' is missing"):
        read(folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"quantization": {"dtype": "uint8", "min": "0", "scale": 1}}, "dtype 'float32', stored as 'uint8'"),
        ({"quantization": {"dtype": "int4", "min": 0, "scale": 1}}, "dtype 'float32', stored as 'int4'"),
        ({"quantization": [1], "dtype": "uint8"}, "quantization that is no dict"),
        ({"dtype": "uint8"}, "dtype 'uint8', stored as 'uint8'"),
        ({"dtype": ["float32"]}, "dtype a list"),
    ],
)
def test_quantisation_that_is_not_known_is_refused(folder: Path, entry: dict, message: str) -> None:
    def change(model: dict) -> None:
        model["weightsManifest"][0]["weights"][0] |= entry

    with pytest.raises(CheckpointError, match=f"'sequential_0/down_0/kernel' has .*{message}"):
        read(changed(folder, change))


def test_graph_models_are_explained(folder: Path) -> None:
    (folder / "model.json").write_text('{"format": "graph-model", "modelTopology": {"node": []}}')
    with pytest.raises(CheckpointError, match="graph model.*tfjs_layers_model"):
        read(folder)


@pytest.mark.parametrize(
    "text", ["{" * 100_000, '{"a":' * 100_000, '{"a": 1, "a": 2}', '{"modelTopology": 1}', "{", '{"x": "\ud800"}']
)
def test_hostile_json_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError):
        read(folder)


# -- the course's files ---------------------------------------------------------------------------------------


def test_length_tells_the_filters_of_a_course_file() -> None:
    assert course.ngf_of(217_725_452) == 64
    assert course.ngf_of(217_725_448) is None and course.ngf_of(0) is None and course.ngf_of(4) is None
    generator, weights = read(model_path("course"))
    assert (generator.ngf, generator.depth, generator.channels, generator.eps) == (1, 8, (3, 3), 1e-5)
    assert not any(name.endswith(("mean", "variance")) for name in weights)


@pytest.mark.parametrize(("number", "message"), [(-1.0, "no variances"), (np.nan, "not finite|no variances")])
def test_course_files_of_the_right_length_only_are_refused(tmp_path: Path, number: float, message: str) -> None:
    size = model_path("course").stat().st_size
    np.full(size // 4, number, "<f4").tofile(tmp_path / "noise.bin")
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "noise.bin")
