"""Tables of what was measured on kinds of GPUs: how layers are found in them, and that plans go by them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pix2pix.engines.measured_placement import find
from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.plans import tables as tuned
from pix2pix.plans.algorithms import algorithms
from pix2pix.plans.heuristics import choose
from pix2pix.plans.placements import decide
from pix2pix.plans.plan import TUNES, Plan
from pix2pix.plans.precisions import PRECISIONS
from tests.gpu.gpus import needs_gpu
from tests.models import VARIANTS, check_output, pictures, weights_of

GPU = "NVIDIA T1000 (8 GB)"
STANDARD = unet(ngf=64, depth=8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the package has its tables meanwhile."""
    monkeypatch.setattr(tuned, "FOLDER", tmp_path / "plans")
    return tmp_path / "plans"


def test_layers_are_known_by_their_shapes():
    shapes = {op.name: tuned.shape(STANDARD, op) for op in lower(STANDARD).ops}
    assert shapes["encoder_1"] == "conv 128x128 3-64"
    assert shapes["encoder_4"] == "conv 16x16 256-512"
    assert shapes["decoder_4"] == "deconv 16x16 1024-256"
    assert shapes["decoder_1"] == "image 128x128 128-3"
    assert shapes["decoder_6"] != shapes["decoder_7"] and shapes["encoder_7"] != shapes["encoder_8"]


def test_a_plan_goes_by_what_was_measured_on_that_gpu(folder):
    default, layer = choose(STANDARD, "latency", None, "float16", "cuda"), "decoder_4"
    assert choose(STANDARD, "latency", None, "float16", "cuda", GPU) == default
    by_rule = {choose(STANDARD, tune, None, "float16", "cuda").layers[layer] for tune in TUNES}
    other = next(name for name in algorithms(lower(STANDARD)[layer], "cuda", "float16") if name not in by_rule)
    file = tuned.save(
        GPU, {"driver": "1.2"}, {"float16": {"latency": {tuned.shape(STANDARD, lower(STANDARD)[layer]): str(other)}}}
    )
    assert file == folder / "NVIDIA-T1000-8-GB.json"
    measured = Plan({**default.layers, layer: other}, "cuda", "float16", "latency")
    assert choose(STANDARD, "latency", None, "float16", "cuda", GPU) == measured
    assert decide(STANDARD, None, None, "float16", "latency", GPU) == measured
    for precision, tune, gpu in (
        ("float16", "throughput", GPU),
        ("tf32", "latency", GPU),
        ("float16", "latency", "NVIDIA T1000"),
        ("float16", "latency", None),
    ):
        assert choose(STANDARD, tune, None, precision, "cuda", gpu) == choose(STANDARD, tune, None, precision, "cuda")
    assert choose(STANDARD, "latency", str(other), "float16", "cuda", GPU).layers["encoder_4"] == other
    assert choose(STANDARD, "latency", default, "float16", "cuda", GPU) == default
    for g, layers in ((unet(ngf=32, depth=8), []), (unet(ngf=64, depth=7), [layer]), (STANDARD, [layer])):
        plans = (
            choose(g.with_overrides({"size": 256}), "latency", None, "float16", "cuda", gpu) for gpu in (GPU, None)
        )
        ours, rules = (plan.layers for plan in plans)
        assert [name for name in ours if ours[name] != rules[name]] == layers


def test_a_placement_that_is_measured_has_what_was_measured_on_that_gpu(folder, tmp_path):
    g = VARIANTS["tensorflow"]
    layer = lower(g).ops[2]
    tuned.save(GPU, {}, {"float32": {"latency": {tuned.shape(g, layer): "im2col"}}})

    def engines():
        return tuple(ReferenceEngine(g, weights_of("tensorflow"), np.float32) for _ in range(2))

    plan = find(g, tmp_path / "auto.json", "float32", "latency", engines, GPU)
    on_gpu = choose(g, "latency", hardware="cuda", processor=GPU)
    assert str(on_gpu.layers[layer.name]) == "im2col" != str(choose(g, "latency", hardware="cuda").layers[layer.name])
    assert all(plan.layers[name] == on_gpu.layers[name] for name in plan.layers_on("cuda"))


def test_what_is_measured_again_replaces_the_same_aim_alone(folder):
    tuned.save(GPU, {"commit": "a"}, {"tf32": {"latency": {"a": "1"}, "throughput": {"a": "2"}}})
    file = tuned.save(GPU, {"commit": "b"}, {"tf32": {"latency": {"b": "3"}}, "float16": {"latency": {"a": "4"}}})
    assert tuned.tables(GPU) == {
        "tf32": {"latency": {"b": "3"}, "throughput": {"a": "2"}},
        "float16": {"latency": {"a": "4"}},
    }
    assert json.loads(file.read_text())["gpu"] == GPU and json.loads(file.read_text())["commit"] == "b"
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"T1000-8-GB.json should hold what was measured on NVIDIA T1000 \(8 GB\)"):
        choose(STANDARD, "latency", hardware="cuda", processor=GPU)


def test_the_tables_of_the_package_hold_what_engines_can_do():
    for file in tuned.FOLDER.glob("*.json"):
        gpu = json.loads(file.read_text(encoding="utf-8"))["gpu"]
        assert tuned.path(gpu) == file
        for precision, aims in tuned.tables(gpu).items():
            assert precision in PRECISIONS and set(aims) <= set(TUNES)
            known = algorithms(lower(STANDARD).ops[0], "cuda", precision)
            assert all(set(table.values()) <= set(known) for table in aims.values())


@needs_gpu
def test_the_gpu_engine_looks_itself_up(folder):
    from pix2pix.devices import gpu_name
    from pix2pix.gpu.engine import GpuEngine

    g = VARIANTS["tensorflow"]
    shapes = [tuned.shape(g, op) for op in lower(g).ops]
    tuned.save(gpu_name(0), {}, {"float32": {"throughput": dict.fromkeys(shapes, "im2col")}})
    x = to_float(pictures(1, 32, 32))
    with GpuEngine(g, weights_of("tensorflow")) as engine, engine.share() as another:
        assert set(map(str, engine.plan.layers.values())) == {"im2col"} and another.plan == engine.plan
        check_output(engine.run(x), ReferenceEngine(g, weights_of("tensorflow")).run(x), "float32")
    with GpuEngine(g, weights_of("tensorflow"), tune="latency") as engine:
        assert "im2col" not in map(str, engine.plan.layers.values())
