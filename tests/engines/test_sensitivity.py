"""What is lost in 8-bit integers: predicted, and computed by the emulation; and the layers that stay out of them."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from pix2pix.cpu.engine import CpuEngine
from pix2pix.engines import sensitivity
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.engines.sensitivity import output_losses, probe_image, sensitive_layers
from pix2pix.model.generator import Norm
from pix2pix.model.lowering import lower
from pix2pix.model.quantisation import quantise_all, ranges
from pix2pix.model.resnet import resnet
from pix2pix.model.weights import fold, random_weights
from pix2pix.plans import tables
from pix2pix.plans.algorithms import Algorithm, algorithms
from pix2pix.plans.heuristics import choose
from tests.cpu.isas import INT8
from tests.cpu.test_layers import CASES
from tests.engines import layers
from tests.models import VARIANTS, weights_of, with_cancelling_layer

NETWORKS = {name: (VARIANTS[name], weights_of(name)) for name in ("tensorflow", "pytorch", "no-norm", "running")}
NETWORKS |= {name: CASES[name] for name in CASES if name not in ("blur", "average")}  # which have no integers
NETWORKS["blocks"] = (resnet(ngf=8, blocks=4), random_weights(resnet(ngf=8, blocks=4)))


def plans(generator):
    """The plans by name that it has layers for."""
    found = {str(algorithm) for op in lower(generator).ops for algorithm in algorithms(op, precision="int8")}
    return sorted(found & {"int8", "int8-winograd2"})


PREDICTED = [(name, plan, "squares") for name in NETWORKS for plan in plans(NETWORKS[name][0])]
PREDICTED += [
    (name, plan, "drawing")
    for name in ("tensorflow", "pytorch", "resnet", "blocks")
    for plan in ("int8", "int8-winograd2")
]


@pytest.mark.parametrize("name, plan, picture", PREDICTED)
def test_losses_are_those_of_the_emulation(name, plan, picture):
    """Each layer's by itself, on the same image: that of squares, or lines on white, where most errors are equal."""
    generator, weights = NETWORKS[name]
    weights = {key: 2 * array if key.endswith("gamma") else array for key, array in weights.items()}
    layers = choose(generator, "latency", plan, precision="int8").layers
    tile_sizes = {layer: algorithm.m for layer, algorithm in layers.items() if algorithm.integers}
    folded, parts = fold(generator, weights)
    program, known = lower(folded), ranges(generator, weights)
    x = probe_image(generator, 0)
    if picture == "drawing":
        x[:] = 1
        x[10:40, 20] = x[40, 20:50] = -1

    def parts_of(layer):
        return {key.rpartition(".")[2]: part for key, part in parts.items() if key.startswith(f"{layer}.")}

    losses = output_losses(program, parts_of, known, tile_sizes, x, range(16))
    quantised = quantise_all(generator, weights, tile_sizes, tile_sizes)
    expected = ReferenceEngine(folded, parts).run(x)
    lost = {}
    for layer in tile_sizes:
        with ReferenceEngine(folded, parts, quantised={layer: quantised[layer]}) as emulation:
            lost[layer] = np.square(emulation.run(x) - expected).mean()
    total = sum(lost.values())
    assert total / 1.6 < sum(losses.values()) < total * 1.6
    for layer in tile_sizes:
        assert lost[layer] / 2.5 - total / 20 < losses[layer] < lost[layer] * 2.5 + total / 20, layer


@pytest.mark.parametrize("norm", [Norm(), Norm(groups=2)])
@pytest.mark.parametrize("activation", ["none", "tanh"])
def test_the_adjoint_of_an_epilogue_is_that_of_its_derivative(norm, activation):
    op = lower(layers.network(layers.body(norm=norm, inner_slope=0.2)))["body"]
    op = dataclasses.replace(op, epilogue=dataclasses.replace(op.epilogue, activation=activation))
    rng = np.random.default_rng(0)
    part = {name: rng.normal(1, 0.5, op.filters) for name in ("bias", "gamma", "beta")}
    y, change, gradient = rng.normal(0, [1, 3, 9, 2], (3, 6, 7, op.filters))
    _, adjoint = sensitivity._epilogue(op, y, part)
    after, before = (sensitivity._epilogue(op, y + step * change, part)[0] for step in (1e-6, -1e-6))
    assert np.sum(gradient * (after - before) / 2e-6) == pytest.approx(np.sum(adjoint(gradient) * change), rel=1e-5)


def test_a_layer_of_which_too_much_is_lost_stays_in_floating_point():
    generator, weights = with_cancelling_layer()
    layers = choose(generator, "throughput", precision="int8").layers
    assert sensitive_layers(generator, weights, layers) == {"encoder_2"}
    assert sensitive_layers(generator, random_weights(generator), layers) == frozenset()
    x = np.stack([probe_image(generator, seed) for seed in range(7, 10)])
    expected = ReferenceEngine(generator, weights).run(x)
    losses = []
    for plan in (None, "int8"):
        for isa in INT8:
            with CpuEngine(generator, weights, precision="int8", isa=isa, plan=plan) as engine:
                kept = [name for name, algorithm in engine.plan.layers.items() if not algorithm.integers]
                losses.append(np.square(engine.run(x) - expected).mean())
            assert kept == ["encoder_1", *([] if plan else ["encoder_2"]), "decoder_1"]
    allowed = 4 / 10 ** (40 / 10)
    assert max(losses[: len(INT8)]) < allowed < min(losses[len(INT8) :])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage", [np.inf, np.nan])
def test_damaged_weights_choose_nothing(damage):
    generator, weights = with_cancelling_layer()
    weights["encoder_2.gamma"] = np.full_like(weights["encoder_2.gamma"], damage)
    assert sensitive_layers(generator, weights, choose(generator, "latency", precision="int8").layers) == frozenset()
    CpuEngine(generator, weights, precision="int8", isa=INT8[0]).close()


def test_layers_are_chosen_after_all_checks_in_the_thread_of_the_engine(monkeypatch):
    generator, weights = with_cancelling_layer()
    threads = []

    def fake(*arguments: object) -> frozenset[str]:
        threads.append(threading.current_thread().name)
        return frozenset()

    monkeypatch.setattr(sensitivity, "sensitive_layers", fake)
    for options in ({"threads": 0}, {"isa": "none"}):
        with pytest.raises((ValueError, RuntimeError), match="got (0 threads|instruction set 'none')"):
            CpuEngine(generator, weights, precision="int8", **options)
    assert not threads
    CpuEngine(generator, weights, precision="int8", isa=INT8[0]).close()
    assert threads == ["pix2pix-cpu_0"]


def test_a_measured_table_does_not_override_it(monkeypatch):
    generator = with_cancelling_layer()[0]
    measured = {tables.shape(generator, op): Algorithm("int8") for op in lower(generator).ops}
    monkeypatch.setattr(tables, "table", lambda *arguments: measured)
    layers = choose(generator, "throughput", precision="int8", kept=["encoder_2"]).layers
    assert not layers["encoder_2"].integers and layers["encoder_3"] == Algorithm("int8")
