"""Runs cases in processes of their own until a deadline, so that one that hangs or crashes does not hide the others.

Cases begin in their order, several at a time. After each one the record is written: a run that is killed leaves what it
found. A later run goes on from the record. It leaves out what passed with the same sources on the same machine, and
begins with what failed or never ran.

A case's process may write the name of the kernel that it launches to the file that the environment variable JOURNAL
names: the last one is reported if the case fails.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pix2pix.atomic import write_atomically

JOURNAL = "PIX2PIX_JOURNAL"
UNFINISHED = os.EX_TEMPFAIL  # exit status of a case that keeps what it has, and is to be run again for the rest
SECONDS = "{seconds}"  # in a command: how long the case may go on, which leaves it MARGIN seconds to end
MARGIN = 15
GRACE = 2.0  # seconds from asking a process to end to killing it
POLL = 0.02  # seconds between looks at the processes
TAIL = 40  # lines of a failed case's output in the record
LONGEST = 300  # characters of an exception there
EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Case:
    """A command, and its seconds: how long it may take, and without how many left it is not begun.

    One that is ``alone`` begins when all before it have ended, and nothing runs beside it: it measures time. One that
    ``prepares`` others runs in every run that still has one of these to run.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    estimate: float
    alone: bool = False
    prepares: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict)


class Process:
    """A case that runs."""

    def __init__(self, case: Case, seconds: float) -> None:
        self.case, self.seconds, self.begun, self.late = case, seconds, time.perf_counter(), False
        self.output: IO[bytes] = tempfile.TemporaryFile()
        descriptor, journal = tempfile.mkstemp(prefix="journal-")
        os.close(descriptor)
        self.journal = Path(journal)
        command = [word.replace(SECONDS, str(max(1, int(seconds) - MARGIN))) for word in case.command]
        environment = os.environ | case.environment | {JOURNAL: journal}
        self.process = subprocess.Popen(
            command, stdout=self.output, stderr=subprocess.STDOUT, env=environment, process_group=0
        )

    @property
    def elapsed(self) -> float:
        """Seconds since its beginning."""
        return time.perf_counter() - self.begun

    def outcome(self) -> dict[str, Any] | None:
        """What became of it; None while it runs and may. ``stopped``: by the run's end; ``again``: by itself."""
        status, beyond = self.process.poll(), self.elapsed - self.seconds
        if status is None and beyond >= 0 and not self.late:
            self.late = True
            self.send(signal.SIGTERM)  # makes Python say where it was
        if status is None and beyond > GRACE:
            self.send(signal.SIGKILL)
        if status is None and beyond < 2 * GRACE:  # then it waits for the driver, which nothing can end
            return None
        self.send(signal.SIGKILL)  # to processes that it began
        seconds, kernel = round(self.elapsed, 1), self.journal.read_text(encoding="utf-8", errors="replace").strip()
        self.journal.unlink()
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")
        self.output.close()
        if status == 0:
            return {"ok": True, "seconds": seconds}
        error = f"did not end in {self.seconds:.0f} s" if self.late else _error(status or 0, text)
        outcome = {"ok": False, "seconds": seconds, "error": error, "kernel": kernel}
        outcome |= {"stopped": self.late and self.seconds < self.case.limit, "again": status == UNFINISHED}
        return outcome | {"output": text.splitlines()[-TAIL:]}

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it began."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _error(status: int, text: str) -> str:
    """Why a process ended: a signal, the last exception in its output, or the last line of this."""
    if status == UNFINISHED:
        return "has results, but not all"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    begins = [match.start() for match in EXCEPTION.finditer(text)] or [text.rstrip().rfind("\n") + 1]
    return " ".join(text[begins[-1] :].split())[:LONGEST] or f"exit status {status}"


class Run:
    """A run of cases; ``record`` is what is written to ``path``, and ``same`` is what makes earlier results count."""

    def __init__(self, path: Path, cases: Iterable[Case], same: Mapping[str, str], found: Mapping[str, Any]) -> None:
        self.path, self.same = path, dict(same)
        earlier = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {}
        self.record: dict[str, Any] = {"found": dict(found), "cases": earlier, "skipped": []}
        cases = list(cases)
        pending = [case for case in cases if not case.prepares and not self._passed(case.name)]
        self.passed_before = [case.name for case in cases if not case.prepares and case not in pending]
        pending.sort(key=lambda case: earlier.get(case.name, {}).get("ok", False))  # first what failed or never ran
        preparations = [case for case in cases if case.prepares]
        self.cases: list[Case] = []
        for case in pending:
            needed = [preparation for preparation in preparations if case.name in preparation.prepares]
            self.cases += [*(preparation for preparation in needed if preparation not in self.cases), case]
        self.failed: list[str] = []

    def _passed(self, name: str) -> bool:
        outcome = self.record["cases"].get(name, {})
        return outcome.get("ok", False) and outcome["of"] == self.same

    def run(self, seconds: float, at_once: int) -> int:
        """Run for so many seconds, so many at a time; the exit status is 1 if a case failed."""
        begun, waiting, running = time.perf_counter(), list(self.cases), list[Process]()
        for name in self.passed_before:
            print(f"passed before: {name}")
        try:
            while waiting or running:
                left = seconds - (time.perf_counter() - begun)
                self._begin(waiting, running, left, at_once)
                for process in list(running):
                    if (outcome := process.outcome()) is not None:
                        running.remove(process)
                        self._add(process.case, outcome)
                        if outcome.get("again"):
                            waiting.insert(0, process.case)
                time.sleep(POLL)
        finally:
            for process in running:
                process.send(signal.SIGKILL)
        print(f"skipped for lack of time: {', '.join(self.record['skipped']) or 'nothing'}")
        print(f"{len(self.failed)} failed: {', '.join(self.failed)}" if self.failed else "none failed")
        return 1 if self.failed else 0

    def _begin(self, waiting: list[Case], running: list[Process], left: float, at_once: int) -> None:
        """Begin those that are next, and skip those for which too little time is left."""
        while waiting:
            case = waiting[0]
            if left < case.estimate:
                self.record["skipped"].append(case.name)
                why = f"takes about {case.estimate:.0f} s, {max(0.0, left):.0f} s are left"
                print(f"SKIPPED           {case.name}: {why}", flush=True)
                self._write()
            elif len(running) >= at_once or (running and (case.alone or running[0].case.alone)):
                return
            else:
                running.append(Process(case, min(case.limit, left)))
            waiting.pop(0)

    def _add(self, case: Case, outcome: dict[str, Any]) -> None:
        """Record and print what became of a case."""
        self.record["cases"][case.name] = outcome | {"of": self.same}
        word = "ok"
        if outcome.get("stopped"):
            word = "STOPPED"
            self.record["skipped"].append(case.name)
        elif outcome.get("again"):
            word = "AGAIN"
        elif not outcome["ok"]:
            word = "FAILED"
            self.failed.append(case.name)
        self._write()
        where = f" (kernel {outcome['kernel']})" if outcome.get("kernel") else ""
        why = f": {outcome['error']}" if "error" in outcome else ""
        print(f"{word:7} {outcome['seconds']:6.1f} s  {case.name}{where}{why}", flush=True)

    def _write(self) -> None:
        write_atomically(self.path, (json.dumps(self.record, indent=1) + "\n").encode())


def python(*words: str) -> tuple[str, ...]:
    """The command ``python -m WORDS`` of this Python."""
    return (sys.executable, "-m", *words)


def wanted(cases: Sequence[Case], words: Sequence[str]) -> list[Case]:
    """Those whose names contain one of the words, and what prepares them; all if there are no words."""
    names = {case.name for case in cases if not case.prepares and any(word in case.name for word in words)}
    return [case for case in cases if not words or case.name in names or case.prepares & names]
