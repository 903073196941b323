"""Placement in words, and what a hybrid engine sends between its two engines. What it computes: test_engines.py."""

from __future__ import annotations

import sys
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import pix2pix
from pix2pix import checkpoints
from pix2pix.cli import main
from pix2pix.cpu.engine import CpuEngine
from pix2pix.engines.base import EngineInfo
from pix2pix.engines.hybrid import HybridEngine, SharedCpu, segments
from pix2pix.engines.reference import ReferenceEngine, to_float, to_uint8
from pix2pix.factory import EngineFactory, EngineOptions, make_engine
from pix2pix.model.generator import INPUT
from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.plans.heuristics import choose
from pix2pix.plans.placements import decide, parse_placement
from pix2pix.plans.plan import place, read
from tests.gpu.gpus import needs_gpu
from tests.models import VARIANTS, check_output, pictures, weights_of
from tests.plans.placements import HEAVIEST, PUBLISHED, SPLIT, crossings, placed


def test_only_what_the_other_side_reads_crosses():
    parts = segments(lower(PUBLISHED), HEAVIEST, [INPUT], ["decoder_1"])
    assert [part.on_gpu for part in parts] == [False, True, False, True, False]
    assert crossings(parts) == [
        (False, INPUT),
        (True, "encoder_1"),
        (False, "encoder_4"),
        (True, "decoder_5"),
        (False, "decoder_2"),
    ]
    assert [set(part.keep) for part in parts] == [
        {"encoder_1"},
        {"encoder_2", "encoder_3", "encoder_4"},
        {"encoder_1"},
        set(),
        set(),
    ]


def test_a_skip_that_both_sides_read_crosses_once():
    parts = segments(
        lower(PUBLISHED), parse_placement("encoder_3,decoder_3,decoder_1", PUBLISHED), [INPUT], ["decoder_1"]
    )
    assert crossings(parts).count((True, "encoder_2")) == 1  # encoder_3 reads it there; decoder_2 on the CPU
    assert crossings(parts).count((False, "encoder_3")) == 1
    assert crossings(parts).count((True, "encoder_1")) == 1
    assert len(crossings(parts)) == len(set(crossings(parts)))


@pytest.mark.parametrize(
    "placement", ["seed-b", "seed-c", "all", "encoder_1", "decoder_1", "encoder_2,encoder_4,decoder_7-5"]
)
def test_every_segment_has_what_it_reads(placement):
    gpu = parse_placement(placement, PUBLISHED)
    outputs = ["encoder_1", "encoder_6", "decoder_4", "decoder_1"]
    outside, kept, computed = {INPUT}, {True: set(), False: set()}, []
    for part in segments(lower(PUBLISHED), gpu, [INPUT], outputs):
        assert outside.issuperset(part.inputs)
        have = kept[part.on_gpu].union(part.inputs)
        for layer in lower(PUBLISHED).needed((*part.outputs, *(k for k in part.keep if k not in have)), have):
            assert (layer.name in gpu) == part.on_gpu
            computed.append(layer.name)
            have.add(layer.name)
        assert have.issuperset(part.keep)
        kept[part.on_gpu] = set(part.keep)
        outside.update(part.outputs)
    assert sorted(computed) == sorted(layer.name for layer in PUBLISHED.layers)
    assert outside.issuperset(outputs)


def test_an_engine_has_the_weights_of_its_own_layers_alone():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    layers, plan = placed("tensorflow", SPLIT)
    with CpuEngine(g, weights, plan=plan) as cpu:
        assert cpu.layers == {layer.name for layer in g.layers} - set(layers) == set(cpu.convolutions)
        x = to_float(pictures(1, 32, 32))
        cpu.run(x, outputs=["encoder_1"])
        with pytest.raises(ValueError, match="other layers to run: not encoder_2$"):
            cpu.run(x, outputs=["encoder_2"])
        with pytest.raises(ValueError, match="other layers"):
            cpu.translate(pictures(1, 32, 32))
        with pytest.raises(
            ValueError,
            match="no weights for what it should run: decoder_2, .*encoder_3$",
        ):
            HybridEngine(cpu, ReferenceEngine(g, weights), placed("tensorflow", "encoder_4")[1])
    other = VARIANTS["pytorch"]
    with CpuEngine(g, weights) as cpu, ReferenceEngine(other, weights_of("pytorch")) as gpu:
        with pytest.raises(ValueError, match="same generator"):
            HybridEngine(cpu, gpu, plan)


def test_hybrid_engines_share_one_cpu_engine():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    layers, plan = placed("tensorflow", SPLIT)
    batches = [pictures(2, 64, 64, seed=i) for i in range(4)]
    results = {}
    shared = SharedCpu(CpuEngine(g, weights, plan=plan, threads=2))
    workers = [shared.join(ReferenceEngine(g, weights, np.float32), plan) for _ in batches]
    expected = [workers[0].translate(b) for b in batches]

    def work(index: int) -> None:
        results[index] = [workers[index].translate(batches[index]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, b in enumerate(expected):
        assert all(np.array_equal(b, result) for result in results[index])
    for worker in workers[1:]:
        worker.close()
        worker.close()
    np.testing.assert_array_equal(workers[0].translate(batches[0]), expected[0])
    workers[0].close()
    for engine in (shared.engine, workers[0].gpu):
        with pytest.raises(RuntimeError, match="closed"):
            engine.run(to_float(batches[0]), outputs=["encoder_1"])


def test_a_large_batch_crosses_in_parts():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    layers, plan = placed("tensorflow", SPLIT)
    b = pictures(5, 32, 32)
    seen = []

    class Watched(ReferenceEngine):
        def _run(self, given, results):
            seen.append(next(iter(given.values())).shape[0])
            super()._run(given, results)

    with HybridEngine(CpuEngine(g, weights, plan=plan), Watched(g, weights), plan) as engine:
        whole = engine.translate(b)
        assert set(seen) == {5}
        engine.chunks.pixels = 2 * 32 * 32
        seen.clear()
        np.testing.assert_array_equal(engine.translate(b), whole)
        assert set(seen) == {1, 2}
        x = to_float(b)
        check_output(engine.run(x), ReferenceEngine(g, weights).run(x), "float32")


def test_a_gpu_without_memory_gets_fewer_images_at_a_time(caplog):
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    _, plan = placed("tensorflow", SPLIT)
    b = pictures(7, 32, 32)
    most = 3

    class Small(ReferenceEngine):
        def _run(self, given, results):
            if next(iter(given.values())).shape[0] > most:
                raise MemoryError("the GPU has no memory left")
            super()._run(given, results)

    with HybridEngine(CpuEngine(g, weights, plan=plan), Small(g, weights), plan) as engine:
        result = engine.translate(b)
        assert "no memory left: going on with 3 images at a time" in caplog.text
        most = 7
        np.testing.assert_array_equal(engine.translate(b), result)
        engine.chunks.pixels = 7 * 32 * 32
        np.testing.assert_array_equal(engine.translate(b), result)
        most = 0
        with pytest.raises(MemoryError):
            engine.translate(b)


def test_a_constant_layer_without_the_layer_that_it_reads():
    """decoder_5 is constant where encoder_5's map is 1x1, but an engine that lacks encoder_5 must be given it."""
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    x = to_float(pictures(2, 32, 32))
    expected = ReferenceEngine(g, weights).run(x)
    for on_gpu in ("encoder_5", "decoder_5", "encoder_5,decoder_5"):
        layers, plan = placed("tensorflow", on_gpu)
        with HybridEngine(CpuEngine(g, weights, plan=plan), ReferenceEngine(g, weights), plan) as engine:
            check_output(engine.run(x), expected, "float32")


def test_a_stop_is_heeded_between_segments():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    layers, plan = placed("tensorflow", SPLIT)
    stop, b = threading.Event(), pictures(1, 32, 32)
    out = np.zeros_like(b)

    class Stopping(ReferenceEngine):
        def _run(self, given, results):
            assert not stop.is_set()
            stop.set()
            super()._run(given, results)

    with HybridEngine(CpuEngine(g, weights, plan=plan), Stopping(g, weights), plan) as engine:
        engine._translate(b, out, stop)
    assert stop.is_set() and not out.any()


class FakeGpu(ReferenceEngine):
    """The GPU engine's part played by the reference engine; it counts how often weights are uploaded."""

    uploads: list[int] = []

    def __init__(self, g, w, *, plan=None, precision="float32", tune="throughput", index=0) -> None:
        super().__init__(g, w, np.float32)
        self.plan = choose(g, tune, plan, precision, "cuda")
        self.layers = frozenset(self.plan.layers_on("cuda"))
        self.index, self._info = index, EngineInfo(f"cuda:{index}", plan=self.plan)
        self.uploads.append(index)

    def share(self) -> FakeGpu:
        engine = FakeGpu(self.generator, self._weights_as_given(), plan=self.plan, index=self.index)
        self.uploads.pop()
        return engine

    def _weights_as_given(self) -> dict[str, np.ndarray]:
        return {name: array.astype(np.float32) for name, array in self.weights.items()}


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, which are fakes; gives the list of GPUs that weights are uploaded to."""
    monkeypatch.setattr(FakeGpu, "uploads", [])
    monkeypatch.setitem(sys.modules, "pix2pix.gpu.engine", SimpleNamespace(GpuEngine=FakeGpu))
    monkeypatch.setattr("pix2pix.devices.count_gpus", lambda: 2)
    return FakeGpu.uploads


def test_a_factory_has_weights_once_on_each_device(two_gpus):
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    b = pictures(2, 32, 32)
    _, plan = placed("tensorflow", SPLIT)
    factory = EngineFactory(g, weights, plan, threads=1)
    engines = [factory.make(index) for index in (0, 0, 1, 0, 1)]
    assert two_gpus == [0, 1] and len({engine.cpu for engine in engines}) == 1
    assert len({engine.gpu for engine in engines}) == 5
    assert engines[2].info.device == "cuda:1+cpu" and "6 of 10 layers on cuda:1" in engines[2].info.description
    expected = engines[0].translate(b)
    for engine in engines:
        np.testing.assert_array_equal(engine.translate(b), expected)
        engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engines[0].cpu.run(to_float(b), outputs=["encoder_1"])
    everything = EngineFactory(g, weights, choose(g, "latency", hardware="cuda")).make(1)
    assert isinstance(everything, FakeGpu) and everything.index == 1
    nothing = place(choose(g, "latency"), choose(g, "latency", hardware="cuda"), [])
    with EngineFactory(g, weights, nothing).make(0) as engine:
        assert isinstance(engine, CpuEngine)
        assert engine.translate(b).shape == b.shape


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A working folder with model.safetensors and the picture in/a.png, 32x32."""
    monkeypatch.chdir(tmp_path)
    checkpoints.write(tmp_path / "model.safetensors", VARIANTS["tensorflow"], weights_of("tensorflow"))
    (tmp_path / "in").mkdir()
    Image.fromarray(pictures(1, 32, 32)[0]).save(tmp_path / "in" / "a.png")
    return tmp_path


def translate(*options: str) -> int:
    return main(["translate", "in", "-m", "model.safetensors", *options])


def test_the_command_line_places_layers(files, two_gpus, capsys):
    assert translate("-o", "cpu", "--device", "cpu") == 0
    expected = np.asarray(Image.open(files / "cpu" / "a.png")).astype(int)
    assert translate("-o", "split", "--device", "cuda:0", "--gpu-layers", SPLIT, "--plan", "im2col") == 0
    assert "device: 6 of 10 layers on cuda:0, the others on cpu" in capsys.readouterr().err
    for folder, options in (
        ("all", ["--gpu-layers", "all", "--device", "cuda:1"]),
        ("workers", ["--gpu-layers", "seed-c", "--device", "cuda", "--workers", "4"]),
        ("split", ["--gpu-layers", SPLIT, "--device", "cuda:0", "--plan", "im2col", "--overwrite"]),
    ):
        assert translate("-o", folder, *options) == 0
        got = np.asarray(Image.open(files / folder / "a.png"))
        assert got.std() > 10 and np.abs(got - expected).max() <= 1
    assert two_gpus == [0, 1, 0, 1, 0] or two_gpus == [0, 1, 1, 0, 0]
    capsys.readouterr()
    assert translate("-o", "split", "--device", "cuda:0") == 2  # without the placement it is another run
    assert "plan:" in capsys.readouterr().err


def test_the_command_line_measures_a_placement_once(files, two_gpus, capsys):
    options = "--device", "cuda:0", "--gpu-layers", "auto"
    assert translate("-o", "out", *options) == 0
    name = str(Path("out", "pix2pix-plan.json"))
    assert f"plan: {name}, measured now" in capsys.readouterr().err
    plan = read(files / name, VARIANTS["tensorflow"])
    assert plan.hardware == "cuda"
    assert translate("-o", "out", *options) == 0
    told = capsys.readouterr()
    assert f"plan: {name}, as measured before" in told.err and "1 skipped" in told.out
    assert translate("-o", "one.png", *options) == 2  # a folder is translated, into a folder
    assert main(["translate", "in/a.png", "-m", "model.safetensors", "-o", "there/one.png", *options]) == 0
    assert (files / "there" / "pix2pix-plan.json").exists()
    assert translate("-o", "elsewhere", "--plan", "plans/mine.json", *options) == 0
    assert (files / "plans" / "mine.json").exists() and not (files / "elsewhere" / "pix2pix-plan.json").exists()
    assert translate("-o", "again", "--plan", "plans/mine.json", "--device", "cuda:1") == 0


def test_placements_that_devices_cannot_take(files, two_gpus, capsys):
    placed("tensorflow", SPLIT)[1].save("plan.json")
    for options, message in (
        (["--device", "cpu", "--plan", "plan.json"], "ask for 'cuda'"),
        (["--device", "cpu", "--gpu-layers", "seed-b"], "places layers on a GPU"),
        (["--device", "cpu,cuda:0", "--plan", "plan.json"], "leave cpu out"),
        (["--device", "cuda", "--gpu-layers", "encoder_9"], "names 'encoder_9'"),
        (["--device", "cuda", "--gpu-layers", "encoder_2", "--plan", "plan.json"], "leave one of them out"),
    ):
        assert translate("-o", "out", *options) == 2
        assert message in capsys.readouterr().err
        assert not (files / "out").exists()


def test_a_gpu_beside_the_cpu_each_with_all_layers(files, two_gpus):
    engine = pix2pix.load("model.safetensors", "cpu,cuda:0", plan="im2col", threads=1)
    with closing(engine):
        b = pictures(4, 32, 32)
        with CpuEngine(VARIANTS["tensorflow"], weights_of("tensorflow")) as cpu:
            assert np.abs(engine.translate(b) - cpu.translate(b).astype(int)).max() <= 1
    assert two_gpus == [0]


@needs_gpu
@pytest.mark.parametrize(
    "placement, algorithm", [(SPLIT, "im2col"), (SPLIT, None), ("encoder_1,encoder_5,decoder_1", None)]
)
@pytest.mark.parametrize("variant, n", [("tensorflow", 3), ("running", 1)])
def test_a_cpu_and_a_gpu(placement, algorithm, variant, n):
    g, weights = VARIANTS[variant], weights_of(variant)
    plan = decide(g, placement, algorithm, "float32", "throughput")
    b = pictures(n, 32, 32)
    x = to_float(b)
    with EngineFactory(g, weights, plan, threads=2).make(0) as engine:
        y = engine.run(x)
        check_output(y, ReferenceEngine(g, weights).run(x), "float32")
        translated = engine.translate(b)
        np.testing.assert_array_equal(translated, to_uint8(y, g.output_scale))
        np.testing.assert_array_equal(engine.translate(b[-1:])[0], translated[-1])


@needs_gpu
def test_a_gpu_is_given_only_what_crosses(monkeypatch):
    from pix2pix.gpu.forward import GpuContext

    given, taken = [], []
    set_value, get_value = GpuContext.set_value, GpuContext.get_value
    monkeypatch.setattr(GpuContext, "set_value", lambda self, name, *a: given.append(name) or set_value(self, name, *a))
    monkeypatch.setattr(GpuContext, "get_value", lambda self, name, *a: taken.append(name) or get_value(self, name, *a))
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    plan = decide(g, SPLIT, None, "float32", "throughput")
    with EngineFactory(g, weights, plan, threads=1).make(0) as engine:
        engine.translate(pictures(1, 32, 32))
    assert given == ["encoder_1", "decoder_5"] and taken == ["encoder_4", "decoder_2"]


@needs_gpu
def test_measuring_a_gpu(tmp_path):
    g = unet(ngf=3, depth=3)
    weights = random_weights(g)
    engine = make_engine(
        g, weights, EngineOptions("cuda:0", gpu_layers="auto", plan=tmp_path / "plan.json", tune="latency")
    )
    with closing(engine):
        assert engine.plan == read(tmp_path / "plan.json", g)
        x = to_float(pictures(1, 8, 8))
        check_output(engine.run(x), ReferenceEngine(g, weights).run(x), "float32")
