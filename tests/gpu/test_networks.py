"""Networks of layers that U-Nets don't have, on a GPU or in Numba's simulator: tests/gpu/ptx runs the real kernels."""

from __future__ import annotations

import numpy as np
import pytest

from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.model.lowering import lower
from pix2pix.model.resnet import resnet
from pix2pix.model.weights import random_weights
from pix2pix.plans.algorithms import supports
from pix2pix.plans.heuristics import choose
from tests.engines.layers import NETWORKS, body, network
from tests.gpu.gpus import MISSING, SIMULATED
from tests.gpu.layers import PRECISIONS, RESNETS, UNUSUAL, check_network, sample
from tests.models import check_layer, pictures

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from pix2pix.gpu.engine import GpuEngine

pytestmark = pytest.mark.gpu
ON_TENSOR_CORES = [(name, precision) for name in (*NETWORKS, *UNUSUAL) for precision in PRECISIONS]
FEW = [("output padding", "float16"), ("residual", "bfloat16")]  # in the simulator: tests/gpu/ptx has all kinds


@pytest.mark.parametrize("name", [*NETWORKS, *UNUSUAL])
def test_every_kind_of_layer(name):
    check_network(name, "float32", None, 2, 8, 12)


@pytest.mark.parametrize("name, precision", FEW if SIMULATED else ON_TENSOR_CORES)
def test_every_kind_of_layer_on_tensor_cores(name, precision):
    check_network(name, precision, None, 2, 8, 12)


@pytest.mark.parametrize("name", ["output padding", "many readers"])
def test_the_courses_plan_computes_other_layers(name):
    check_network(name, "float32", "im2col", 1, 8, 12)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.full] if SIMULATED and name != "small resnet" else []) for name in RESNETS],
)
def test_resnets(name):
    check_network(name, "float32", None, 2, 16, 24)


def test_sums_go_on_from_values_that_were_given_or_kept():
    """The map from which a residual is read holds them too."""
    g, weights = sample("residual")
    x = to_float(pictures(2, 8, 12))
    with GpuEngine(g, weights) as engine:
        known = engine.run(x, outputs=["first", "block", "body", "last"])
        given = {"first": known["first"] * 2, "block": known["block"]}
        expected = ReferenceEngine(g, weights).run(inputs=given, outputs=["body"])["body"]
        check_layer(engine.run(inputs=given, outputs=["body"])["body"], expected, "float32", "body")
        with engine.session() as session:
            session.run({"input": x}, [], ["first"])
            body = session.run({"block": known["block"]}, ["body"], ["body"])["body"]
            last = session.run({}, ["last"])["last"]
    np.testing.assert_array_equal(body, known["body"])
    np.testing.assert_array_equal(last, known["last"])


@pytest.mark.parametrize("tune", ["latency", "throughput"])
@pytest.mark.parametrize("precision", ["float32", *PRECISIONS])
def test_the_published_resnet_has_plans_that_fit_it(precision, tune):
    g = resnet(64, 9)
    plan = choose(g, tune, precision=precision, hardware="cuda")
    plan.check(g)
    assert {a.kind for a in plan.layers.values()} == {"implicit" if precision == "float32" else "tensor"}
    assert str(plan.layers["block_1_1"]) == {
        ("float32", "latency"): "implicit-128x64-split2",
        ("float32", "throughput"): "implicit-128x64",
    }.get((precision, tune), "tensor-128x128-split4" if tune == "latency" else "tensor-128x128")
    if precision != "float32":
        plan = choose(g, tune, "hopper-128x128", precision, "cuda")
        assert plan.layers["first"].kind == "tensor"
        assert all(a.kind == "hopper" for name, a in plan.layers.items() if name.startswith("block"))


def test_what_no_kernel_computes_is_named():
    g = network(body(kernel=17, padding=8))
    assert not supports(lower(g)["body"], "cuda")
    with pytest.raises(ValueError, match=r"no kernel for body \(17x17 convolution.*it takes kernels up to 15x15"):
        GpuEngine(g, random_weights(g))
