"""The tuner: candidates, plans and tables."""

from __future__ import annotations

import json
import os
import threading

import pytest

from bench import checks
from bench.gpu import tune
from pix2pix.devices import gpu_name
from pix2pix.model.lowering import lower
from pix2pix.model.unet import unet
from pix2pix.plans import tables as measured_tables
from pix2pix.plans.algorithms import Algorithm, algorithms
from pix2pix.plans.heuristics import choose
from tests.models import pictures

from .tiny import TINY, WEIGHTS, needs_simulator


def test_the_fastest_algorithm_of_each_layer_makes_the_plan_and_the_table():
    candidates = tune.candidates(TINY, "float16", False)
    assert set(candidates) == set(algorithms(lower(TINY).ops[0], "cuda", "float16"))
    assert [algorithm.splits for algorithm in candidates[:4]] == [1, 1, 1, 2]
    assert Algorithm("im2col") not in tune.candidates(TINY, "float32", False)
    names = [str(algorithm) for algorithm in candidates]
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
    assert table[measured_tables.shape(TINY, lower(TINY)["decoder_2"])] == names[1]
    assert len(table) == len(TINY.layers) - len(constant) - 1


@needs_simulator
def test_hopper_is_tuned_beside_the_others(results, monkeypatch, capsys):
    g = unet(ngf=64, depth=5)
    candidates = tune.candidates(g, "float16", True)
    assert str(candidates[0]) == "hopper-128x256" and {algorithm.kind for algorithm in candidates} == {"hopper"}
    options = ["--precisions", "float16", "--tune", "latency", "--output", str(results / "files")]
    assert tune.main([*options, "--hopper"]) == 0
    assert "not measured: no times" in capsys.readouterr().out

    offered = [Algorithm("tensor", tile=(128, 128))]
    monkeypatch.setattr(tune, "algorithms", lambda *layer: offered)
    assert tune.main(options) == 0
    before = json.loads((results / "tune.json").read_text())["precisions"]["float16"]["us"]["latency"]
    offered[:] = [Algorithm("hopper", tile=(128, 128))]
    quick = {"hopper-128x128": 1e-9}  # as if such a small layer could go by it
    monkeypatch.setattr(tune.Tuning, "_time", lambda self, *_: self.times["latency"]["decoder_2"].update(quick))
    assert tune.main([*options, "--hopper"]) == 0
    after = json.loads((results / "tune.json").read_text())["precisions"]["float16"]["us"]["latency"]
    assert after == before | {"decoder_2": before["decoder_2"] | {"hopper-128x128": 0.0}}
    plan = json.loads((results / "files" / "plan-cuda-float16-latency.json").read_text())
    assert plan["layers"]["decoder_2"] == "hopper-128x128" and plan["layers"]["decoder_3"] == "tensor-128x128"


@needs_simulator
def test_tuning_writes_what_plans_then_go_by(results, monkeypatch, capsys):
    timed_ones = [Algorithm("implicit", tile=(128, 64)), Algorithm("implicit", tile=(32, 128), splits=4)]
    offered = [Algorithm("im2col"), *timed_ones, Algorithm("nothing")]
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
        assert timed and all(taken == set(map(str, timed_ones)) for taken in timed.values())
        plan = choose(TINY, aim, results / "files" / f"plan-cuda-float32-{aim}.json", "float32", "cuda")
        assert choose(TINY, aim, None, "float32", "cuda", gpu_name(0)).layers == plan.layers
        us = record["us"][aim]
        assert all(us[name][str(plan.layers[name])] == min(us[name].values()) for name in timed)


def names_timed(monkeypatch, stops: str = "", fails: str = "") -> list[str]:
    """The names of candidates as they are timed, which takes no time; at one the process is stopped, one fails."""
    names: list[str] = []

    def timed(tuning, candidate, device):
        if candidate == stops:
            raise KeyboardInterrupt
        names.append(candidate)
        if candidate == fails:
            raise RuntimeError("illegal address")

    monkeypatch.setattr(tune.Tuning, "_time", timed)
    return names


@needs_simulator
def test_a_later_run_goes_on(results, monkeypatch, capsys):
    offered = [Algorithm("implicit", tile=(128, 64)), Algorithm("implicit", tile=(32, 128)), Algorithm("nothing")]
    monkeypatch.setattr(tune, "algorithms", lambda *layer: offered)
    options = ["--precisions", "float32", "--tune", "latency", "--output", str(results / "files")]
    assert tune.main([*options, "--seconds", "0"]) == os.EX_TEMPFAIL
    assert "3 candidates left out, 0 failed" in capsys.readouterr().out
    names = names_timed(monkeypatch, stops="implicit-32x128")
    with pytest.raises(KeyboardInterrupt):
        tune.main(options)
    assert names == ["implicit-128x64"]
    names = names_timed(monkeypatch, fails="implicit-32x128")
    works = tune.works
    monkeypatch.setattr(tune, "works", lambda device: False)
    assert tune.main(options) == os.EX_TEMPFAIL and names == ["implicit-32x128"]
    monkeypatch.setattr(tune, "works", works)
    assert tune.main(options) == 1 and names == ["implicit-32x128", "nothing"]
    assert "0 candidates left out, 1 failed" in capsys.readouterr().out
    record = json.loads((results / "tune.json").read_text())["precisions"]["float32"]
    assert record["failed"] == {"implicit-32x128": "illegal address"}
    names = names_timed(monkeypatch)
    assert tune.main(options) == 1 and names == []
    monkeypatch.setattr(tune, "fingerprint", lambda: "other sources")
    assert tune.main(options) == 0 and len(names) == 3
    monkeypatch.setattr(tune.common, "gpu", lambda: {"name": "another", "driver": ""})
    assert tune.main(options) == 0 and len(names) == 6


@needs_simulator
def test_a_candidate_that_hangs_ends_the_process(results, monkeypatch):
    """Here it goes on, as os._exit would end the tests, too."""
    ended = threading.Event()
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    monkeypatch.setattr(tune, "algorithms", lambda *layer: [Algorithm("implicit", tile=(128, 64))])
    monkeypatch.setattr(tune, "MOST_SECONDS", 0.1)
    monkeypatch.setattr(tune.os, "_exit", end)
    monkeypatch.setattr(tune.Tuning, "_time", lambda *_: ended.wait(20) and pytest.fail("as if it never ended"))
    with pytest.raises(pytest.fail.Exception):
        tune.main(["--precisions", "float32", "--tune", "latency", "--output", str(results / "files")])
    record = json.loads((results / "tune.json").read_text())["precisions"]["float32"]
    assert record["failed"] == {"implicit-128x64": "did not end in 0.1 s"} and statuses == [os.EX_TEMPFAIL]
