"""What benchmarks decide and report, with tiny networks: no figure of theirs is tested."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from bench import common, gpu, gpu_contenders, gpu_kernels, gpu_tables, mode_b, mode_c, pool, report, scaling, tune
from pix2pix.checkpoints import course
from pix2pix.generator import random_weights, unet
from pix2pix.plan import ALGORITHMS, choose
from tests.models import pictures

TINY = unet(ngf=4, depth=4)
WEIGHTS = {name: w * 5 if name.endswith("kernel") else w for name, w in random_weights(TINY).items()}


def simulated() -> bool:
    """Whether numba is here, and simulates."""
    try:
        from pix2pix._cuda import SIMULATED
    except ImportError:
        return False
    return SIMULATED


needs_simulator = pytest.mark.gpu if simulated() else pytest.mark.skip(reason="needs numba, and NUMBA_ENABLE_CUDASIM=1")


@pytest.fixture
def saved(monkeypatch) -> dict[str, dict]:
    """What benchmarks save, by name, instead of files."""
    records: dict[str, dict] = {}
    monkeypatch.setattr(common, "save", lambda name, record: records.update({name: json.loads(json.dumps(record))}))
    return records


def test_mode_b_says_that_there_is_no_gpu(saved, capsys, monkeypatch):
    def none():
        raise RuntimeError("no GPU can be used: there is none")

    monkeypatch.setattr("pix2pix.engine._count_gpus", none)
    assert mode_b.main([]) == 0
    assert saved["mode_b"]["not_measured"].startswith("no CUDA device (no GPU can be used")
    assert saved["mode_b"]["settings"] == {}
    printed = capsys.readouterr().out
    assert "mode_b: not measured: no CUDA device" in printed and "12.40" in printed and "49.80" in printed
    for other in (gpu, tune):
        assert other.main([]) == 0
        assert capsys.readouterr().out.startswith("not measured: no CUDA device")
    assert list(saved) == ["mode_b"]


def test_mode_c_says_that_there_are_not_four_gpus(saved, capsys, monkeypatch):
    monkeypatch.setattr("pix2pix.engine._count_gpus", lambda: 1)
    assert mode_c.main([]) == 0
    assert "no four CUDA devices (device cuda:1: this machine has cuda:0 alone)" in saved["mode_c"]["not_measured"]
    printed = capsys.readouterr().out
    assert "not measured" in printed and "37.50" in printed and "159.40" in printed


def test_the_pool_is_measured_on_fake_devices(saved):
    assert pool.main(["--rounds", "1", "--batches", "32"]) == 0
    entries = saved["pool-fake"]["efficiency"]
    assert [entry["batches"] for entry in entries] == [32, 4] * 4
    assert all(0 < entry[way]["median"] <= 1.01 for entry in entries for way in ("stream", "translate"))


def test_the_pool_is_measured_on_the_cpu_with_any_number_of_workers(saved, monkeypatch):
    network = unet(ngf=2, depth=8)

    def write_network(path):
        weights = random_weights(network.with_statistics("running"))
        with path.open("wb") as file:
            for name in course.tensors(network):
                weights[name].astype("<f4").tofile(file)

    monkeypatch.setattr(pool, "write_network", write_network)
    assert pool.main(["--device", "cpu", "--rounds", "1", "--images", "4", "--batch", "2"]) == 0
    record = saved["pool-cpu"]
    assert list(record["workers"]) == ["1", "2", "4", "8", "16"] and record["workers"]["1"]["against_one"] == 1
    assert pool.main(["--device", "cuda:99"]) == 0
    assert saved["pool-cuda"]["not_measured"].startswith("no such device")


def test_the_fastest_algorithm_of_each_layer_makes_the_plan():
    default = choose(TINY, "latency", hardware="cuda")
    names = ALGORITHMS["cuda"]
    constant = TINY.constant_layers(TINY.size, TINY.size)
    assert constant
    times = {layer.name: {name: 1.0 + i for i, name in enumerate(names)} for layer in TINY.layers}
    times["decoder_2"][names[1]] = 0.5
    plan = tune.fastest(TINY, times, "latency")
    plan.check(TINY)
    assert (plan.hardware, plan.tune, plan.layers["decoder_2"]) == ("cuda", "latency", names[1])
    for name, algorithm in plan.layers.items():
        assert name == "decoder_2" or algorithm == (default.layers[name] if name in constant else names[0])


def test_a_contender_that_is_wrong_is_left_out_but_never_ours():
    b = pictures(3, 16, 16)
    oracle = gpu.Oracle(TINY, WEIGHTS)
    right = np.stack([oracle._engine.run(x) for x in gpu.to_float(b)])

    def maker(output: np.ndarray):
        return lambda: gpu_contenders.Contender(lambda calls: None, lambda: output)

    wrong = right.copy()
    wrong[-1] += 0.01
    comparison = gpu.Comparison(b, {gpu.OURS: maker(right), "other": maker(wrong)}, oracle)
    assert list(comparison.contenders) == [gpu.OURS] and "not timed" in comparison.unavailable["other"]
    with pytest.raises(RuntimeError, match="not timed"):
        gpu.Comparison(b, {gpu.OURS: maker(wrong)}, oracle)


@pytest.mark.full
def test_pytorch_takes_part():
    pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    b = pictures(3, 16, 16)
    makers = {
        name: partial(gpu_contenders.torch_network, TINY, WEIGHTS, b, "cpu", **options)
        for name, options in gpu.TORCH.items()
        if not options.get("compiled")
    }
    comparison = gpu.Comparison(b, makers, gpu.Oracle(TINY, WEIGHTS))
    assert list(comparison.contenders) == list(makers)
    run = comparison.time(1, TINY.flops(), 1.0) | {"host": {}}
    assert all(entry["median_images_per_s"] > 0 for entry in run["engines"].values())
    assert gpu_tables.run_table(run).count("\n| torch-eager") == 2


@needs_simulator
def test_the_gpu_engine_takes_part(monkeypatch):
    from pix2pix.gpu import GpuEngine

    monkeypatch.setattr(gpu, "BLOCK_SECONDS", 0.0)
    b = pictures(2, 16, 16)
    with GpuEngine(TINY, WEIGHTS) as engine:
        makers = {gpu.OURS: partial(gpu_contenders.resident, engine, b)}
        comparison = gpu.Comparison(b, makers, gpu.Oracle(TINY, WEIGHTS))
        run = comparison.time(1, TINY.flops(), 1.0)
        run["host"] = gpu.host_to_host(engine, b, 1)
    assert run["engines"][gpu.OURS]["ours_over_this"] == 1.0
    table = gpu_tables.run_table(run)
    assert all(f"\n| {line} |" in table for line in ("pix2pix", "pix2pix, stream", "pix2pix, translate"))


@needs_simulator
def test_every_launch_is_timed(monkeypatch):
    from bench import gpu_peak
    from pix2pix.gpu import GpuEngine

    monkeypatch.setattr(gpu_kernels, "BLOCKS", 1)
    monkeypatch.setattr(gpu_kernels, "GRAPH_SECONDS", 0.0)
    b = pictures(1, 16, 16)
    with GpuEngine(TINY, WEIGHTS) as engine:
        expected = engine.translate(b)
        rows = gpu_kernels.measure(engine, b)
        multiplied = [row["layer"] for row in rows if row["kernel"] == "multiply"]
        constant = TINY.constant_layers(16, 16)
        assert multiplied == [layer.name for layer in TINY.layers if layer.name not in constant]
        assert all(row["gflops"] is not None and row["gbs"] is not None for row in rows if row["kernel"] == "multiply")
        assert rows[0]["kernel"] == "from_picture" and rows[-1]["kernel"] == "to_picture"
        assert set(gpu_peak.measure(engine)) == {"fma_gflops", "bandwidth_gbs"}
        np.testing.assert_array_equal(engine.translate(b), expected)  # what has measured it has let go of it
    table = gpu_tables.kernel_table(rows, {"fma_gflops": 1.0, "bandwidth_gbs": 1.0})
    assert table.count("\n") == len(rows) + 2


@needs_simulator
def test_candidates_are_timed_by_layer(monkeypatch):
    monkeypatch.setattr(gpu_kernels, "BLOCKS", 1)
    monkeypatch.setattr(gpu_kernels, "GRAPH_SECONDS", 0.0)
    candidates = ALGORITHMS["cuda"][:2]
    times = tune.time_candidates(TINY, WEIGHTS, pictures(1, 16, 16), "cuda:0", candidates)
    for layer in TINY.layers:
        if layer.name not in TINY.constant_layers(16, 16):
            assert set(times[layer.name]) == set(candidates) and min(times[layer.name].values()) > 0


@pytest.mark.parametrize("simulate", [scaling.simulate_files, scaling.simulate_wire])
def test_simulated_ranks_scale_until_rank_0_is_busy(simulate):
    costs = {"rank_0_s": 1e-3, "round_trip_s": 2e-3}
    results = {n: simulate(n, 10_000, 1e-2, costs) for n in (1, 2, 8, 1024)}
    assert results[1] == {"images_per_s": 100, "efficiency": 1, "rank_0_busy": 0}
    assert all(0.97 < results[n]["efficiency"] <= 1 for n in (2, 8))
    free = simulate(1024, 10_000, 1e-2, {"rank_0_s": 0.0, "round_trip_s": 0.0})
    assert results[1024]["efficiency"] < free["efficiency"] <= 1 and results[1024]["rank_0_busy"] > 0.5


def test_the_report_has_all_modes():
    table = report.table()
    for mode in ("A | CPU", "B | CPU and one GPU", "C | four GPUs", "D | four nodes of four GPUs", "D | CPU"):
        assert f"| {mode} |" in table
    for rate in ("5.5", "37.5", "72.0", "159.4", "258.5"):
        assert f"| {rate} |" in table
