"""What benchmarks on a GPU decide and report, with tiny networks: no figure of theirs is tested."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from bench import checks, common
from bench.gpu import contenders as gpu_contenders
from bench.gpu import kernels as gpu_kernels
from bench.gpu import layers as gpu_layers
from bench.gpu import peers as gpu
from bench.gpu import quality, tune
from bench.gpu import tables as gpu_tables
from bench.peers.engines import Unavailable
from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights
from pix2pix.plans import tables as tuned
from pix2pix.plans.algorithms import algorithms
from pix2pix.plans.heuristics import choose
from tests.gpu.gpus import MISSING, SIMULATED
from tests.models import pictures

TINY = unet(ngf=4, depth=4)
WEIGHTS = {name: w * 5 if name.endswith("kernel") else w for name, w in random_weights(TINY).items()}
PEAKS = dict.fromkeys(gpu_contenders.PRECISIONS, 100.0)


def needs_simulator(test):
    """Decorator: a test that takes networks as tiny as the simulator's kernels."""
    reason = MISSING or "needs NUMBA_ENABLE_CUDASIM=1"
    return pytest.mark.gpu(pytest.mark.skipif(bool(MISSING) or not SIMULATED, reason=reason)(test))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where results go instead, and the tables of GPUs; networks are tiny and blocks short meanwhile."""
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "plans")
    monkeypatch.setattr(common, "images", lambda n: pictures(n, 16, 16))
    for module in (gpu, gpu_layers, tune):
        monkeypatch.setattr(module, "model", lambda: (TINY, WEIGHTS))
    monkeypatch.setattr(gpu, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(gpu_kernels, "BLOCKS", 1)
    monkeypatch.setattr(gpu_kernels, "GRAPH_SECONDS", 0.0)
    return tmp_path


def test_without_a_gpu_they_say_that_nothing_is_measured(results, capsys, monkeypatch):
    def none():
        raise RuntimeError("no GPU can be used: there is none")

    monkeypatch.setattr("pix2pix.devices.count_gpus", none)
    for program in (gpu, gpu_layers, quality, tune):
        assert program.main([]) == 0
        assert capsys.readouterr().out.startswith("not measured: no CUDA device (no GPU can be used")
    assert list(results.iterdir()) == []


# -- comparing ----------------------------------------------------------------------------------------------------


def contender(precision: str, output: np.ndarray, off: float = 0.0) -> gpu_contenders.Contender:
    """One that does nothing, and whose output is ``off`` by so much."""
    wrong = output + np.float32(off)
    return gpu_contenders.Contender(
        precision, lambda calls: None, lambda: wrong, lambda calls: None, lambda: checks.to_bytes(wrong)
    )


@pytest.fixture(scope="module")
def case():
    """Pictures, the oracle, and what it makes of them."""
    b, oracle = pictures(3, 16, 16), checks.Oracle(TINY, WEIGHTS)
    return b, oracle, ReferenceEngine(TINY, WEIGHTS).run(to_float(b))


def test_what_is_wrong_is_left_out_and_ours_is_said_to_be(case):
    b, oracle, right = case
    untranslated = gpu_contenders.Contender(
        "float32", lambda calls: None, lambda: right, lambda calls: None, lambda: 255 - checks.to_bytes(right)
    )

    def unavailable():
        raise Unavailable("no compiler\nand more lines")

    makers = {
        "pix2pix-float32": partial(contender, "float32", right),
        "pix2pix-float16": partial(contender, "float16", right, 0.012),  # 44 dB
        "torch-graph-float16": partial(contender, "float16", right, 0.012),
        "torch-graph-float32": partial(contender, "float32", right, 0.01),
        "torch-eager-float32": lambda: untranslated,
        "torch-compile-float16": unavailable,
    }
    comparison = gpu.Comparison(b, makers, oracle)
    assert list(comparison.contenders) == ["pix2pix-float32", "torch-graph-float16"]
    assert comparison.wrong == [f"pix2pix-float16, N=3: {comparison.unavailable['pix2pix-float16, N=3']}"]
    assert "at least 45" in comparison.wrong[0]
    assert "translating" in comparison.unavailable["torch-eager-float32, N=3"]
    assert comparison.unavailable["torch-compile-float16, N=3"] == "no compiler"


def test_sides_take_turns_and_as_many_calls_as_fit(monkeypatch):
    monkeypatch.setattr(gpu, "BLOCK_SECONDS", 0.0)
    calls: list[tuple[str, int]] = []
    seconds = gpu.take_turns({name: partial(lambda name, n: calls.append((name, n)), name) for name in "ab"}, 3)
    assert [name for name, _ in calls] == ["a", "a", "b", "b", *"ab", *"ba", *"ab"]
    assert {len(taken) for taken in seconds.values()} == {3} and calls[-1] == ("b", 2)


def run_of(rates: dict[str, tuple[float, ...]], n: int) -> dict:
    """A run as it is saved, with these images/s by engine: resident, stream and translate."""
    engines = {}
    for name, values in rates.items():
        ways = {
            way: common.rates([n / rate], n, 10**9, 1e5) | {"block_images_per_s": [rate]}
            for way, rate in zip(gpu_tables.WAYS, values, strict=True)
        }
        engines[name] = {"precision": name.rsplit("-", 1)[1], "settings": "none", "psnr_db": 50.0, **ways}
    return {"n": n, "engines": engines}


def test_ratios_are_against_the_best_peer_of_the_same_precision():
    ours, tf32 = (30000.0, 28500.0, 9000.0), (9000.0, 9000.0, 9000.0)
    peers = {"torch-graph-float16": (20000.0, 9000.0, 100.0), "torch-compile-float16": (25000.0, 8000.0, 100.0)}
    runs = [
        run_of({"pix2pix-float16": ours, "pix2pix-tf32": tf32, **peers}, 64),
        run_of({"pix2pix-float16": (1.0, 1.0, 2500.0), "torch-graph-float16": (1.0, 1.0, 1250.0)}, 1),
    ]
    float16, alone, single = gpu_tables.ratio_rows(runs)
    assert float16[:4] == ["N=64, float16", "30000", 1.2, "torch-compile-float16"]
    assert float16[4:7] == ["28500", 3.167, "torch-graph-float16"]
    assert alone[2:4] == [None, None] and single[0] == "N=1, float16"
    targets = {what: (measured, required, goal) for what, measured, required, goal in gpu_tables.target_rows(runs)}
    assert targets == {
        "float16, N=64, resident, against torch-compile-float16": (1.2, 1.0, 1.3),
        "float16, N=64, resident, images/s": (30000, None, 30000),
        "float16, N=64, stream as a share of resident": (0.95, 0.9, 0.95),
        "tf32, N=64, resident, images/s": (9000, None, 14000),
        "tf32, N=64, stream as a share of resident": (1.0, 0.9, 0.95),
        "float16, N=1, host to host, ms": (0.4, 0.8, 0.35),
        "the same of torch-graph-float16, for comparison": (0.8, None, None),
    }
    assert "| pix2pix-float16 | 30000.0 | 30000.0 | 2.133 | 30.0 | 30.0% | 28500.0 |" in gpu_tables.run_table(runs[0])


@pytest.mark.full
def test_plots_are_drawn_of_what_there_is(results):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install pix2pix[peers]")
    from bench.gpu import plots as gpu_plots

    assert gpu_plots.main([]) == 0 and list(results.iterdir()) == []
    rates = {
        "pix2pix-float16": (3.0, 3.0, 3.0),
        "torch-graph-float16": (2.0, 2.0, 2.0),
        "pix2pix-tf32": (1.0, 1.0, 1.0),
    }
    (results / "gpu-1.json").write_text(json.dumps({"runs": [run_of(rates, 1), run_of(rates, 8)]}))
    row = {"layer": "encoder_1", "gflops": 5.0, "roof_gflops": 9.0}
    run = {"n": 8, "precision": "float16", "layers": [{"layer": "input", "gflops": None}, row]}
    (results / "gpu-layers.json").write_text(json.dumps({"runs": [run]}))
    assert gpu_plots.main([]) == 0
    text = (results / "gpu-throughput.svg").read_text()
    assert "PyTorch at its best, float16" in text and "pix2pix, tf32" in text and "at its best, tf32" not in text
    assert "float16, N=8" in (results / "gpu-roofline.svg").read_text()


# -- PyTorch ------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("precision", "way"), [("float32", "eager"), ("tf32", "eager"), ("bfloat16", "eager"), ("float32", "compile")]
)
def test_pytorch_takes_part(precision, way, case, tmp_path):
    pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.gpu import pytorch as gpu_torch
    from bench.peers import torch_network

    b, oracle, _ = case
    torch_network.write(tmp_path / "model.pt", TINY, WEIGHTS)
    name = f"torch-{way}-{precision}"
    make = partial(gpu_torch.torch_on_gpu, tmp_path / "model.pt", b, "cpu", precision, way)
    comparison = gpu.Comparison(b, {name: make}, oracle)
    assert not comparison.unavailable
    assert comparison.contenders[name].settings.removeprefix("norms by ") in gpu_torch.NORMS
    run = comparison.time(1, TINY.flops(), PEAKS)
    assert all(run["engines"][name][way]["median_images_per_s"] > 0 for way in gpu_tables.WAYS)


@pytest.mark.full
@pytest.mark.parametrize("n", [1, 2])
def test_pytorch_is_compiled_once(n, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.gpu import pytorch as gpu_torch
    from bench.peers import torch_network

    torch_network.write(tmp_path / "model.pt", TINY, WEIGHTS)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    peer = gpu_torch.torch_on_gpu(tmp_path / "model.pt", pictures(n, 16, 16), "cpu", "float32", "compile")
    peer.run(2), peer.translate()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.full
def test_pytorchs_norms_are_the_same_norm():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.gpu.pytorch import NORMS

    x, gamma, beta = torch.randn(2, 5, 4, 6), torch.randn(5), torch.randn(5)
    first, *others = (norm(x, 5, gamma, beta, 1e-3) for norm in NORMS.values())
    assert len(others) == 3 and all(torch.allclose(first, other, atol=1e-5) for other in others)


class FakeCuda:
    """In place of torch.cuda, on a machine without: work is done at once, and a log tells what waited for what."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def synchronize(self, device=None) -> None:
        self.log.append("synchronize")

    def current_stream(self) -> FakeStream:
        return FakeStream(self)

    Stream = Event = current_stream

    def stream(self, stream):
        from contextlib import nullcontext

        return nullcontext()


class FakeStream:
    """A stream or an event."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def wait_event(self, event) -> None:
        self.cuda.log.append("wait_event")

    def synchronize(self) -> None:
        self.cuda.log.append("event.synchronize")

    def record(self) -> None:
        self.cuda.log.append("record")


@pytest.mark.full
def test_pytorch_streams_in_slots(case, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.gpu import pytorch as gpu_torch
    from bench.peers import torch_network

    b, _, right = case
    torch_network.write(tmp_path / "model.pt", TINY, WEIGHTS)
    peer = gpu_torch.TorchOnGpu(tmp_path / "model.pt", b, "cpu", "float32", "eager")
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    peer.slots = [gpu_torch.Slot(b, peer._on_device, "cpu") for _ in range(gpu_torch.SLOTS)]
    for slot in peer.slots:
        slot.copied, slot.computed, slot.fetched = (cuda.Event() for _ in range(3))
        slot.b.zero_(), slot.result.zero_()
    peer.device = "cuda"
    peer.stream(5)
    once = ["event.synchronize", "record", "wait_event", "record", "wait_event", "record"]
    assert cuda.log == [*once * 5, "synchronize"]
    for slot in peer.slots:
        checks.check_images("a slot", slot.result.numpy(), checks.to_bytes(right))


# -- our engine, in the simulator ---------------------------------------------------------------------------------


@needs_simulator
def test_the_gpu_engine_takes_part_in_as_many_parts_as_it_makes(case, results, monkeypatch):
    from pix2pix.gpu.engine import GpuEngine

    b, oracle, _ = case
    with GpuEngine(TINY, WEIGHTS) as engine:
        engine.pixels_at_once = 2 * 16 * 16
        comparison = gpu.Comparison(b, {"pix2pix-float32": partial(gpu_contenders.resident, engine, b)}, oracle)
        expected = engine.translate(b)
        parts: list[int] = []
        walk = type(engine._sizes[2, 16, 16].forward)
        compute = walk.compute
        monkeypatch.setattr(walk, "compute", lambda self, *rest: parts.append(self.n) or compute(self, *rest))
        comparison.contenders["pix2pix-float32"].run(1)
        assert parts == [2, 1]
        run = comparison.time(1, TINY.flops(), PEAKS)
        np.testing.assert_array_equal(comparison.contenders["pix2pix-float32"].translate(), expected)
    assert "\n| pix2pix-float32 |" in gpu_tables.run_table(run)


@needs_simulator
def test_every_launch_is_timed(results):
    from bench.gpu import peak as gpu_peak
    from pix2pix.gpu.engine import GpuEngine

    b = pictures(1, 16, 16)
    with GpuEngine(TINY, WEIGHTS) as engine:
        expected = engine.translate(b)
        peak = {**gpu_peak.measure(engine), "cublas_gflops": PEAKS}
        assert peak["fma_gflops"] > 0 and peak["bandwidth_gbs"] > 0
        rows, kernels = gpu_layers.roofline(engine, b, peak), gpu_kernels.measure(engine, b)
        np.testing.assert_array_equal(engine.translate(b), expected)  # what has measured it has let go of it
    assert (kernels[0]["kernel"], kernels[-1]["kernel"]) == ("from_picture", "to_picture")
    constant = lower(TINY).constants(16, 16)
    assert constant and [row["layer"] for row in rows if row["gflops"]] == [
        layer.name for layer in TINY.layers if layer.name not in constant
    ]
    assert [row["kernel"] for row in kernels].count("gemm") == len(TINY.layers) - len(constant)
    assert all(row["us"] > 0 for row in rows) and all(0 < row["of_roof"] for row in rows if row["gflops"])
    assert gpu_tables.layer_table(rows).count("\n") == len(rows) + 2
    assert gpu_tables.kernel_table(kernels).count("\n") == len(kernels) + 1


def test_a_layers_traffic_is_its_weights_and_maps():
    half, single = (gpu_layers.traffic(TINY, 2, 16, 16, precision) for precision in ("float16", "tf32"))
    first = TINY.layers[0]
    assert half[first.name] == 2 * (16 * 3 * first.filters + 2 * (16 * 16 * 3 + 8 * 8 * first.filters))
    assert single == {name: 2 * size for name, size in half.items()}


# -- quality ------------------------------------------------------------------------------------------------------


def test_quality_is_measured_on_all_models_that_are_there(results, monkeypatch, capsys):
    class Engine(ReferenceEngine):
        """The GPU engine's part, in float32 throughout; bfloat16 is a little off."""

        def __init__(self, g, w, options):
            super().__init__(g, w, np.float32)
            self.off = options.precision == "bfloat16"

        def translate(self, b, out=None):
            return super().translate(b) ^ (3 * self.off)

    monkeypatch.setattr(common, "missing_device", lambda *arguments: "")
    monkeypatch.setattr(quality, "make_engine", Engine)
    monkeypatch.setattr(quality, "demo_model", lambda: (TINY, WEIGHTS, pictures(3, 16, 16)))
    assert quality.main(["--shared", str(results)]) == 0
    record = json.loads((results / "gpu-quality.json").read_text())
    assert list(record["models"]) == ["demo"] and list(record["models"]["demo"]) == list(quality.PRECISIONS)
    assert "edges2cats: left out" in capsys.readouterr().out
    psnr = {precision: entry["least_psnr_db"] for precision, entry in record["models"]["demo"].items()}
    assert (
        38 < psnr["bfloat16"] < 45 < psnr["float32"] and record["models"]["demo"]["bfloat16"]["largest_difference"] >= 3
    )
    assert "| demo, bfloat16 |" in (results / "gpu.md").read_text()
    monkeypatch.setattr(quality, "PSNR", {"bfloat16": 45.0})
    assert quality.main(["--shared", str(results)]) == 1
    assert "WRONG: demo, bfloat16" in capsys.readouterr().out


# -- tuning -------------------------------------------------------------------------------------------------------


def test_the_fastest_algorithm_of_each_layer_makes_the_plan_and_the_table():
    names = tune.candidates(TINY, "float16", False)
    assert sorted(names) == sorted(map(str, algorithms(lower(TINY).ops[0], "cuda", "float16")))
    assert all("split" not in name for name in names[:3]) and "im2col" not in tune.candidates(TINY, "float32", True)
    tuning = tune.Tuning(TINY, WEIGHTS, {"latency": pictures(1, 16, 16)}, "float16", checks.Oracle(TINY, WEIGHTS))
    default = choose(TINY, "latency", None, "float16", "cuda")
    constant = lower(TINY).constants(TINY.size, TINY.size)
    assert constant
    for layer in TINY.layers[:-1]:
        tuning.times["latency"][layer.name] = {name: 1.0 + i for i, name in enumerate(names)}
    tuning.times["latency"]["decoder_2"][names[1]] = 0.5
    plan = tuning.plan("latency")
    plan.check(TINY)
    assert (plan.hardware, plan.precision, plan.tune) == ("cuda", "float16", "latency")
    for name, algorithm in plan.layers.items():
        as_it_was = name in constant or name == "decoder_1"
        assert str(algorithm) == (
            names[1] if name == "decoder_2" else str(default.layers[name]) if as_it_was else names[0]
        )
    table = tuning.table("latency")
    assert table[tuned.shape(TINY, lower(TINY)["decoder_2"])] == names[1]
    assert len(table) == len(TINY.layers) - len(constant) - 1


@needs_simulator
def test_hopper_is_tuned_beside_the_others(results, monkeypatch, capsys):
    g = unet(ngf=64, depth=5)
    names = tune.candidates(g, "float16", True)
    assert names[0] == "hopper-128x256" and all(name.startswith("hopper") for name in names)
    options = ["--precisions", "float16", "--tune", "latency", "--output", str(results / "files")]
    assert tune.main([*options, "--hopper"]) == 0
    assert "not measured: no times" in capsys.readouterr().out

    offered = ["tensor-128x128"]
    monkeypatch.setattr(tune, "algorithms", lambda *layer: offered)
    assert tune.main(options) == 0
    before = json.loads((results / "tune.json").read_text())["precisions"]["float16"]["us"]["latency"]
    offered[:] = ["hopper-128x128"]
    quick = {"hopper-128x128": 1e-9}  # as if such a small layer could go by it
    monkeypatch.setattr(tune.Tuning, "_time", lambda self, *_: self.times["latency"]["decoder_2"].update(quick))
    assert tune.main([*options, "--hopper"]) == 0
    after = json.loads((results / "tune.json").read_text())["precisions"]["float16"]["us"]["latency"]
    assert after == before | {"decoder_2": before["decoder_2"] | {"hopper-128x128": 0.0}}
    plan = json.loads((results / "files" / "plan-cuda-float16-latency.json").read_text())
    assert plan["layers"]["decoder_2"] == "hopper-128x128" and plan["layers"]["decoder_3"] == "tensor-128x128"


@needs_simulator
def test_tuning_writes_what_plans_then_go_by(results, monkeypatch, capsys):
    from pix2pix.devices import gpu_name

    offered = ["im2col", "implicit-128x64", "implicit-32x128-split4", "nothing"]
    monkeypatch.setattr(tune, "algorithms", lambda *layer: offered)
    monkeypatch.setattr(tune, "IMAGES", {"latency": 1, "throughput": 2})
    assert (
        tune.main(["--precisions", "float32", "--output", str(results / "files"), "--tune", "latency,throughput"]) == 1
    )
    record = json.loads((results / "tune.json").read_text())["precisions"]["float32"]
    assert list(record["failed"]) == ["nothing"] and record["left_out"] == []
    constant = lower(TINY).constants(TINY.size, TINY.size)
    for aim in ("latency", "throughput"):
        timed = {name: set(taken) for name, taken in record["us"][aim].items() if name not in constant}
        assert timed and all(taken == set(offered[1:3]) for taken in timed.values())
        plan = choose(TINY, aim, results / "files" / f"plan-cuda-float32-{aim}.json", "float32", "cuda")
        assert choose(TINY, aim, None, "float32", "cuda", gpu_name(0)).layers == plan.layers
        us = record["us"][aim]
        assert all(us[name][str(plan.layers[name])] == min(us[name].values()) for name in timed)
    assert tune.main(["--precisions", "float32", "--seconds", "0"]) == 0
    assert "3 candidates left out, 0 failed" in capsys.readouterr().out


# -- whole programs, in the simulator -----------------------------------------------------------------------------


@needs_simulator
@pytest.mark.full
def test_whole_programs_run_and_make_the_tables(results, monkeypatch):
    pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.gpu import pytorch as gpu_torch

    torch_on_gpu, product = gpu_torch.torch_on_gpu, gpu_torch.product_gflops

    def on_cpu(path, b, device, precision, way):
        return torch_on_gpu(path, b, "cpu", precision, way)

    monkeypatch.setattr(gpu_torch, "torch_on_gpu", on_cpu)
    monkeypatch.setattr(gpu_torch, "product_gflops", lambda device, precision: product("cpu", precision))
    monkeypatch.setattr(gpu_torch, "EDGE", 16)
    for module in (gpu, gpu_layers):
        monkeypatch.setattr(module, "PRECISIONS", ("float32",))
    arguments = ["--precisions", "float32", "--no-compile", "--blocks", "1"]
    assert gpu.main([*arguments, "--batches", "2"]) == gpu.main([*arguments, "--batches", "1"]) == 0
    assert gpu_layers.main(["--batches", "2", "--precisions", "float32"]) == 0
    saved = {path.name for path in results.glob("*.json")}
    assert saved == {"gpu-1.json", "gpu-2.json", "gpu-layers.json"}
    text = (results / "gpu.md").read_text()
    for expected in ("### N=1\n", "### N=2\n", "| torch-graph-float32 |", "### float32, N=2", "| encoder_2, gemm |"):
        assert expected in text
    monkeypatch.setattr(gpu, "BEGIN_UNTIL", 0)
    assert gpu.main([*arguments, "--batches", "3"]) == 0
    assert "not begun" in json.loads((results / "gpu-3.json").read_text())["unavailable"]["N=3"]
