"""No image takes more memory or time than it may, and none suffers for another."""

from __future__ import annotations

import ctypes
import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pix2pix import cgroups
from pix2pix.cpu.engine import CpuEngine
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.errors import ImageError
from pix2pix.files import codecs, limits
from pix2pix.files.fitting import Fitting
from pix2pix.files.jobs import find_jobs
from pix2pix.files.limits import VECTOR, Admission, Deferred, Limits, Need, TimedReader, network_bytes
from pix2pix.files.provenance import Source
from pix2pix.files.raw import translate_raw
from pix2pix.files.stream import translate_files
from pix2pix.model.pix2pixhd import local_enhancer
from pix2pix.model.resnet import ResnetVariant, resnet
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.mpi.messages import RankInfo
from pix2pix.mpi.ranks import RankTable
from tests.files.samples import SIZE, save
from tests.mpi.fakes import FakeCommunicator

MB = 1 << 20


@pytest.fixture
def available(monkeypatch):
    """A function that says how much memory there is from now on."""
    return lambda count: monkeypatch.setattr(Limits, "available", lambda self: count)


def need(decoding: int, kept: int, network: int, side: int = 1000) -> Need:
    return Need(side, side, decoding, kept, network, 0)


def test_an_image_is_decoded_now_alone_or_not_at_all(available, engine):
    available(1000 * MB)
    admission = Admission(Limits(), engine, 4, 20)
    small, large = need(40 * MB, 10 * MB, 10 * MB), need(300 * MB, 100 * MB, 0, 4000)
    admission.admit(small, alone=False)
    with pytest.raises(Deferred):
        admission.admit(large, alone=False)
    admission.admit(large, alone=True)
    available(100 * MB)
    with pytest.raises(ImageError, match="4000x4000 .* need some 419 MB of memory, and 105 MB are left: about 2000x"):
        admission.admit(large, alone=True)


def test_memory_that_the_engine_holds_is_counted_once(available, engine):
    pixels = round(900 * MB / network_bytes(engine))
    large = Need(1000, 1000, 10 * MB, 10 * MB, 0, pixels)
    available(1000 * MB)
    admission = Admission(Limits(), engine, 2, 2)
    admission.admit(large, alone=True)
    available(100 * MB)
    admission.admit(large, alone=True)
    admission.forget()
    with pytest.raises(ImageError, match="of memory"):
        admission.admit(large, alone=True)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A function that says what the system's files hold: the process's cgroups, and MB of memory."""
    monkeypatch.setattr(cgroups, "HIERARCHIES", tmp_path)
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "PROCESS", tmp_path / "status")
    monkeypatch.setattr(limits, "MACHINE", tmp_path / "meminfo")

    def say(cgroup: str, available_mb: int = 10_000) -> None:
        (tmp_path / "cgroup").write_text(cgroup)
        (tmp_path / "status").write_text("VmSize:\t 900 kB\nVmRSS:\t 200 kB\n")
        (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_mb << 10} kB\n")

    return say


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tightest", ["root", "outer", "inner"])
def test_the_tightest_of_nested_cgroups_counts(tmp_path, system, version, tightest):
    limit_name, used_name, cached = limits.CGROUP_FILES[version]
    root = tmp_path / "memory" if version == 1 else tmp_path
    inner = root / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder, name in ((root, "root"), (inner.parent, "outer"), (inner, "inner")):
        unlimited = "max" if version == 2 else "9223372036854771712"
        (folder / limit_name).write_text(f"{1_000_000 if name == tightest else unlimited}\n")
        (folder / used_name).write_text("700000\n")
        (folder / "memory.stat").write_text(f"cache 1\n{cached[0]} 50000\n{cached[1]} 1000\nanon 5\n")
    system("3:cpu,cpuacct:/elsewhere\n4:memory:/outer/inner\n" if version == 1 else "0::/outer/inner\n")
    assert Limits().available() == 351_000  # what is cached of files is free on demand


def test_a_cgroup_that_a_container_sees_as_the_root_counts(tmp_path, system):
    (tmp_path / "memory.max").write_text("1000000")
    (tmp_path / "memory.current").write_text("400000")
    system("0::/docker/0123\n")  # the path is the host's
    assert Limits().available() == 600_000


def test_ranks_of_one_machine_divide_what_the_system_leaves(system):
    system("")
    assert Limits().available() == 10_000 * MB
    assert Limits(processes=4).available() == 2_500 * MB
    assert Limits(memory=1 << 20, processes=4).available() == (1 << 20) - 200 * 1024  # this is each rank's own
    host = {0: RankInfo("a"), 1: RankInfo("b"), 2: RankInfo("b"), 3: RankInfo("b")}
    table = RankTable(FakeCommunicator.connected(1)[0])
    table.info = host
    assert table.per_host == 3


def test_the_limit_of_address_space_counts(system, monkeypatch):
    resource = pytest.importorskip("resource")
    system("")
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1 << 20, 1 << 20))
    assert Limits().available() == (1 << 20) - 900 * 1024


def test_limits_that_nothing_can_keep_are_refused():
    for options in ({"seconds": 0.0}, {"memory": 0}, {"seconds": float("nan")}):
        with pytest.raises(ValueError, match="expected more than 0"):
            Limits(**options)


SIDE = 1500
KINDS = {  # the mode of an image, the format of its file, and how it is saved
    "rgb.png": ("RGB", {}),
    "grey.png": ("L", {}),
    "alpha.png": ("RGBA", {}),
    "grey_alpha.png": ("LA", {}),
    "palette.png": ("P", {}),
    "transparent_palette.png": ("P", {"transparency": 3}),
    "transparent.png": ("RGB", {"transparency": (1, 2, 3)}),
    "bits.png": ("1", {}),
    "deep.png": ("I;16", {}),
    "transparent_deep.png": ("I;16", {"transparency": 3}),
    "animated.png": ("RGB", {"save_all": True}),
    "wide.tif": ("I", {}),
    "lab.tif": ("LAB", {}),
    "lzw.tif": ("RGBA", {"compression": "tiff_lzw"}),
    "baseline.jpg": ("RGB", {}),
    "turned.jpg": ("RGB", {"orientation": 6}),
    "turned.png": ("RGBA", {"orientation": 6}),
    "progressive.jpg": ("RGB", {"progressive": True, "subsampling": 0}),
    "progressive_cmyk.jpg": ("CMYK", {"progressive": True}),
    "x.webp": ("RGB", {}),
    "alpha.webp": ("RGBA", {"lossless": True}),
    "animated.webp": ("RGB", {"save_all": True}),
    "animated.gif": ("P", {"save_all": True}),
    "x.bmp": ("RGB", {}),
    "x.pgm": ("I;16", {}),
    "alpha.avif": ("RGBA", {"speed": 10}),
}


def save_kind(path: Path, mode: str, options: dict) -> None:
    """Save an image of blocks that compress quickly."""
    blocks = np.random.default_rng(0).integers(0, 256, (SIDE // 30, SIDE // 30, 4), np.uint8)
    pixels = blocks.repeat(30, 0).repeat(30, 1)
    rgba = Image.fromarray(pixels)
    if mode.startswith("I"):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.int32))
    else:
        image = rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)
    options = dict(options)
    if orientation := options.pop("orientation", None):
        options["exif"] = image.getexif()
        options["exif"][274] = orientation
    if "save_all" in options:
        options["append_images"] = [Image.new(mode, image.size)]
    image.save(path, **options)


def peak(call) -> int:
    """The most memory that a call has taken, Pillow's and decoders' included. Skips where that cannot be measured."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before, _ = memory()
        call()
        return memory()[1] - before
    except (OSError, AttributeError):
        pytest.skip("peaks of memory cannot be measured here")


def memory() -> tuple[int, int]:
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) << 10, int(status["VmHWM"].split()[0]) << 10


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_image_takes_more_than_is_estimated(tmp_path, kind):
    if kind.endswith("avif") and ".avif" not in codecs.READABLE:
        pytest.skip("this Pillow has no AVIF")
    save_kind(tmp_path / kind, *KINDS[kind])
    channels = 4 if "alpha" in kind else 3
    for fit, size, pair in (
        ("resize", None, None),
        ("pad", None, None),
        ("pad", None, "AtoB"),
        ("pad", (999, 8), None),
    ):
        fitting = Fitting.of(unet(2, 5, channels), fit, size, pair)
        fitting.read(tmp_path / kind)  # loads Pillow's readers
        needs: list[Need] = []
        taken = peak(lambda fitting=fitting, needs=needs: fitting.read(tmp_path / kind, needs.append))
        assert taken <= needs[0].decoding + needs[0].kept + 2 * MB, (fit, size, pair, taken / SIDE**2, needs)
        assert taken > 2 * SIDE**2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [None, (SIDE // 2, SIDE)])
def test_label_maps_take_no_more_than_is_estimated(tmp_path, dtype, size):
    generator = replace(unet(2, 5, 7), takes="labels")
    ids = np.random.default_rng(0).integers(0, 6, (SIDE, SIDE))
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "x.png")
    Image.fromarray(ids.astype(dtype)).save(tmp_path / "y.png")
    fitting = Fitting.of(generator, "pad", size, with_instances=True)
    needs: list[Need] = []
    taken = peak(lambda: fitting.read(tmp_path / "x.png", needs.append, tmp_path / "y.png"))
    assert taken <= needs[0].decoding + needs[0].kept + 2 * MB, (taken / SIDE**2, needs)
    assert taken > 7 * SIDE**2 // 2


def test_scaling_a_thin_image_is_estimated_too(tmp_path):
    Image.new("L", (400, 40_000)).save(tmp_path / "x.png")
    needs: list[Need] = []
    fitting = Fitting.of(unet(2, 8))
    taken = peak(lambda: fitting.read(tmp_path / "x.png", needs.append))
    assert 4 * 256 * 40_000 < taken <= needs[0].decoding + needs[0].kept + 2 * MB


@pytest.mark.parametrize(
    "generator",
    [
        unet(2, 5),
        unet(64, 5),
        resnet(8, blocks=1),
        resnet(64, blocks=6),
        resnet(32, blocks=2, variant=ResnetVariant(down="blurred", up="bilinear")),
        local_enhancer(16, blocks=1),
    ],
    ids=["unet-2", "unet-64", "resnet-8", "resnet-64", "cut", "pix2pixhd"],
)
def test_the_cpu_engine_takes_no_more_than_is_estimated(generator):
    with CpuEngine(generator, random_weights(generator), threads=2) as engine:
        backend = engine._forward._backend
        for h, w in ((2048, 2048), (256, 16384), (16384, 256)):
            taken = 4 * backend.size(1, h, w) / (h * w)
            shorter = VECTOR // engine._kernels.padded(1)  # the estimate is for the longest vectors
            assert taken <= network_bytes(engine) < 5 * shorter * taken


def test_engines_take_memory_of_the_machine_for_what_they_compute_there(engine, monkeypatch):
    def of(device):
        monkeypatch.setattr(engine, "_info", replace(engine.info, device=device))
        return network_bytes(engine)

    assert of("cuda:0") == 0 < of("cpu") == of("cuda:0 (4 workers), cpu (1 worker)") < of("cuda:0+cpu")


def test_padding_is_limited_too(tmp_path):
    Image.new("L", (1, 4_000_000)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="1,024,000,000 pixels when padded, more than the limit"):
        Fitting.of(unet(2, 8), "pad").read(tmp_path / "x.png")


def test_decoding_ends_after_some_seconds_of_processor_time(tmp_path):
    (tmp_path / "x.ppm").write_bytes(b"P3\n32 32 255\n" + b"#\n" * 1_000_000 + b"1 " * 3072)
    started = time.thread_time()
    with pytest.raises(ImageError, match="more than 0.1 s of processor time"):
        Fitting.of(unet(2, 5), limits=Limits(seconds=0.1)).read(tmp_path / "x.ppm")
    assert time.thread_time() - started < 2
    assert (Fitting.of(unet(2, 5)).read(tmp_path / "x.ppm").pixels == 1).all()


def test_a_progressive_jpeg_of_many_scans_ends_soon_after_its_time(tmp_path):
    side = 2000
    buffer = io.BytesIO()
    Image.new("L", (side, side), 99).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]  # the last one, which refines all pixels
    (tmp_path / "x.jpg").write_bytes(content[:-2] + 20_000 * scan + content[-2:])
    started = time.thread_time()
    with pytest.raises(ImageError, match=r"more than 0\.2 s of processor time"):
        Fitting.of(unet(2, 5), limits=Limits(seconds=0.2)).read(tmp_path / "x.jpg")
    assert time.thread_time() - started < 5


def test_time_in_which_others_have_the_processor_does_not_count(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    with TimedReader(io.FileIO(tmp_path / "x"), 0.05) as file:
        time.sleep(0.2)
        assert file.read(1) == b"a"
        started = time.thread_time()
        while time.thread_time() - started < 0.1:
            pass
        with pytest.raises(ImageError, match="processor time"):
            file.read(1)


def test_raw_frames_are_limited_too(tmp_path, engine, available):
    side = 512
    (tmp_path / "in.rgb").write_bytes(bytes(range(256)) * (6 * side * side * 3 // 256))
    frames = translate_raw(engine, tmp_path / "in.rgb", tmp_path / "out.rgb", (side, side), 6)
    available(side * side * (round(network_bytes(engine) + 1) + 3 * 63))
    assert list(frames) == [3, 3]  # the values of layers, and 11 + 10 copies of three frames
    available(33 * MB)
    with pytest.raises(ValueError, match="frames are too large: 512x512 pixels need some"):
        list(translate_raw(engine, tmp_path / "in.rgb", tmp_path / "out.rgb", (side, side), 6))


def test_several_large_images_are_translated_one_after_the_other(tmp_path, engine, monkeypatch):
    """Memory that the allocator keeps of one image must not count against the next."""
    for i in range(4):
        save(tmp_path, f"in/x{i}.png", 2048, 2048, i)
    resident, _ = memory()
    limit = Limits(memory=resident + 60 * MB)  # decoding one takes 42 MB or more
    jobs = find_jobs([tmp_path / "in"], tmp_path / "out")
    outcomes = list(translate_files(engine, jobs, Fitting.of(engine.generator, limits=limit)))
    assert [(outcome.status, outcome.reason) for outcome in outcomes] == [("done", "")] * 4


class Scarce(ReferenceEngine):
    """Has memory for small images, and for a large one if it comes alone."""

    def __init__(self, generator, weights) -> None:
        super().__init__(generator, weights, np.float32)
        self.small = 0

    def empty(self, n, h, w):
        if h > 64 and self.small < 9:
            raise MemoryError
        self.small += n if h <= 64 else 0
        return super().empty(n, h, w)


def run(engine, tmp_path, **options):
    jobs = find_jobs([tmp_path / "in"], tmp_path / "out")
    outcomes = list(translate_files(engine, jobs, Fitting.of(engine.generator, "pad"), **options))
    assert len(outcomes) == len(jobs)
    return {outcome.job.name: outcome.status for outcome in outcomes}, [outcome.job.name for outcome in outcomes]


def test_an_image_that_finds_no_memory_is_tried_again_alone(tmp_path):
    generator = unet(2, 5)
    for i in range(10):
        save(tmp_path, f"in/x{i}.png", 96 if i == 4 else SIZE, SIZE, i)
    statuses, order = run(Scarce(generator, random_weights(generator)), tmp_path, batch_size=2)
    assert set(statuses.values()) == {"done"} and order[-1] == "x4.png"


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("where", ["decoding", "hashing", "computing", "encoding"])
def test_memory_that_ends_is_the_culprits_failure_alone(tmp_path, engine, monkeypatch, where, persistent):
    for i in range(10):
        save(tmp_path, f"in/x{i}.png", 64 if i == 4 else SIZE, SIZE, i)
    times = []

    def failing(function):
        def call(first, *args):
            is_culprit = {
                "decoding": lambda: first.size[1] == 64,
                "hashing": lambda: first.name == "x4.png",
                "computing": lambda: args[0].shape[1] == 64,
                "encoding": lambda: first.shape[0] == 64,
            }[where]()
            times.extend([1] * is_culprit)
            if is_culprit and (persistent or len(times) == 1):
                raise MemoryError
            return function(first, *args)

        return call

    if where == "decoding":
        monkeypatch.setattr(codecs, "in_mode", codecs.in_mode)
        monkeypatch.setattr("pix2pix.files.fitting.in_mode", failing(codecs.in_mode))
    elif where == "hashing":
        monkeypatch.setattr(Source, "of", failing(Source.of))
    elif where == "computing":
        monkeypatch.setattr(engine, "translate_until", failing(engine.translate_until))
    else:
        monkeypatch.setattr(codecs, "image_of", failing(codecs.image_of))
    statuses, _ = run(engine, tmp_path, batch_size=2)
    assert {name for name, status in statuses.items() if status == "failed"} == ({"x4.png"} if persistent else set())


def test_large_images_are_decoded_one_at_a_time(tmp_path, engine, available, monkeypatch):
    for i in range(8):
        save(tmp_path, f"in/x{i}.png", 256 if i % 3 == 0 else SIZE, 256 if i % 3 == 0 else SIZE, i)
    monkeypatch.setattr(limits, "NEGLIGIBLE", 100_000)
    available(20 * MB)
    at_once, most = [], []
    apply = Fitting.apply

    def counting(self, image):
        if image.width == 256:
            at_once.append(1)
            most.append(len(at_once))
            time.sleep(0.05)
            at_once.pop()
        return apply(self, image)

    monkeypatch.setattr(Fitting, "apply", counting)
    statuses, order = run(engine, tmp_path)
    assert set(statuses.values()) == {"done"} and max(most) == 1
    assert {name for name in order[-3:]} == {"x0.png", "x3.png", "x6.png"}


def test_files_in_memory_are_decoded_too():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "teal").save(buffer, "PNG")
    assert codecs.read(buffer, 3).shape == (4, 4, 3)
