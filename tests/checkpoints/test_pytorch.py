"""PyTorch files: every variant that the program writes, read without PyTorch and run by the oracle.

The expected images were computed by PyTorch: tests/checkpoints/data/make_pytorch.py.
"""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pix2pix
from pix2pix.checkpoints import CheckpointError, pytorch, read
from pix2pix.checkpoints.budget import Budget
from pix2pix.checkpoints.model_file import opened
from pix2pix.checkpoints.pytorch import torch_file
from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.model.generator import Norm

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[3] / "shared"
TOLERANCE = 1e-5  # PyTorch computes in float32, the oracle in float64; found: up to 2e-6

EXPECTED = np.load(DATA / "pytorch.npz")
KEYS = {"objects": "netG"}  # of the files that hold two generators
KEYS_OF_IMAGES = [key for key in EXPECTED.files if not key.startswith("input/")]


def model_file(case: str) -> Path:
    return DATA / ("converted.safetensors" if case == "converted" else f"{case}.pth")


@pytest.mark.parametrize("key", KEYS_OF_IMAGES)
def test_same_image_as_pytorch(key: str) -> None:
    case, size, statistics = key.split("/")
    generator, weights = read(model_file(case), key=KEYS.get(case))
    x = to_float(EXPECTED[f"input/{size}x{generator.in_channels}"])
    y = ReferenceEngine(generator.with_statistics(statistics), weights).run(x)
    step = 9 if x.shape[1] > 64 else 3  # of which rows and columns were stored
    assert np.ptp(x) > 1 and np.std(EXPECTED[key]) > 0.05
    assert np.abs(y[::step, ::step] - EXPECTED[key]).max() < TOLERANCE


@pytest.mark.parametrize(
    ("case", "ngf", "depth", "channels", "eps", "affine", "biases"),
    [
        ("batch", 2, 5, (3, 3), 1e-5, True, 1),
        ("instance", 1, 5, (3, 3), 1e-5, False, 10),
        ("instance_stale", 1, 5, (3, 3), 1e-5, False, 10),
        ("instance_affine", 1, 5, (3, 3), 1e-5, True, 10),
        ("no_norm", 1, 5, (3, 3), None, None, 1),
        ("data_parallel", 1, 5, (1, 2), 1e-5, True, 1),
        ("depth_8", 1, 8, (3, 3), 1e-5, True, 1),
    ],
)
def test_inferred_network(case, ngf, depth, channels, eps, affine, biases) -> None:
    generator, weights = read(model_file(case))
    assert (generator.ngf, generator.depth, generator.channels, generator.eps) == (ngf, depth, channels, eps)
    assert {layer.norm.affine for layer in generator.layers if layer.norm} == ({affine} - {None})
    assert sum(layer.bias for layer in generator.layers) == biases
    assert generator.statistics == "image" and generator.size == 2**depth
    assert generator[f"encoder_{depth}"].norm is None
    assert not generator.problems(weights)
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in weights.values())


@pytest.mark.parametrize(
    ("case", "assumed"),
    [
        ("batch", ("eps", "slope", "statistics", "size")),
        ("instance", ("eps", "slope", "size")),
        ("instance_affine", ("eps", "slope", "size")),
        ("no_norm", ("slope", "size")),
    ],
)
def test_what_a_state_dict_does_not_say(case: str, assumed: tuple[str, ...]) -> None:
    generator, _ = read(model_file(case))
    assert generator.assumed == assumed
    assert generator.with_overrides({"slope": 0.1}).assumed == tuple(name for name in assumed if name != "slope")
    assert "statistics" not in generator.with_statistics("running").assumed
    assert "assumed" not in generator.to_dict()


def test_the_name_of_a_file_means_nothing(tmp_path: Path) -> None:
    shutil.copy(model_file("legacy"), tmp_path / "model.json")
    assert read(tmp_path / "model.json")[0].origin == "PyTorch state dict"
    (tmp_path / "model.json").rename(tmp_path / "x.bin")
    assert read(tmp_path)[0].ngf == 1  # the only model in its folder


def test_running_statistics_that_are_not_there_are_missed() -> None:
    generator, weights = read(model_file("instance"))
    with pytest.raises(ValueError, match=r"missing encoder_2\.mean"):
        ReferenceEngine(generator.with_statistics("running"), weights)


def test_directory_of_an_archive_beyond_4_gb(tmp_path: Path) -> None:
    data = bytearray(model_file("batch").read_bytes())
    end = data.rfind(b"PK\x05\x06")
    data[end + 8 : end + 20] = b"\xff" * 12  # torch.save writes the zip64 record even where it isn't needed
    (tmp_path / "large.pth").write_bytes(data)
    assert read(tmp_path / "large.pth")[0] == read(model_file("batch"))[0]


def test_one_of_several_generators() -> None:
    with pytest.raises(CheckpointError, match=r"2 generators.*'state\.G_A', 'state\.G_B'"):
        read(model_file("two"))
    a, b = read(model_file("two"), key="G_A"), read(model_file("two"), key="state.G_B")
    assert a[0] == b[0] and (a[1]["encoder_1.kernel"] != b[1]["encoder_1.kernel"]).any()
    with pytest.raises(CheckpointError, match=r"key 'G_C' fits 0.*state\.G_A"):
        read(model_file("two"), key="G_C")
    assert read(model_file("training"), key="netG")[0] == read(model_file("training"))[0]


def test_moving_averages_of_the_weights_are_another_generator() -> None:
    with pytest.raises(CheckpointError, match=r"2 generators: choose one.*: 'state_dict.netG', 'ema.shadow'"):
        read(model_file("objects"))
    last, average = (read(model_file("objects"), key=key) for key in ("netG", "shadow"))
    assert last[0] == average[0] and (last[1]["encoder_1.kernel"] != average[1]["encoder_1.kernel"]).any()


def test_code_beside_a_generator_is_never_executed(tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "executed"),)

    with zipfile.ZipFile(model_file("training")) as source, zipfile.ZipFile(tmp_path / "x", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                call = pickle.dumps(["hook", Call()], protocol=2)[2:-1]  # without the protocol and the end
                assert content[:2] == b"\x80\x02" and content[-1:] == b"."
                content = content[:2] + call + b"0" + content[2:]  # made, and dropped
            target.writestr(name, content)
    generator, _ = read(tmp_path / "x")
    assert generator == read(model_file("training"))[0] and not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("discriminator", "discriminator .4 convolutions.*latest_net_G.pth"),
        ("whole_module", r"WholeModule.*state_dict"),
        ("module_inside", r"WholeModule.*state_dict"),
        ("optimizer", "state of an optimizer.*latest_net_G.pth"),
    ],
)
def test_what_is_no_generator_is_explained(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(model_file(name))


def test_whole_module_of_an_old_pytorch_is_explained(tmp_path: Path) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("module", "Net", "net.py", "class Net: ...") if value == "saved" else None

    stream = io.BytesIO()
    for content in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, "saved"):
        Pickler(stream, protocol=2).dump(content)
    (tmp_path / "net.pth").write_bytes(stream.getvalue())
    with pytest.raises(CheckpointError, match=r"'Net'.*state_dict"):
        read(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("members", "method", "message"),
    [
        (["net/data.pkl", "net/code/__torch__/net.py", "net/constants.pkl"], zipfile.ZIP_STORED, "holds no tensors"),
        (["net/code/__torch__/net.py", "net/data.pkl"], zipfile.ZIP_DEFLATED, "data.pkl' .* is compressed"),
        (["net/models/model.json", "net/archive_format"], zipfile.ZIP_STORED, r"torch\.export.*state_dict"),
        (["net/archive_format", "net/models/model.json"], zipfile.ZIP_DEFLATED, r"torch\.export.*state_dict"),
    ],
)
def test_programs_without_weights_are_explained(tmp_path: Path, members: list[str], method: int, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w", method) as archive:
        for name in members:
            archive.writestr(name, b"\x80\x02}.")
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "net.pt")


def test_types_without_storages_of_their_own(tmp_path: Path) -> None:
    def text(value: bytes) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value

    def pickled(dtype: bytes) -> bytes:
        storage = b"(" + text(b"storage") + b"ctorch.storage\nUntypedStorage\n" + text(b"0") + b"NK\x01tQ"
        tensor = b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage + b"K\x00))\x89}" + dtype + b"}tR"
        return b"\x80\x02}" + text(b"model.model.1.model.1.weight") + tensor + b"s."

    for dtype, message in ((b"float8_e4m3fn", "8-bit floating point"), (b"uint16", "missing 0.weight")):
        with zipfile.ZipFile(tmp_path / "x", "w") as archive:
            archive.writestr("a/data.pkl", pickled(b"ctorch\n" + dtype + b"\n"))
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path / "x")


def test_all_problems_are_listed_at_once() -> None:
    budget = Budget()
    with opened(model_file("batch"), budget) as file:
        state = dict(torch_file.load(file))
    del state["model.model.1.model.2.bias"]
    state["model.model.3.weight"] = state["model.model.0.weight"]
    state["model.model.9.weight"] = state["model.model.3.bias"]
    with pytest.raises(CheckpointError) as caught:
        pytorch.from_tensors(state, None, "", budget)
    heading, *lines = str(caught.value).splitlines()
    assert "3 problems" in heading
    assert lines == [
        "  3.weight has shape (2, 3, 4, 4), expected (4, 3, 4, 4)",
        "  missing 1.model.2.bias (4,)",
        "  surplus '9.weight' (3,)",
    ]


def changed(path: Path, change: Callable[[dict[str, np.ndarray], list[str]], None]) -> Path:
    """The converted state dict of a U-Net with batch norms, after ``change`` of it; also given the norms' names."""
    state = load_file(DATA / "converted.safetensors")
    change(state, [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")])
    save_file(state, path)
    return path


def without_parameters(state: dict[str, np.ndarray], norms: list[str]) -> None:
    for norm in norms:
        del state[f"{norm}weight"], state[f"{norm}bias"]


def with_parameters_that_change_nothing(state: dict[str, np.ndarray], norms: list[str]) -> None:
    for norm in norms:
        state[f"{norm}weight"][:], state[f"{norm}bias"][:] = 1, 0


@pytest.mark.parametrize("statistics", ["image", "running"])
def test_batch_norms_without_parameters(tmp_path: Path, statistics: str) -> None:
    plain, weights = read(changed(tmp_path / "plain", without_parameters))
    affine, others = read(changed(tmp_path / "affine", with_parameters_that_change_nothing))
    assert {layer.norm for layer in plain.layers} == {None, Norm(affine=False)} and "statistics" in plain.assumed
    x = to_float(EXPECTED["input/32x32x3"])
    y = ReferenceEngine(plain.with_statistics(statistics), weights).run(x)
    expected = ReferenceEngine(affine.with_statistics(statistics), others).run(x)
    assert np.abs(y - expected).max() < TOLERANCE and np.std(y) > 0.05


def test_norms_that_may_be_group_norms_are_told_of(tmp_path: Path) -> None:
    def untracked(state: dict[str, np.ndarray], norms: list[str]) -> None:
        for norm in norms:
            for part in ("running_mean", "running_var", "num_batches_tracked"):
                del state[f"{norm}{part}"]

    generator, _ = read(changed(tmp_path / "x", untracked))
    assert "GroupNorm" in generator.remarks[0] and generator.statistics == "image"
    for case in ("batch", "instance", "instance_affine", "instance_stale", "no_norm"):
        assert not any("GroupNorm" in remark for remark in read(model_file(case))[0].remarks)


def test_the_programs_own_size_is_told_where_it_is_another() -> None:
    assert "size=256" in read(model_file("depth_7"))[0].remarks[-1]
    assert not read(model_file("depth_8"))[0].remarks


@pytest.mark.parametrize("key", ["image_statistics", "running_statistics"])
def test_real_facades_model(key: str) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads the input image")
    folder = SHARED / "models" / "facades"
    if not folder.is_dir():
        pytest.skip("the real facades model is not in ../shared/models")
    generator, weights = read(folder / "latest_net_G.pth")
    x = to_float(np.asarray(image.open(folder / "labels-1.png").convert("RGB")))
    y = ReferenceEngine(generator.with_statistics(key.split("_")[0]), weights, np.float32).run(x)
    assert np.abs(y - np.load(folder / "expected_output.npz")[key]).max() < 2e-4


@pytest.mark.full
@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize(
    ("norm", "statistics"), [("batch", "image"), ("batch", "running"), ("instance", "image"), ("none", "image")]
)
def test_live_pytorch_at_full_width(size: int, norm: str, statistics: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    spec = importlib.util.spec_from_file_location("make_pytorch", DATA / "make_pytorch.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    torch.manual_seed(5)
    net = make.UNet(64, 8, norm)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    b = make.input_image(size, size, 3)
    net.train(statistics == "image")
    with torch.no_grad():
        expected = net(torch.from_numpy(to_float(b)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    engine = pix2pix.load(tmp_path / "net.pth", device="cpu", statistics=statistics)
    assert np.abs(engine.run(to_float(b)) - expected).max() < 2e-4
