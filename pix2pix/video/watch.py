"""A folder that fills: image files are translated as they become whole, until an interrupt: :func:`watch`.

A file is taken when it has not changed for SETTLED seconds, and counts as whole if it can be decoded and has not
changed meanwhile; one that cannot be decoded is tried again when it changes. Outputs are noted in the run record of
:mod:`..files.record`, so that the next run, or ``translate``, goes on where this one ended. What became of an input
afterwards does not touch its output.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import watchfiles

from ..engines.base import Engine
from ..errors import InputError
from ..files.fitting import Fitting
from ..files.jobs import Job, find_inputs
from ..files.options import TranslateOptions
from ..files.outcome import Outcome
from ..files.record import RECORD_NAME, RunRecord
from ..files.report import Report
from ..files.stream import translate_files
from ..files.translate import Listener, Run

SETTLED = 0.5  # seconds
PATIENCE = 5.0  # seconds until a file that cannot be decoded is told of: its writer may have paused
SECONDS_BETWEEN_SCANS = 5.0  # where the system tells of no changes
MILLISECONDS_BETWEEN_LOOKS = 200

State = tuple[int, ...]  # of a file: another one where its content may be another


def watch(options: TranslateOptions, listener: Listener | None = None) -> Report:
    """Translate what is in the folder ``options.inputs[0]`` and what appears there, until an interrupt.

    Raises ValueError, RuntimeError or OSError, with a message for people, if the run cannot start. What ends it early,
    such as a folder that is gone, is said in the report. Its counts are of outputs made and of files that could not be
    translated in the end.
    """
    options.engine.check()
    return _WatchRun(options, listener or Listener(), None).run()


@dataclass(slots=True)
class _Files:
    """What is known of the files in the folder, by path."""

    seen: dict[Path, tuple[State, float]] = field(default_factory=dict)  # and since when
    treated: dict[Path, State] = field(default_factory=dict)  # when it was translated, or could not be
    failed: dict[Path, Outcome] = field(default_factory=dict)
    told: set[Path] = field(default_factory=set)  # of those

    def look(self, jobs: list[Job], now: float) -> list[Job]:
        """The jobs whose files have settled, and were not treated in this state. Forgets files that are gone."""
        present: dict[Path, tuple[State, float]] = {}
        ready = []
        for job in jobs:
            state = state_of(job.source)
            if state is None:
                continue
            before = self.seen.get(job.source)
            present[job.source] = before if before and before[0] == state else (state, now)
            if self.treated.get(job.source) == state:
                continue
            if now - present[job.source][1] >= SETTLED:
                ready.append(job)
        self.seen = present
        for known in (self.treated, self.failed):
            for path in known.keys() - present.keys():
                del known[path]
        self.told &= self.failed.keys()
        return ready

    @property
    def are_settled(self) -> bool:
        """Whether all files were treated in the state that was last seen, and all failures are told."""
        return len(self.told) == len(self.failed) and all(
            self.treated.get(path) == state for path, (state, _) in self.seen.items()
        )

    def lasting_failures(self, now: float) -> list[Outcome]:
        """The failures of files that have not changed for long, each once."""
        lasting = [p for p in self.failed.keys() - self.told if now - self.seen[p][1] >= PATIENCE]
        self.told.update(lasting)
        return [self.failed[path] for path in lasting]


class _WatchRun(Run):
    by_root = True

    def __init__(self, options: TranslateOptions, listener: Listener, ranks: None) -> None:
        folder, output = options.inputs[0], options.output
        if not folder.is_dir():
            raise InputError(f"there is no folder {str(folder)!r} to watch")
        if output.exists() and not output.is_dir():
            raise InputError(f"the output {str(output)!r} is a file: expected a folder")
        if output.resolve() == folder.resolve():
            raise InputError(f"the output folder {str(output)!r} is the one that is watched: give another")
        super().__init__(replace(options, fit=options.fit or "resize"), listener, ranks)
        self.watched, self.folder = folder, output
        self.files = _Files()

    def translate(self, engine: Engine) -> None:
        options = self.options
        if engine.generator.takes == "labels":
            raise InputError("this generator takes label maps: translate a folder that is complete")
        fit = options.fit or "resize"
        fitting = Fitting.of(engine.generator, fit, options.size, None, self.limits)
        how: dict[str, Any] = {"fit": fit, "pair": None, "format": options.format or "png"}
        with RunRecord(options.output / RECORD_NAME) as record:
            jobs = self._jobs()
            made_by = self.made_by(engine, fitting.size) | how
            finished = record.begin(made_by, jobs, overwrite=options.overwrite, verify=options.verify)
            for job in jobs:
                if job.output in finished and (state := state_of(job.source)):
                    self.files.treated[job.source] = state
            self.report.counts["skipped"] = len(finished)
            self.listener.started(0)

            def translated(ready: list[Job]) -> Iterator[Outcome]:
                return translate_files(engine, ready, fitting, batch_size=self.batch_size, put=record.put)

            self.consume(self._outcomes(translated), lambda outcome: None, record)
        for outcome in self.files.failed.values():
            self.report.add(outcome)
            if outcome.job.source not in self.files.told:
                self.listener.outcome(outcome)

    def _jobs(self) -> list[Job]:
        """The image files that are in the folder now. Raises InputError if it is gone."""
        return find_inputs([self.watched], self.options.output, self.options.format or "png", may_be_none=True).jobs

    def _outcomes(self, translated: Callable[[list[Job]], Iterator[Outcome]]) -> Generator[Outcome, None, None]:
        """What becomes of the files, until an interrupt."""
        files, last_scan = self.files, -SECONDS_BETWEEN_SCANS
        for changes in _changes(self.watched, self.options.output):
            now = time.monotonic()
            if not changes and files.are_settled and now - last_scan < SECONDS_BETWEEN_SCANS:
                continue
            last_scan = now
            ready = files.look(self._jobs(), now)
            states = {job.source: files.seen[job.source][0] for job in ready}
            if ready:
                for outcome in translated(ready):
                    self._note(outcome, states[outcome.job.source])
                    yield outcome
            for outcome in files.lasting_failures(now):
                self.listener.outcome(outcome)

    def _note(self, outcome: Outcome, state: State) -> None:
        """Remember what became of a file in a state; but for one that has changed or gone, which is looked at again."""
        source, files = outcome.job.source, self.files
        if outcome.status == "done":
            files.failed.pop(source, None)
            self.report.counts["done"] += 1
            self.listener.progressed(1)
        elif state_of(source) == state:
            files.failed[source] = outcome
        else:
            return
        files.told.discard(source)
        files.treated[source] = state


def _changes(folder: Path, output: Path) -> Iterator[set[Any]]:
    """What has changed in a folder, outside ``output``, several times a second; empty sets where nothing has."""
    excluded = str(output.resolve()) + os.sep

    def concerns(_change: watchfiles.Change, path: str) -> bool:
        return not os.path.realpath(path).startswith(excluded)

    return watchfiles.watch(
        folder,
        watch_filter=concerns,
        debounce=MILLISECONDS_BETWEEN_LOOKS,
        rust_timeout=MILLISECONDS_BETWEEN_LOOKS,
        yield_on_timeout=True,
    )


def state_of(path: Path) -> State | None:
    """What changes when the content of a file does; None if it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
