"""Which layers run on the GPU: said in words, held by a plan, measured."""

from __future__ import annotations

import itertools
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from pix2pix.cpu.engine import CpuEngine
from pix2pix.engines.hybrid import segments
from pix2pix.engines.measured_placement import Costs, cheapest, find, measure
from pix2pix.engines.reference import ReferenceEngine, to_float
from pix2pix.model.generator import INPUT
from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.plans.heuristics import choose
from pix2pix.plans.placements import decide, parse_placement
from pix2pix.plans.plan import Plan
from tests.models import VARIANTS, pictures, weights_of
from tests.plans.placements import HEAVIEST, PUBLISHED, SPLIT, crossings, placed


@pytest.mark.parametrize(
    "text, expected",
    [
        ("encoder_2-4,decoder_4-2", HEAVIEST),
        (" decoder_4-2, encoder_2-4 ", HEAVIEST),
        ("encoder_2,encoder_3-4,decoder_4,decoder_3,decoder_2-2", HEAVIEST),
        ("seed-b", HEAVIEST),
        ("all", tuple(layer.name for layer in PUBLISHED.layers)),
        ("seed-c", tuple(layer.name for layer in PUBLISHED.layers if layer.name != "decoder_1")),
        ("encoder_8", ("encoder_8",)),
    ],
)
def test_placements_in_words(text, expected):
    assert parse_placement(text, PUBLISHED) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names ''"),
        ("encoder_2,", "names ''"),
        ("encoder_9", "names 'encoder_9'.*this generator has encoder_1, .*decoder_1"),
        ("encoder_2-9", "names 'encoder_9'"),
        ("encoder_0-2", "names 'encoder_0'"),
        ("encoder", "names 'encoder'"),
        ("encoder_2-", "names 'encoder_2-'"),
        ("auto,encoder_2", "names 'auto'"),
        ("all,encoder_2", "names 'all'"),
        ("input", "names 'input'"),
        ("encoder_4-2", "encoder_2 comes before encoder_4"),
        ("decoder_2-4", "decoder_4 comes before decoder_2"),
        ("encoder_2-4,encoder_3", "names encoder_3 twice"),
        ("seed-d", "expected all, auto, seed-b, seed-c or a list"),
    ],
)
def test_placements_that_make_no_sense(text, message):
    with pytest.raises(ValueError, match=message):
        parse_placement(text, PUBLISHED)


def test_the_seeds_split_holds_four_fifths_of_the_work():
    macs = PUBLISHED.macs(256, 256)
    assert sum(macs[name] for name in HEAVIEST) / sum(macs.values()) == pytest.approx(0.8, abs=0.005)
    around_the_bottleneck = parse_placement("encoder_4-6,decoder_6-4", PUBLISHED)
    assert sum(macs[name] for name in around_the_bottleneck) / sum(macs.values()) == pytest.approx(0.43, abs=0.005)
    assert parse_placement("seed-b", unet(depth=2)) == ("encoder_1", "encoder_2", "decoder_2", "decoder_1")


def test_a_plan_holds_the_placement(tmp_path):
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    layers, plan = placed("tensorflow", SPLIT, "latency")
    assert plan.layers_on("cuda") == layers and plan.hardware == "cuda" and plan.tune == "latency"
    assert {*plan.layers_on("cpu")} == {layer.name for layer in g.layers} - {*layers}
    assert plan.hardware_of("encoder_1") == "cpu" and plan.hardware_of("encoder_2") == "cuda"
    plan.save(tmp_path / "plan.json")
    again = choose(g, "throughput", tmp_path / "plan.json", hardware="cuda")
    assert again == plan == pickle.loads(pickle.dumps(plan)) and hash(again) == hash(plan)
    assert again != placed("tensorflow", "encoder_2", "latency")[1]
    with CpuEngine(g, weights, plan=tmp_path / "plan.json") as cpu:
        assert cpu.layers == {*plan.layers_on("cpu")}
    with pytest.raises(ValueError, match="for 'cuda' and has no layer for 'cpu'"):
        CpuEngine(g, weights, plan=choose(g, "latency", hardware="cuda"))
    with pytest.raises(ValueError, match="for 'cpu' and has no layer for 'cuda'"):
        choose(g, "latency", choose(g, "latency"), hardware="cuda")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"placement": {"encoder_1": "tpu"}}, "'tpu', expected one for cpu, cuda"),
        ({"placement": {"encoder_77": "cpu"}}, "no algorithm for: encoder_77"),
        ({"placement": {}}, "'direct' for encoder_1, expected one of im2col"),
        ({"hardware": "cpu"}, "expected one of direct"),
    ],
)
def test_placements_that_no_plan_takes(changes, message):
    _, plan = placed("tensorflow", SPLIT)
    with pytest.raises(ValueError, match=message):
        Plan(**(plan.to_dict() | changes))


def random_costs(g, seed: int) -> Costs:
    """Costs of the order of each other, some of them nothing."""
    rng = np.random.default_rng(seed)
    names = [layer.name for layer in g.layers]
    cpu, gpu, crossing = (rng.exponential(scale, len(names) + 1) for scale in (1.0, 0.7, rng.choice([0.1, 0.3, 1.0])))
    cpu[rng.random(len(cpu)) < 0.1] = 0
    return Costs(
        dict(zip(names, cpu, strict=False)),
        dict(zip(names, gpu, strict=False)),
        dict(zip((INPUT, *names), crossing, strict=True)),
    )


def total(g, costs: Costs, gpu_layers) -> float:
    """Seconds of the whole forward pass, from an image in the host's memory to an image there."""
    ops = lower(g).ops
    seconds = sum((costs.gpu if op.name in gpu_layers else costs.cpu)[op.name] for op in ops)
    for value, crossing in costs.crossing.items():
        readers = {op.name in gpu_layers for op in ops if value in op.reads}
        readers |= {False} if value == ops[-1].name else set()
        seconds += crossing * len(readers - {value in gpu_layers})
    return seconds


def by_trying_all(g, costs: Costs) -> float:
    names = [layer.name for layer in g.layers]
    subsets = itertools.chain.from_iterable(itertools.combinations(names, k) for k in range(len(names) + 1))
    return min(total(g, costs, subset) for subset in subsets)


def test_the_cheapest_placement_is_found():
    g = VARIANTS["tensorflow"]
    sizes = set()
    for seed in range(40):
        costs = random_costs(g, seed)
        layers = cheapest(g, costs)
        assert total(g, costs, layers) == pytest.approx(by_trying_all(g, costs), rel=1e-12)
        sizes.add(len(layers))
    assert len(sizes) > 4  # from few layers to many: the costs don't decide it beforehand


def test_the_total_counts_what_segments_cross():
    g = VARIANTS["pytorch"]
    names = [layer.name for layer in g.layers]
    nothing = dict.fromkeys(names, 0.0)
    for seed in range(20):
        costs = random_costs(g, seed)
        layers = cheapest(g, costs)
        crossing_alone = Costs(nothing, nothing, costs.crossing)
        parts = segments(lower(g), layers, [INPUT], [names[-1]])
        crossed = sum(costs.crossing[name] for on_gpu, name in crossings(parts) if on_gpu or name != INPUT)
        leaving = costs.crossing[names[-1]] if names[-1] in layers else 0.0
        assert total(g, crossing_alone, layers) == pytest.approx(crossed + leaving)


class Timed(ReferenceEngine):
    """An engine that computes nothing and tells a clock how long it took: some seconds per layer and per value."""

    def __init__(self, g, clock: list[float], layers: dict[str, float], value: float) -> None:
        super().__init__(g, weights_of("tensorflow"))
        self.clock, self.layer_seconds, self.value_seconds = clock, layers, value

    def _run(self, given, results):
        self.clock[0] += sum(self.layer_seconds[layer.name] for layer in self.program.needed(tuple(results), given))
        self.clock[0] += self.value_seconds * (len(given) + len(results))


def test_measuring_finds_the_layers_that_pay(monkeypatch):
    g, clock = VARIANTS["tensorflow"], [0.0]
    monkeypatch.setattr("pix2pix.engines.measured_placement.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    fast = {"encoder_2", "encoder_3", "decoder_3", "decoder_2"}
    on_cpu = {layer.name: 20.0 if layer.name in fast else 4.0 for layer in g.layers}
    on_gpu = {layer.name: 3.0 if layer.name in fast else 15.0 for layer in g.layers}
    costs = measure(Timed(g, clock, on_cpu, 0.5), Timed(g, clock, on_gpu, 2.0), 1)
    assert costs.cpu == pytest.approx(on_cpu) and costs.gpu == pytest.approx(on_gpu)
    assert costs.crossing == pytest.approx(dict.fromkeys((INPUT, *on_cpu), 2.5))
    assert set(cheapest(g, costs)) == fast
    dear = Costs(costs.cpu, costs.gpu, dict.fromkeys(costs.crossing, 100.0))
    assert cheapest(g, dear) == ()


def test_measuring_real_engines():
    g, weights = VARIANTS["tensorflow"], weights_of("tensorflow")
    with CpuEngine(g, weights) as cpu, ReferenceEngine(g, weights) as gpu:
        costs = measure(cpu, gpu, 2)
    names = [layer.name for layer in g.layers]
    assert [*costs.cpu] == [*costs.gpu] == names and {*costs.crossing} == {INPUT, *names}
    every = np.array([*costs.cpu.values(), *costs.gpu.values(), *costs.crossing.values()])
    assert np.isfinite(every).all() and (every >= 0).all()
    assert sum(costs.gpu.values()) > 0  # NumPy's; those of the compiled kernels may be less than times vary by


def test_what_gpu_layers_and_plan_mean_together(tmp_path):
    g = VARIANTS["keras"]

    def decided(gpu_layers, plan):
        return decide(g, gpu_layers, plan, "float32", "latency")

    assert decided(None, None) == decided("all", None) == choose(g, "latency", hardware="cuda")
    split = decided(SPLIT, None)
    assert split.layers_on("cuda") == parse_placement(SPLIT, g) and split.tune == "latency"
    im2col = decided(SPLIT, "im2col")
    assert {str(im2col.layers[name]) for name in im2col.layers_on("cuda")} == {"im2col"}
    assert {name: im2col.layers[name] for name in im2col.layers_on("cpu")}.items() <= choose(
        g, "latency"
    ).layers.items()
    direct = decided(SPLIT, "direct")
    assert {str(direct.layers[name]) for name in direct.layers_on("cpu")} == {"direct"}
    assert direct.layers_on("cuda") == parse_placement(SPLIT, g)
    split.save(tmp_path / "plan.json")
    for given in (split, tmp_path / "plan.json", str(tmp_path / "plan.json")):
        assert decided(None, given) == decided(SPLIT, given) == split
        with pytest.raises(ValueError, match="not as gpu_layers 'all': leave one of them out"):
            decided("all", given)


@pytest.mark.parametrize(
    "gpu_layers, plan, message",
    [
        ("all", "direct", "none of the layers takes 'direct'"),
        ("seed-b", choose(VARIANTS["keras"], "latency"), "leave one of them out"),
        (None, "absent.json", "cannot read a plan"),
        ("encoder_99", None, "names 'encoder_99'"),
    ],
)
def test_what_gpu_layers_and_plan_cannot_mean(gpu_layers, plan, message):
    with pytest.raises(ValueError, match=message):
        decide(VARIANTS["keras"], gpu_layers, plan, "float32", "latency")


def test_auto_measures_once_and_writes_what_it_chose(tmp_path, monkeypatch):
    g, clock, made = VARIANTS["tensorflow"], [0.0], []
    monkeypatch.setattr("pix2pix.engines.measured_placement.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    heavy = parse_placement(SPLIT, g)
    on_cpu = {layer.name: 9.0 if layer.name in heavy else 1.0 for layer in g.layers}
    on_gpu = {layer.name: 2.0 for layer in g.layers}

    def engines():
        made.extend((Timed(g, clock, on_cpu, 0.1), Timed(g, clock, on_gpu, 0.1)))
        return made[-2:]

    for _ in range(2):
        plan = find(g, tmp_path / "auto.json", "float32", "throughput", engines)
        assert plan.layers_on("cuda") == heavy and plan.tune == "throughput"
        assert plan == decide(g, None, tmp_path / "auto.json", "float32", "latency")
    assert len(made) == 2
    assert find(g, plan, "float32", "latency", engines) == plan and len(made) == 2
    for unnamed in (None, "im2col"):
        with pytest.raises(ValueError, match="give the name of a file"):
            find(g, unnamed, "float32", "latency", engines)
    for engine in made:
        with pytest.raises(RuntimeError, match="closed"):
            engine.run(to_float(pictures(1, 32, 32)))
    on_gpu = dict.fromkeys(on_gpu, 99.0)
    nothing = find(g, tmp_path / "cpu.json", "float32", "throughput", engines)
    assert nothing.layers_on("cuda") == () and len(nothing.layers_on("cpu")) == len(g.layers)
