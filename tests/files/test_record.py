"""The run record: what counts as made by the same model and options, from the same inputs, whole and on the disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pix2pix.atomic import process_name
from pix2pix.errors import RecordError
from pix2pix.files import record
from pix2pix.files.jobs import Job
from pix2pix.files.provenance import Made, Source
from pix2pix.files.record import RECORD_NAME, RunRecord

MODEL = {"model": "a", "size": "32x32"}


class Folder:
    """Inputs in one folder, and runs that make outputs of them in another."""

    def __init__(self, path: Path) -> None:
        self.path, self.output = path, path / "out"
        self.record = self.output / RECORD_NAME
        self.jobs = []
        for name in ("x0", "x1", "x2"):
            self.jobs.append(self.job(path / "in" / name))

    def job(self, source: Path) -> Job:
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(f"input {source}".encode())
        return Job(source, self.output / source.name, source.name)

    @contextmanager
    def run(self, **options) -> Iterator[tuple[RunRecord, set[str]]]:
        """A run that has begun; the names of the outputs that it found done."""
        made_by = options.pop("made_by", MODEL)
        with RunRecord(self.record) as run:
            yield run, {path.name for path in run.begin(made_by, self.jobs, **options)}

    def make(self, run: RunRecord, *jobs: Job) -> None:
        for job in jobs:
            content = b"made of " + job.source.read_bytes()
            run.put(job, content, Made.of(Source.of(job.source), content))

    def done(self, **options) -> set[str]:
        """What a run of the same command finds done; it makes the rest."""
        with self.run(**options) as (run, found):
            self.make(run, *(job for job in self.jobs if job.name not in found))
            run.finish(is_complete=True)
        return found

    def hidden(self) -> list[str]:
        return sorted(p.name for p in self.output.iterdir() if p.name.startswith("."))


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


ALL = {"x0", "x1", "x2"}


def test_a_finished_run_is_found_done_and_leaves_one_file(folder):
    assert folder.done() == set() and folder.hidden() == [RECORD_NAME]
    before = folder.record.read_bytes()
    assert json.loads(before)["model"] == "a" and set(json.loads(before)["outputs"]) == ALL
    assert folder.done() == ALL == folder.done(verify=True)
    assert folder.record.read_bytes() == before


def test_the_record_does_not_depend_on_the_order_or_on_stops(folder):
    assert folder.done() == set()
    before = folder.record.read_bytes()
    shutil.rmtree(folder.output)
    with folder.run() as (run, _):
        folder.make(run, folder.jobs[2])
        run.finish(is_complete=False)
    with folder.run() as (run, found):
        assert found == {"x2"}
        folder.make(run, folder.jobs[1])  # and is killed
    assert folder.done() == {"x1", "x2"} and folder.record.read_bytes() == before


@pytest.mark.parametrize("how", ["another content", "another size", "another file", "no file"])
def test_outputs_of_other_inputs_are_made_again(folder, how):
    folder.done()
    source = folder.jobs[1].source
    if how == "another content":
        source.write_bytes(source.read_bytes().swapcase())
        os.utime(source, ns=(0, 0))
    elif how == "another size":
        source.write_bytes(b"longer than it was, much longer than it was")
    elif how == "another file":
        folder.jobs = [folder.job(folder.path / "in2" / job.name) for job in folder.jobs]
        shutil.copystat(folder.path / "in" / "x1", folder.jobs[1].source)
    else:
        folder.jobs[1].output.unlink()
    assert folder.done() == (set() if how == "another file" else {"x0", "x2"})
    assert all(job.output.read_bytes() == b"made of " + job.source.read_bytes() for job in folder.jobs)
    assert folder.done() == ALL


def test_inputs_with_the_same_content_are_the_same(folder):
    folder.done()
    for job in folder.jobs:
        os.utime(job.source, ns=(1, 1))
    folder.path.joinpath("in").rename(folder.path / "moved")
    folder.jobs = [Job(folder.path / "moved" / job.name, job.output, job.name) for job in folder.jobs]
    assert folder.done() == ALL


@pytest.mark.parametrize("content", [b"", b"cut", None])
def test_outputs_that_are_not_whole_are_made_again(folder, content):
    folder.done()
    output = folder.jobs[1].output
    whole = output.read_bytes()
    if content is None:
        output.write_bytes(bytes(len(whole)))  # of the same size: only --verify looks
        assert folder.done() == ALL
    else:
        output.write_bytes(content)
    assert folder.done(verify=content is None) == {"x0", "x2"} and output.read_bytes() == whole


def test_after_a_crash_what_was_not_synced_is_compared(folder):
    with folder.run() as (run, _):
        folder.make(run, *folder.jobs[:2])
    damaged = folder.jobs[0].output
    damaged.write_bytes(bytes(damaged.stat().st_size))  # as some file systems leave it after a power cut
    with folder.run() as (run, found):
        assert found == {"x1"}
        folder.make(run, folder.jobs[0])
        run.finish(is_complete=True)
    assert folder.done() == {"x0", "x1"}


def test_a_torn_journal_costs_its_last_line(folder):
    with folder.run() as (run, _):
        folder.make(run, *folder.jobs)
    (journal,) = [p for p in folder.output.glob(".*.partial") if len(p.name.split(".")[2]) == 8]
    journal.write_bytes(journal.read_bytes()[:-20])
    assert folder.done() == {"x0", "x1"}


def test_outputs_are_synced_while_the_run_goes(folder, monkeypatch):
    synced = []
    monkeypatch.setattr(record, "SECONDS_BETWEEN_SYNCS", 0.0)
    monkeypatch.setattr(record, "sync", synced.extend)
    with folder.run() as (run, _):
        folder.make(run, folder.jobs[0])
        while not synced:
            pass
        folder.make(run, *folder.jobs[1:])
        run.finish(is_complete=True)
    assert sorted(path.name for path in synced) == ["x0", "x1", "x2"]


def test_a_disk_that_fails_to_sync_stops_the_run(folder, monkeypatch):
    def fail(paths):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(record, "sync", fail)
    with folder.run() as (run, _), pytest.raises(RuntimeError, match="Input/output error"):
        folder.make(run, *folder.jobs)
        run.finish(is_complete=True)


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_folder_that_is_moved_or_removed_stops_the_run(folder, how):
    with folder.run() as (run, _), pytest.raises(RuntimeError, match="was moved or removed during the run"):
        folder.make(run, folder.jobs[0])
        folder.output.rename(folder.path / "moved") if how == "moved" else shutil.rmtree(folder.output)
        folder.make(run, folder.jobs[1])
        run.finish(is_complete=True)


def test_another_model_is_never_mixed(folder):
    folder.done()
    with pytest.raises(RecordError, match=r"model: a there, b now"):
        folder.done(made_by=MODEL | {"model": "b"})
    assert folder.done(made_by=MODEL | {"model": "b"}, overwrite=True) == set()
    assert folder.done(made_by=MODEL | {"model": "b"}) == ALL


def test_overwriting_goes_on_where_it_was_stopped_and_then_begins_anew(folder):
    folder.done()
    for stop in (lambda run: run.finish(is_complete=False), lambda run: None):  # stopped, killed
        with folder.run(overwrite=True) as (run, found):
            assert found == set()
            folder.make(run, folder.jobs[0])
            stop(run)
        assert folder.done(overwrite=True) == {"x0"}
    with folder.run(overwrite=True, made_by=MODEL | {"model": "b"}) as (run, found):
        folder.make(run, folder.jobs[0])
    assert folder.done(overwrite=True) == set()


def test_overwriting_some_outputs_keeps_the_others(folder):
    folder.done()
    every, folder.jobs = folder.jobs, folder.jobs[:1]
    folder.done(overwrite=True)
    folder.jobs = every
    assert folder.done() == ALL


def test_files_of_unknown_origin_are_not_replaced(folder):
    folder.output.mkdir()
    (folder.output / "x1").write_bytes(b"precious")
    with pytest.raises(RecordError, match="exists already"):
        folder.done()
    assert [p.name for p in folder.output.iterdir()] == ["x1"]


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"outputs": {"x": 1}}', '{"outputs": 1}'])
def test_a_damaged_record_is_refused(folder, content):
    folder.output.mkdir()
    folder.record.write_text(content)
    with pytest.raises(RecordError, match="damaged"):
        folder.done()
    assert folder.done(overwrite=True) == set() and folder.done() == ALL


def test_a_record_of_version_0_1_0_tells_by_times(folder):
    folder.output.mkdir()
    folder.record.write_text(json.dumps(MODEL))
    began = folder.record.stat().st_mtime_ns
    for job in folder.jobs:
        job.output.write_bytes(b"made long ago")
        os.utime(job.source, ns=(began, began - 10**9))
    older, empty = folder.jobs[0].output, folder.jobs[1].output
    os.utime(older, ns=(began, began - 1))
    empty.write_bytes(b"")
    with folder.run() as (run, found):
        assert found == {"x2"}
        folder.make(run, folder.jobs[0])
        folder.jobs[1].output.write_bytes(b"renamed, but not noted before the crash")
    assert folder.record.stat().st_mtime_ns == began
    assert folder.done() == {"x0", "x2"}
    os.utime(folder.jobs[2].source)  # exported again
    assert folder.done() == {"x0", "x1"}


def test_what_killed_runs_left_is_removed(folder):
    with folder.run() as (run, _):
        folder.make(run, folder.jobs[0])
    gone = f"99999999@{process_name().partition('@')[2]}"
    (folder.output / f".x1.{gone}.partial").write_bytes(b"half")
    (folder.output / f".{RECORD_NAME}.{gone}.partial").write_bytes(b"half")
    assert folder.done() == {"x0"} and folder.hidden() == [RECORD_NAME]
