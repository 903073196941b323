"""Cases in processes of their own: those that pass, raise, crash and hang, the end of the time, and going on."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from ci import case_runner
from ci.case_runner import JOURNAL, SECONDS, Case, Run, wanted

SAME = {"gpu": "a GPU", "sources": "0123"}
NAMED = f"import os; open(os.environ['{JOURNAL}'], 'w').write('a_kernel 64x64')\n"
BODIES = {
    "passes": "print('well')",
    "raises": NAMED + "raise ValueError('got 1,\\nexpected 2')",
    "crashes": NAMED + "os.kill(os.getpid(), 11)",
    "hangs": NAMED + "import subprocess; subprocess.run(['sleep', '77'])",
    "exits": "print('WRONG: all of it'); raise SystemExit(1)",
}


def case(name: str, body: str = "", limit: float = 20, estimate: float = 0, **fields: object) -> Case:
    return Case(name, (sys.executable, "-c", body or BODIES.get(name, "pass")), limit, estimate, **fields)


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(case_runner, "GRACE", 0.5)


def record_of(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_ends_in_its_own_way(tmp_path, capsys):
    path = tmp_path / "results" / "record.json"
    cases = [case(name, limit=1 if name == "hangs" else 20) for name in BODIES]
    run = Run(path, cases, SAME, {"gpu": "a GPU"})
    begun = time.perf_counter()
    assert run.run(60, at_once=3) == 1
    assert time.perf_counter() - begun < 20
    assert sorted(run.failed) == ["crashes", "exits", "hangs", "raises"]
    record = record_of(path)
    found = record["cases"]
    assert record["found"] == {"gpu": "a GPU"} and record["skipped"] == []
    assert {name for name, outcome in found.items() if outcome["ok"]} == {"passes"}
    assert {name: outcome.get("error") for name, outcome in found.items()} == {
        "passes": None,
        "raises": "ValueError: got 1, expected 2",
        "crashes": "ended by SIGSEGV",
        "hangs": "did not end in 1 s",
        "exits": "WRONG: all of it",
    }
    assert {name for name, outcome in found.items() if outcome.get("kernel") == "a_kernel 64x64"} == {
        "raises",
        "crashes",
        "hangs",
    }
    assert found["hangs"]["seconds"] >= 1 and "Traceback" in "".join(found["raises"]["output"])
    out = capsys.readouterr().out
    assert "hangs (kernel a_kernel 64x64): did not end in 1 s" in out
    assert "skipped for lack of time: nothing" in out and "4 failed: " in out


def test_what_a_hanging_case_began_ends_with_it(tmp_path):
    mark = tmp_path / "mark"
    body = f"import subprocess; subprocess.run(['bash', '-c', 'sleep 2; touch {mark}'])"
    Run(tmp_path / "record.json", [case("hangs", body, limit=0.5)], SAME, {}).run(10, at_once=1)
    time.sleep(2.5)
    assert not mark.exists()


def test_nothing_begins_or_goes_on_when_the_time_is_over(tmp_path, capsys):
    path = tmp_path / "record.json"
    cases = [
        case("hangs", limit=50),
        case("too long", estimate=9),
        case("passes"),
        case("after the end", estimate=3),
    ]
    run = Run(path, cases, SAME, {})
    assert run.run(2.5, at_once=2) == 0
    found = record_of(path)
    assert found["skipped"] == ["too long", "after the end", "hangs"]
    assert set(found["cases"]) == {"hangs", "passes"} and found["cases"]["hangs"]["stopped"]
    assert "SKIPPED           too long: takes about 9 s" in capsys.readouterr().out


def test_a_case_that_has_not_all_its_results_runs_again_while_there_is_time(tmp_path, capsys):
    log = tmp_path / "log"
    body = f"log = {str(log)!r}\nprint(file=open(log, 'a'))\n"
    body += f"raise SystemExit({os.EX_TEMPFAIL} if len(open(log).read()) < 3 else 0)"
    run = Run(tmp_path / "record.json", [case("tunes", body), case("passes")], SAME, {})
    assert run.run(30, at_once=1) == 0 and len(log.read_text()) == 3
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert words[:4] == ["AGAIN", "AGAIN", "ok", "ok"]
    short = Run(tmp_path / "record.json", [case("never", f"raise SystemExit({os.EX_TEMPFAIL})", estimate=1)], SAME, {})
    assert short.run(1.2, at_once=1) == 0
    assert record_of(tmp_path / "record.json")["skipped"] == ["never"]


def test_the_record_is_written_after_every_case(tmp_path):
    """The second case finds the outcome of the first."""
    path = tmp_path / "record.json"
    body = f"import json; assert json.load(open({str(path)!r}))['cases']['passes']['ok']"
    assert Run(path, [case("passes"), case("reads", body)], SAME, {}).run(20, at_once=1) == 0


def test_a_run_goes_on_with_what_failed_and_leaves_out_what_passed(tmp_path, capsys):
    path = tmp_path / "record.json"
    mark = tmp_path / "mended"
    mends = case("mends", f"import os; assert os.path.exists({str(mark)!r})")
    cases = [case("build", prepares=frozenset(["passes", "mends"])), case("passes"), mends]
    assert Run(path, cases, SAME, {}).run(20, at_once=1) == 1
    mark.touch()
    again = Run(path, cases, SAME, {})
    assert [case.name for case in again.cases] == ["build", "mends"] and again.passed_before == ["passes"]
    assert again.run(20, at_once=1) == 0
    assert Run(path, cases, SAME, {}).cases == []
    for other in (SAME | {"gpu": "another"}, SAME | {"sources": "4567"}):
        assert [case.name for case in Run(path, cases, other, {}).cases] == ["build", "passes", "mends"]
    cases.append(case("raises"))
    names = [case.name for case in Run(path, cases, SAME | {"sources": "4567"}, {}).cases]
    assert names == ["raises", "build", "passes", "mends"]
    assert set(record_of(path)["cases"]) == {"build", "passes", "mends"}
    assert "passed before: passes" in capsys.readouterr().out


def test_cases_that_measure_are_alone_and_others_are_not(tmp_path):
    """Each writes when it begins and ends."""
    log = tmp_path / "log"
    body = "import time\nfor word in 'begin', 'end':\n    print('{0}', word, file=open({1!r}, 'a')); time.sleep(0.7)"
    cases = [case(name, body.format(name, str(log)), alone=name in "cd") for name in "abcd"]
    assert Run(tmp_path / "record.json", cases, SAME, {}).run(30, at_once=4) == 0
    words = log.read_text().split()
    names, events = words[::2], words[1::2]
    assert events[:2] == ["begin", "begin"] and set(names[:2]) == {"a", "b"}
    assert (names[4:], events[4:]) == (["c", "c", "d", "d"], ["begin", "end"] * 2)


def test_preparations_come_right_before_what_first_needs_them():
    cases = [
        case("both", prepares=frozenset("ab")),
        case("of b", prepares=frozenset("b")),
        case("a"),
        case("b"),
    ]
    assert [c.name for c in Run(Path("none.json"), cases, SAME, {}).cases] == ["both", "a", "of b", "b"]
    assert [c.name for c in wanted(cases, ["b"])] == ["both", "of b", "b"]
    assert wanted(cases, []) == cases and wanted(cases, ["nothing"]) == []


def test_a_case_is_told_how_long_it_may_go_on(tmp_path):
    words = (sys.executable, "-c", "import sys; assert 4 <= int(sys.argv[1]) <= 5, sys.argv", SECONDS)
    long = Case("long", words, limit=case_runner.MARGIN + 5, estimate=0)
    assert Run(tmp_path / "record.json", [long], SAME, {}).run(60, at_once=1) == 0
