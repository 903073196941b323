"""The run record: which model and options made the outputs in a folder, and from what each of them was made.

It lies in the output folder as JSON. A run with the same model and options goes on where the last one stopped: outputs
that are whole and were made from the present inputs are kept. A run with others must not mix its outputs with those.

While a run goes, another file has the record's place, so that what has its final name is never half. A journal beside
it gets a line for each output at once, and now and then the number of lines whose outputs are on the disk. After a
crash those are known by their sizes, and the others are compared with their digests. At the end of a run the journal
becomes part of the record.

Folders that version 0.1.0 began have a record without outputs. There, outputs not older than the record are kept unless
they are empty or older than their inputs. The record's time of change therefore stays that of the first run.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from ..atomic import remove_abandoned, write_atomically
from ..errors import RecordError
from .durable import sync
from .jobs import Job
from .lock import Lock
from .provenance import Made, Source, absolute

RECORD_NAME = ".pix2pix-run.json"
SECONDS_BETWEEN_SYNCS = 2.0
CHECKING_THREADS = 8  # that ask the file system for inputs and outputs


@dataclass
class _State:
    """What a record and its journal say. ``unsynced`` are outputs that a crash of the machine may have lost."""

    made_by: dict[str, Any]
    made: dict[str, Made] = field(default_factory=dict)  # by the output's name
    unsynced: set[str] = field(default_factory=set)
    unfinished: dict[str, Any] | None = None
    adopted: tuple[int, int] | None = None  # the times (ns) between which version 0.1.0 made outputs

    def to_json(self) -> str:
        """The record: one line for each output."""
        head: dict[str, Any] = dict(self.made_by)
        if self.unfinished is not None:
            head["unfinished"] = self.unfinished
        if self.adopted is not None:
            head["adopted"] = self.adopted
        lines = [f"    {json.dumps(name)}: {json.dumps(made)}" for name, made in sorted(self.made.items())]
        outputs = "{\n" + ",\n".join(lines) + "\n  }" if lines else "{}"
        return json.dumps(head, indent=2).removesuffix("\n}") + f',\n  "outputs": {outputs}\n}}\n'


class RunRecord:
    """The record of a run into a folder or a raw file, and the lock that keeps other runs out.

    Use it as a context manager, with :meth:`begin`, :meth:`add` for each output, and :meth:`finish` inside.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = Lock(self._beside("lock"))
        self._unfinished = self._beside("unfinished")  # in the record's place while a run goes
        self._state: _State
        self._journal: FileIO | None = None
        self._lines = 0
        self._not_synced: list[Path] = []
        self._last_sync = 0.0
        self._syncing: Future[None] | None = None
        self._adding = threading.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pix2pix-sync")

    def __enter__(self) -> RunRecord:
        self.lock.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._executor.shutdown()
        if self._journal is not None:
            self._journal.close()
        self.lock.__exit__(*exc_info)

    def begin(
        self, made_by: Mapping[str, Any], jobs: Sequence[Job], *, overwrite: bool = False, verify: bool = False
    ) -> set[Path]:
        """Begin or continue the run that ``made_by`` describes: the outputs of ``jobs`` that are done already.

        ``made_by`` is the model and the options that pixels depend on, as flat JSON. With ``overwrite`` nothing counts
        as done, unless such a run was stopped: then it goes on. ``verify`` compares the content of all files. What
        killed processes left is removed.

        Raises RecordError if the record is damaged or says otherwise, or if there is no record but some of the outputs
        exist; OSError if the record cannot be written.
        """
        state = self._read(is_needed=not overwrite)
        is_same = state is not None and state.made_by == made_by
        goes_on = state is not None and not overwrite
        if state is None:
            if not overwrite:
                _check_free([job.output for job in jobs])
            state = _State(dict(made_by))
        elif not overwrite:
            self._check_same(state.made_by, made_by)
        elif is_same and state.unfinished and state.unfinished.get("overwrite"):
            goes_on = True
        else:
            names = {job.name for job in jobs}
            state.made = {name: made for name, made in state.made.items() if is_same and name not in names}
            state.made_by, state.adopted = dict(made_by), None
        self._state = state
        self._forget_lost()
        done = self._check(jobs, verify) if goes_on else set()
        self._open_journal(overwrite)
        remove_abandoned([self.path, self._unfinished, *(job.output for job in jobs if job.output not in done)])
        return done

    def put(self, job: Job, content: bytes, made: Made) -> None:
        """Write an output and note it. Raises OSError if it cannot be written, RuntimeError as :meth:`add` does."""
        write_atomically(job.output, content, sync=False)
        self.add(job.name, made)

    def add(self, name: str, made: Made, *, is_synced: bool = False) -> None:
        """Note an output, by its path relative to the record's folder. ``is_synced`` says that it is on the disk.

        An output that has been noted already is left as it is. Thread-safe. Raises RuntimeError if the journal cannot
        be written, an output cannot be synced, or the folder is gone.
        """
        with self._adding, _told(self.path):
            if self._journal is None or self._state.made.get(name) is made:
                return
            self._state.made[name] = made
            self._journal.write(json.dumps([name, made]).encode() + b"\n")
            self._lines += 1
            if not is_synced:
                self._not_synced.append(self.path.parent / name)
            is_idle = self._syncing is None or self._syncing.done()
            if is_idle and time.monotonic() - self._last_sync >= SECONDS_BETWEEN_SYNCS:
                self._sync_later()

    def finish(self, is_complete: bool) -> None:
        """Write the record: all outputs are on the disk. An incomplete run can be continued.

        Raises RuntimeError as :meth:`add` does.
        """
        with _told(self.path):
            self._sync_later().result()
            overwrite = (self._state.unfinished or {}).get("overwrite", False)
            self._state.unfinished = None if is_complete else {"overwrite": overwrite}
            began_ns = self.path.stat().st_mtime_ns if self.path.exists() else None
            write_atomically(self.path, self._state.to_json().encode())
            if began_ns is not None:
                os.utime(self.path, ns=(began_ns, began_ns))
            self._unfinished.unlink(missing_ok=True)
            self._remove_journals()

    # -- while the run goes -----------------------------------------------------------------------------------

    def _open_journal(self, overwrite: bool) -> None:
        """Write the record of a run that is not finished, and begin its journal."""
        token = secrets.token_hex(4)
        self._state.unfinished = {"overwrite": overwrite, "journal": token}
        self._journal = FileIO(self._beside(token), "wb")
        write_atomically(self._unfinished, self._state.to_json().encode())
        self._remove_journals(but=token)
        self._last_sync = time.monotonic()

    def _sync_later(self) -> Future[None]:
        """Have all outputs so far written to the disk. Raises what the last such attempt has raised."""
        if self._syncing is not None:
            self._syncing.result()
        outputs, self._not_synced = self._not_synced, []
        self._last_sync = time.monotonic()
        self._syncing = self._executor.submit(self._sync, outputs, self._lines)
        return self._syncing

    def _sync(self, outputs: Sequence[Path], lines: int) -> None:
        assert self._journal is not None
        self.lock.give_sign()
        sync(outputs)
        self._journal.write(f"{lines}\n".encode())
        os.fsync(self._journal.fileno())

    def _beside(self, what: str) -> Path:
        """A file that is there while a run goes."""
        return self.path.with_name(f"{self.path.name.removesuffix('.json')}.{what}.partial")

    def _remove_journals(self, but: str = "") -> None:
        names = re.escape(self._beside("*").name).replace(r"\*", "([0-9a-f]{8})")
        for path in self.path.parent.iterdir():
            if (found := re.fullmatch(names, path.name)) and found[1] != but:
                path.unlink(missing_ok=True)

    # -- what earlier runs left -------------------------------------------------------------------------------

    def _read(self, is_needed: bool) -> _State | None:
        """What the record and its journal say; None if there is no record, or a damaged one that is not needed."""
        path = self._unfinished if self._unfinished.exists() else self.path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            is_old = "outputs" not in content
            outputs, adopted = content.pop("outputs", {}), content.pop("adopted", None)
            state = _State(content, unfinished=content.pop("unfinished", None), adopted=adopted)
            state.made = {name: _made(values) for name, values in outputs.items()}
            if is_old:
                state.adopted = self.path.stat().st_mtime_ns, time.time_ns()
            if token := (state.unfinished or {}).get("journal"):
                _read_journal(self._beside(token), state)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError, KeyError):
            if is_needed:
                raise RecordError(
                    f"{str(self.path)!r} is damaged: give another output folder, or --overwrite"
                ) from None
            return None
        return state

    def _check_same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            lines = [f"  {name}: {before.get(name)} there, {now.get(name)} now" for name in changed]
            raise RecordError(
                f"the outputs in {str(self.path.parent)!r} were made with another model or other options:\n"
                + "\n".join(lines)
                + "\ngive another output folder, or --overwrite to make them again"
            )

    def _forget_lost(self) -> None:
        """Forget outputs that a crash of the machine has lost."""
        for name in self._state.unsynced & self._state.made.keys():
            if not self._state.made[name].is_whole(self.path.parent / name, verify=True):
                del self._state.made[name]
        self._state.unsynced.clear()

    def _check(self, jobs: Sequence[Job], verify: bool) -> set[Path]:
        """The outputs of ``jobs`` that are done. Forgets the others."""
        state = self._state

        def check(job: Job) -> Made | None:
            made = state.made.get(job.name) or self._adopted(job)
            if made is None or not made.is_whole(job.output, verify):
                return None
            source = made.source.found_at(*job.files, verify=verify)
            return source and made._replace(source=source)

        with ThreadPoolExecutor(CHECKING_THREADS) as executor:
            checked = dict(zip((job.name for job in jobs), executor.map(check, jobs), strict=True))
        for name, made in checked.items():
            state.made.pop(name, None)
            if made is not None:
                state.made[name] = made
        return {job.output for job in jobs if checked[job.name] is not None}

    def _adopted(self, job: Job) -> Made | None:
        """What version 0.1.0 must have made of a job's present input; None if it did not."""
        if self._state.adopted is None:
            return None
        try:
            made, source = job.output.stat(), job.source.stat()
        except OSError:
            return None
        since, until = self._state.adopted
        if made.st_size == 0 or not max(since, source.st_mtime_ns) <= made.st_mtime_ns <= until:
            return None
        return Made(Source(absolute(job.source), source.st_size, source.st_mtime_ns, None), made.st_size, None)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raise RuntimeError for what keeps the record at ``path`` from being written: no output is safe then."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(f"cannot keep the record {str(path)!r}: {error}") from error


def _read_journal(path: Path, state: _State) -> None:
    """Add to ``state`` what a journal says. Lines that a crash has torn are left out."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    names: list[str] = []
    for line in lines:
        try:
            content = json.loads(line)
            if isinstance(content, int):
                state.unsynced -= set(names[:content])
                continue
            name, values = content
            state.made[name] = _made(values)
        except (ValueError, TypeError):
            names.append("")
            continue
        names.append(name)
        state.unsynced.add(name)


def _made(values: Iterable[Any]) -> Made:
    source, size, digest = values
    return Made(Source(*source), size, digest)


def _check_free(outputs: Sequence[Path]) -> None:
    """Raise RecordError if any of ``outputs`` exists."""
    existing = [path for path in outputs if path.exists()]
    if existing:
        raise RecordError(
            f"{str(existing[0])!r} exists already, and no record says that it was made with this model and these "
            f"options ({len(existing)} such files): give another output, or --overwrite to replace them"
        )
