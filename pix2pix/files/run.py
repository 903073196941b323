"""One ``pix2pix translate`` command, from its options to its exit status; :mod:`pix2pix.cli` calls it.

Whatever can be refused is refused before the first picture is read, most of it before the model is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..engines.base import Engine
from ..errors import InputError
from ..factory import EngineOptions, make_engine
from ..loading import read_model
from .gallery import GALLERY_NAME, Gallery, thumbnail_edge
from .images import READABLE, WRITERS, Fitting, check_writable
from .jobs import find_jobs, single_job
from .record import RECORD_NAME, begin, check_free, model_identity
from .report import Progress, Report
from .stream import Outcome, best_batch_size, raw_frames, translate_files, translate_raw

if TYPE_CHECKING:
    from ..mpi import Ranks

RAW = ".rgb"
PLAN_NAME = "pix2pix-plan.json"  # of a plan that was measured, beside the results
STDOUT = Path("-")  # as the name of the JSON file
RESUME = "outputs that are there are whole; give the same command again to go on"


def run_translate(args: argparse.Namespace, out: TextIO, err: TextIO, ranks: Ranks | None = None) -> int:
    """Do the parsed command ``args``; results go to ``out``, everything else to ``err``. Returns the exit status.

    ``ranks``, of which this one is the first, share the work.

    Raises ValueError, RuntimeError or OSError with a message for people if the run cannot start.
    """
    engine_options(args).check()
    if any(path.suffix.lower() == RAW for path in args.inputs):
        return _RawRun(args, out, err, ranks).run()
    return _PictureRun(args, out, err, ranks).run()


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """The options of the engine among those of a command."""
    return EngineOptions(args.device, args.precision, args.tune, args.plan, args.threads, args.workers, args.gpu_layers)


def _plan_identity(engine: Engine) -> str | None:
    """What tells the engine's plan from others: its algorithm if there is one for all layers, else a hex digest.

    Of the plan itself, not of --plan: another version of this package may choose another one.
    """
    plan = engine.info.plan
    if plan is None:
        return None
    if len(algorithms := set(plan.layers.values())) == 1 and not plan.placement:
        return algorithms.pop()
    does = {"layers": dict(plan.layers), "placement": dict(plan.placement)}
    return hashlib.sha256(json.dumps(does, sort_keys=True).encode()).hexdigest()


def _is_suffix(text: str) -> bool:
    """Whether ``text`` looks like the end of a file's name (.tga, .heic, .jp2) and not of a folder's (.v2, .2024)."""
    return re.fullmatch(r"\.[a-z][a-z0-9]{2,4}", text.lower()) is not None


class _Command:
    """What both kinds of run have in common."""

    def __init__(self, args: argparse.Namespace, out: TextIO, err: TextIO, ranks: Ranks | None) -> None:
        self.args, self.out, self.err, self.ranks = args, out, err, ranks

    def run(self) -> int:
        self.prepare()
        self._check_json()
        measured = self._measured_plan()
        engine, self.identity = self._load()
        with closing(engine):
            self.batch_size = self.args.batch_size or best_batch_size(engine)
            device = {"device": engine.info.device, "threads": engine.info.threads}
            told = self.ranks.described() if self.ranks else [f"device: {engine.info}"]
            told += [f"model: {remark}" for remark in engine.generator.remarks] + measured
            self.err.write("\n".join(told) + "\n")
            self.err.flush()
            model_and_output = {"model": str(self.args.model), "output": str(self.args.output)}
            self.report = Report({**device, "precision": self.args.precision, **model_and_output})
            return self.translate(engine)

    def prepare(self) -> None:
        """Refuse what can be refused before the model is read."""
        raise NotImplementedError

    def folder(self) -> Path:
        """Where the results go."""
        raise NotImplementedError

    def by_root(self) -> bool:
        """Whether rank 0 alone reads and writes files, and sends pictures to the others."""
        raise NotImplementedError

    def translate(self, engine: Engine) -> int:
        """Do the run; returns the exit status."""
        raise NotImplementedError

    def _check_json(self) -> None:
        """Raise InputError if the summary could not be written in the end."""
        path = self.args.json
        if path is None or path == STDOUT:
            return
        if path.is_dir():
            raise InputError(f"--json {str(path)!r} is a folder: expected the name of a file, or - for stdout")
        folder = next(parent for parent in path.absolute().parents if parent.exists())  # the rest of them is made
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            why = "may not be written to" if folder.is_dir() else "is no folder"
            raise InputError(f"cannot write --json {str(path)!r}: {str(folder)!r} {why}: give another name")

    def _measured_plan(self) -> list[str]:
        """Name the file of the plan that --gpu-layers auto measures, if --plan doesn't; what to tell of it."""
        if self.args.gpu_layers != "auto":
            return []
        self.args.plan = self.args.plan or str(self.folder() / PLAN_NAME)
        when = "as measured before" if Path(self.args.plan).exists() else "measured now"
        return [f"plan: {self.args.plan}, {when}"]

    def _load(self) -> tuple[Engine, str]:
        """The engine, and the identity of its model, computed meanwhile."""
        args = self.args
        with ThreadPoolExecutor(1) as executor:
            identity = executor.submit(model_identity, args.model)
            model = read_model(args.model, args.statistics, args.key, dict(args.set or ()))
            make = self.ranks.make_engine if self.ranks else make_engine
            engine = make(*model, engine_options(self.args), release=True)
            if self.ranks and self.by_root():
                engine = self.ranks.one_engine(engine)
            return engine, identity.result()

    def made_by(self, engine: Engine, size: tuple[int, int] | None) -> dict[str, Any]:
        """The model and the options that pixels depend on, for the run record. ``size`` is (H, W)."""
        args = self.args
        return {
            "model": self.identity,
            "key": args.key,
            "overrides": dict(sorted(args.set or ())),
            "statistics": engine.generator.statistics,
            "precision": args.precision,
            "tune": args.tune,
            "plan": _plan_identity(engine),
            "size": size and f"{size[1]}x{size[0]}",
        }

    def consume(self, items: Iterator[Any], take: Callable[[Any], None], progress: Progress) -> int:
        """Take all items; returns the exit status. What stops the run midway is told and reported, not raised."""
        try:
            for item in items:
                take(item)
            self.report.stop()
        except KeyboardInterrupt:
            self.report.stop("interrupted")
            progress.message(f"interrupted: {RESUME}")
            return 130
        except (OSError, RuntimeError, MemoryError, ValueError) as error:
            self.report.stop(str(error) or type(error).__name__)
            progress.message(f"stopped: {self.report.stopped}: {RESUME}")
        return self.report.exit_status

    def finish(self, status: int) -> int:
        """Tell the summary; returns the exit status. If the JSON goes to ``out``, nothing else does."""
        if self.ranks:
            self.report.lost = list(self.ranks.lost.values())
            self.report.facts["ranks"] = self.ranks.summary()
        to_out = self.args.json == STDOUT
        if not self.args.quiet:
            (self.err if to_out else self.out).write(self.report.text() + "\n")
        if self.args.json:
            try:
                if to_out:
                    self.out.write(self.report.json())
                    self.out.flush()
                else:
                    self.report.save(self.args.json)
            except OSError as error:
                self.err.write(f"cannot write the summary: {error}\n")
                return status or 1
        return status


class _PictureRun(_Command):
    """Image files and folders."""

    def prepare(self) -> None:
        args = self.args
        to_folder = args.to_folder or args.output.is_dir()
        self.to_file = args.output.suffix.lower() in READABLE and not to_folder
        if self.to_file:
            if len(args.inputs) > 1 or args.inputs[0].is_dir():
                raise InputError(f"the output {str(args.output)!r} is the name of one picture: expected a folder")
            if args.gallery or args.format:
                name = str(args.output)
                raise InputError(f"--gallery and --format are for an output folder, {name!r} is the name of a file")
            self.jobs = [single_job(args.inputs[0], args.output)]
            return
        if args.output.exists() and not args.output.is_dir():
            raise InputError(f"the output {str(args.output)!r} is a file: expected a folder")
        if not to_folder and len(args.inputs) == 1 and args.inputs[0].is_file() and _is_suffix(args.output.suffix):
            name, kinds = str(args.output), ", ".join(WRITERS)
            raise InputError(f"cannot write {name!r}: expected a name ending in {kinds}, or a folder: {name + '/'!r}")
        self.jobs = find_jobs(args.inputs, args.output, args.format or "png")

    def folder(self) -> Path:
        return self.args.output.parent if self.to_file else self.args.output

    def by_root(self) -> bool:
        return self.args.io == "root" or self.to_file

    def translate(self, engine: Engine) -> int:
        args = self.args
        fitting = Fitting.of(engine.generator, args.fit or "resize", args.size, args.pair)
        for job in self.jobs:
            check_writable(job.output, fitting.out_channels)
        finished = self._begin(engine, fitting)
        edge = thumbnail_edge(len(self.jobs)) if args.gallery else None
        options: dict[str, Any] = {"finished": finished, "batch_size": self.batch_size, "thumbnail_edge": edge}
        if self.ranks and not self.by_root():
            record = args.output / RECORD_NAME
            outcomes = self.ranks.translate_files(engine, self.jobs, fitting, record, **options)
        else:
            outcomes = translate_files(engine, self.jobs, fitting, **options)
        left = len(self.jobs) - len(finished)
        with Gallery(args.output / GALLERY_NAME) as gallery, Progress(left, self.err, args.quiet) as progress:

            def take(outcome: Outcome) -> None:
                self.report.add(outcome)
                if outcome.status == "failed":
                    progress.message(f"failed: {outcome.job.source}: {outcome.reason}")
                if outcome.thumbnails:
                    gallery.add(outcome.job.name, outcome.thumbnails, outcome.metrics)
                if outcome.job.output not in finished:
                    progress.update(1)

            def everything() -> Iterator[Outcome]:
                with closing(outcomes):
                    yield from outcomes
                if args.gallery:
                    gallery.write(args.output.resolve().name, self._gallery_facts(fitting))

            status = self.consume(everything(), take, progress)
        return self.finish(status)

    def _begin(self, engine: Engine, fitting: Fitting) -> set[Path]:
        """The outputs that an earlier run made already."""
        args, outputs = self.args, [job.output for job in self.jobs]
        if self.to_file:
            if not args.overwrite:
                check_free(outputs)
            return set()
        how = {"fit": fitting.fit, "pair": args.pair, "format": args.format or "png"}
        made_by = self.made_by(engine, fitting.size) | how
        return begin(args.output / RECORD_NAME, made_by, outputs, args.overwrite)

    def _gallery_facts(self, fitting: Fitting) -> dict[str, str]:
        facts = {"Model": self.args.model.name, "Fit": fitting.fit}
        if fitting.size:
            facts["Size"] = f"{fitting.size[1]} \u00d7 {fitting.size[0]}"
        if fitting.pair:
            facts["Direction"] = fitting.pair
        return facts


class _RawRun(_Command):
    """A raw file of frames."""

    def prepare(self) -> None:
        args = self.args
        if len(args.inputs) > 1 or args.output.suffix.lower() != RAW:
            raise InputError(f"a raw {RAW} file is translated alone, into an --output that is a {RAW} file")
        if args.fit or args.pair or args.gallery or args.format:
            raise InputError(f"a raw {RAW} file takes --size alone: not --fit, --pair, --format or --gallery")
        self.source = single_job(args.inputs[0], args.output).source

    def folder(self) -> Path:
        return self.args.output.parent

    def by_root(self) -> bool:
        return True

    def translate(self, engine: Engine) -> int:
        args, source = self.args, self.source
        height, width = size = args.size or (engine.generator.size, engine.generator.size)
        engine.generator.check_size(height, width)
        total = raw_frames(source, height, width, engine.generator.in_channels)
        record = args.output.with_name(f".{args.output.name}{RECORD_NAME}")
        made_by = self.made_by(engine, size) | {"input": f"{source.name}, {source.stat().st_size} bytes"}
        with Progress(total, self.err, args.quiet) as progress:

            def take(count: int) -> None:
                self.report.counts["done"] += count
                progress.update(count)

            if begin(record, made_by, [args.output], args.overwrite):
                self.report.counts["skipped"] += total
                status = self.consume(iter(()), take, progress)
            else:
                with closing(translate_raw(engine, source, args.output, size, self.batch_size)) as frames:
                    status = self.consume(frames, take, progress)
        return self.finish(status)
