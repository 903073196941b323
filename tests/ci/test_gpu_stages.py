"""The stages of ci/gpu.sh: which cases, in which order. No case is run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from ci import gpu_stages
from ci.case_runner import Case
from tests.gpu.networks import MORE, QUICK, launching_all

FOUND = {"gpu": "NVIDIA X", "capability": "9.0", "graphs": True, "versions": {}}


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A stage of two cases, in a folder of its own, on a machine that has a GPU."""
    cases = [Case(name, (sys.executable, "-c", "pass"), 20, 0) for name in ("one", "hopper")]
    monkeypatch.setattr(gpu_stages, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_stages, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(gpu_stages, "STAGES", {"first": (lambda: cases, 20)})
    monkeypatch.setattr(gpu_stages, "found", lambda: FOUND)
    monkeypatch.setattr(gpu_stages, "with_build", lambda cases, folder: cases)
    monkeypatch.setattr(gpu_stages.signal, "signal", lambda *_: None)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    return tmp_path


def test_stages_share_a_case_only_if_it_is_the_same():
    """They have one record."""
    cases = [case for make, _ in gpu_stages.STAGES.values() for case in make() if not case.prepares]
    assert len({case.name for case in cases}) == len({(case.name, case.command) for case in cases}) < len(cases)


@pytest.mark.parametrize("stage", gpu_stages.STAGES)
def test_cases_have_names_of_their_own_and_fit_their_stage(stage):
    make, seconds = gpu_stages.STAGES[stage]
    cases = make()
    names = Counter(case.name for case in cases)
    assert set(names.values()) == {1}
    assert all(case.estimate <= min(seconds, case.limit) and case.prepares <= set(names) for case in cases)
    for case in cases:
        assert not (case.alone and case.prepares)


def test_the_most_valuable_cases_come_first():
    whole, networks = gpu_stages.first()[:8], [case.name for case in gpu_stages.first()[8:]]
    assert [case.name.split()[0] for case in whole] == ["demo"] * 4 + ["resnet"] * 4
    assert {name.removeprefix("network ") for name in networks} == {str(case) for case in (*QUICK, *MORE)}
    order = [name.removeprefix("network ").split("-")[:2] for name in networks[: len(launching_all())]]
    kinds = list(dict.fromkeys((algorithm == "hopper", precision) for precision, algorithm in order))
    others = [(False, precision) for precision in ("float32", "float16", "bfloat16", "tf32")]
    assert kinds == [*others, *((True, precision) for precision in ("float16", "bfloat16", "tf32"))]
    measured = [case.name for case in gpu_stages.quick() if case.alone]
    assert measured == [f"gpu-{n}-{precision}" for precision in ("float16", "tf32", "float32") for n in (64, 1)]
    assert [case.name for case in gpu_stages.bench() if case.alone][: len(measured)] == measured


def test_a_stage_keeps_its_record(started, capsys):
    assert gpu_stages.main(["first", "--seconds", "15", "one"]) == 0
    record = json.loads((started / "record.json").read_text())
    assert record["found"] == FOUND and set(record["cases"]) == {"one"}
    assert record["cases"]["one"]["of"]["gpu"] == "NVIDIA X"
    assert gpu_stages.main(["first"]) == 0
    assert "passed before: one" in capsys.readouterr().out
    assert set(json.loads((started / "record.json").read_text())["cases"]) == {"one", "hopper"}
    with pytest.raises(SystemExit):
        gpu_stages.main(["first", "nothing"])


def test_hoppers_cases_need_one(started, monkeypatch):
    monkeypatch.setattr(gpu_stages, "found", lambda: FOUND | {"capability": "8.0"})
    assert gpu_stages.main(["first"]) == 0
    assert set(json.loads((started / "record.json").read_text())["cases"]) == {"one"}


def test_without_a_gpu_nothing_is_begun(started, monkeypatch, capsys):
    def none():
        raise RuntimeError("there is none")

    monkeypatch.setattr(gpu_stages, "found", none)
    assert gpu_stages.main(["first"]) == 1
    assert capsys.readouterr().out == "no GPU can be used: there is none\n"


def test_the_build_is_not_repeated(tmp_path):
    cases = [Case("one", (), 1, 1)]
    build, *rest = gpu_stages.with_build(cases, tmp_path)
    assert build.prepares == {"one"} and rest == cases
    (tmp_path / "built").touch()
    assert gpu_stages.with_build(cases, tmp_path) == cases


def test_the_script_knows_every_stage():
    done = subprocess.run(["ci/gpu.sh"], cwd=gpu_stages.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for stage, (_, seconds) in gpu_stages.STAGES.items():
        assert f"{stage:9} {seconds} s" in done.stdout
