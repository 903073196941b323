"""The comparison with PyTorch on a GPU: what it decides and reports. No time or rate is tested."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from bench import checks
from bench.gpu import contenders, layers, peers, quality, tables, tune
from bench.peers.engines import Unavailable

from .tiny import PEAKS, TINY, WEIGHTS, needs_simulator, run_of


def test_without_a_gpu_they_say_that_nothing_is_measured(results, capsys, monkeypatch):
    def none():
        raise RuntimeError("no GPU can be used: there is none")

    monkeypatch.setattr("pix2pix.devices.count_gpus", none)
    for program in (peers, layers, quality, tune):
        assert program.main([]) == 0
        assert capsys.readouterr().out.startswith("not measured: no CUDA device (no GPU can be used")
    assert list(results.iterdir()) == []


def contender(precision: str, output: np.ndarray, off: float = 0.0) -> contenders.Contender:
    """One that does nothing, and whose output is ``off`` by so much."""
    wrong = output + np.float32(off)
    return contenders.Contender(
        precision, lambda calls: None, lambda: wrong, lambda calls: None, lambda: checks.to_bytes(wrong)
    )


def test_what_is_wrong_is_left_out_and_ours_is_said_to_be(case):
    b, oracle, right = case
    untranslated = contenders.Contender(
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
    comparison = peers.Comparison(b, makers, oracle)
    assert list(comparison.contenders) == ["pix2pix-float32", "torch-graph-float16"]
    assert comparison.wrong == [f"pix2pix-float16, N=3: {comparison.unavailable['pix2pix-float16, N=3']}"]
    assert "at least 45" in comparison.wrong[0]
    assert "translating" in comparison.unavailable["torch-eager-float32, N=3"]
    assert comparison.unavailable["torch-compile-float16, N=3"] == "no compiler"


def test_sides_take_turns_and_as_many_calls_as_fit(monkeypatch):
    monkeypatch.setattr(peers, "BLOCK_SECONDS", 0.0)
    calls: list[tuple[str, int]] = []
    seconds = peers.take_turns({name: partial(lambda name, n: calls.append((name, n)), name) for name in "ab"}, 3)
    assert [name for name, _ in calls] == ["a", "a", "b", "b", *"ab", *"ba", *"ab"]
    assert {len(taken) for taken in seconds.values()} == {3} and calls[-1] == ("b", 2)


def test_precisions_of_a_batch_size_that_were_measured_apart_are_joined():
    runs = [run_of({f"pix2pix-{name}": (1.0, 1.0, 1.0)}, n) for n, name in ((64, "tf32"), (1, "tf32"), (64, "float16"))]
    first, second = tables.joined(runs)
    assert (first["n"], list(first["engines"])) == (1, ["pix2pix-tf32"])
    assert (second["n"], list(second["engines"])) == (64, ["pix2pix-tf32", "pix2pix-float16"])


def test_ratios_are_against_the_best_peer_of_the_same_precision():
    ours, tf32 = (30000.0, 28500.0, 9000.0), (9000.0, 9000.0, 9000.0)
    others = {"torch-graph-float16": (20000.0, 9000.0, 100.0), "torch-compile-float16": (25000.0, 8000.0, 100.0)}
    runs = [
        run_of({"pix2pix-float16": ours, "pix2pix-tf32": tf32, **others}, 64),
        run_of({"pix2pix-float16": (1.0, 1.0, 2500.0), "torch-graph-float16": (1.0, 1.0, 1250.0)}, 1),
    ]
    float16, alone, single = tables.ratio_rows(runs)
    assert float16[:4] == ["N=64, float16", "30000", 1.2, "torch-compile-float16"]
    assert float16[4:7] == ["28500", 3.167, "torch-graph-float16"]
    assert alone[2:4] == [None, None] and single[0] == "N=1, float16"
    targets = {what: (measured, required, goal) for what, measured, required, goal in tables.target_rows(runs)}
    assert targets == {
        "float16, N=64, resident, against torch-compile-float16": (1.2, 1.0, 1.3),
        "float16, N=64, resident, images/s": (30000, None, 30000),
        "float16, N=64, stream as a share of resident": (0.95, 0.9, 0.95),
        "tf32, N=64, resident, images/s": (9000, None, 14000),
        "tf32, N=64, stream as a share of resident": (1.0, 0.9, 0.95),
        "float16, N=1, host to host, ms": (0.4, 0.8, 0.35),
        "the same of torch-graph-float16, for comparison": (0.8, None, None),
    }
    assert "| pix2pix-float16 | 30000.0 | 30000.0 | 2.133 | 30.0 | 30.0% | 28500.0 |" in tables.run_table(runs[0])


@needs_simulator
def test_the_gpu_engine_takes_part_in_as_many_parts_as_it_makes(case, results, monkeypatch):
    from pix2pix.gpu.engine import GpuEngine

    b, oracle, _ = case
    with GpuEngine(TINY, WEIGHTS) as engine:
        engine.chunks.pixels = 2 * 16 * 16
        comparison = peers.Comparison(b, {"pix2pix-float32": partial(contenders.resident, engine, b)}, oracle)
        expected = engine.translate(b)
        parts: list[int] = []
        kind = type(engine.forward_pass.contexts[2, 16, 16])
        set_images = kind.set_images
        monkeypatch.setattr(kind, "set_images", lambda self, b: parts.append(self.n) or set_images(self, b))
        comparison.contenders["pix2pix-float32"].run(1)
        assert parts == [2, 1]
        run = comparison.time(1, TINY.flops(), PEAKS)
        np.testing.assert_array_equal(comparison.contenders["pix2pix-float32"].translate(), expected)
    assert "\n| pix2pix-float32 |" in tables.run_table(run)


@needs_simulator
@pytest.mark.full
def test_whole_programs_run_and_make_the_tables(results, monkeypatch):
    pytest.importorskip("torch", reason="needs PyTorch: pip install pix2pix[train]")
    from bench.gpu import pytorch

    torch_on_gpu, product = pytorch.torch_on_gpu, pytorch.product_gflops

    def on_cpu(path, b, device, precision, way):
        return torch_on_gpu(path, b, "cpu", precision, way)

    monkeypatch.setattr(pytorch, "torch_on_gpu", on_cpu)
    monkeypatch.setattr(pytorch, "product_gflops", lambda device, precision: product("cpu", precision))
    monkeypatch.setattr(pytorch, "EDGE", 16)
    for module in (peers, layers):
        monkeypatch.setattr(module, "PRECISIONS", ("float32",))
    arguments = ["--precisions", "float32", "--no-compile", "--blocks", "1"]
    assert peers.main([*arguments, "--batches", "2"]) == peers.main([*arguments, "--batches", "1"]) == 0
    assert layers.main(["--batches", "2", "--precisions", "float32"]) == 0
    saved = {path.name for path in results.glob("*.json")}
    assert saved == {"gpu-1.json", "gpu-2.json", "gpu-layers.json"}
    text = (results / "gpu.md").read_text()
    for expected in (
        "### N=1\n",
        "### N=2\n",
        "| torch-graph-float32 |",
        "### float32, N=2",
        "| encoder_2, simt_gemm |",
    ):
        assert expected in text
    monkeypatch.setattr(peers, "BEGIN_UNTIL", 0)
    assert peers.main([*arguments, "--batches", "3"]) == 0
    assert "not begun" in json.loads((results / "gpu-3.json").read_text())["unavailable"]["N=3"]
