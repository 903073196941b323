"""One run over image files or a raw file, from its options to its report: :func:`translate`.

Whatever can be refused is refused before the first image is read, most of it before the model is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..atomic import hidden_beside, remove_abandoned, write_atomically
from ..engines.base import Engine
from ..errors import InputError, RecordError
from ..factory import make_engine
from ..loading import read_model
from ..model.generator import Input
from .codecs import READABLE, WRITABLE, check_writable
from .fitting import Fitting
from .gallery import GALLERY_NAME, Gallery, thumbnail_edge
from .jobs import Inputs, Job, find_inputs, single_job
from .labels import check_instances, with_instances
from .limits import Limits
from .options import TranslateOptions
from .outcome import Outcome
from .provenance import Made, model_identity
from .raw import RAW, raw_frames, translate_raw
from .record import RECORD_NAME, RunRecord
from .report import Report
from .sharing import Ranks
from .stream import best_batch_size, translate_files

STOPS = (KeyboardInterrupt, OSError, RuntimeError, MemoryError, ValueError)  # end a run midway
PLAN_NAME = "pix2pix-plan.json"  # of a plan that was measured, beside the results


class Listener:
    """Hears how a run goes. All methods do nothing here; subclasses override what they want to hear."""

    def loaded(self, facts: list[str]) -> None:
        """The engine is ready; ``facts`` are lines about devices, model and plan."""

    def started(self, total: int) -> None:
        """``total`` images are to be translated."""

    def progressed(self, count: int) -> None:
        """``count`` more of them are dealt with."""

    def outcome(self, outcome: Outcome) -> None:
        """What became of an image file."""


def translate(options: TranslateOptions, listener: Listener | None = None, ranks: Ranks | None = None) -> Report:
    """Do a run. ``ranks``, of which this process is the first, share the work.

    Raises ValueError, RuntimeError or OSError, with a message for people, if the run cannot start. What ends it later,
    an interrupt too, is said in the report.
    """
    options.engine.check()
    kind = _RawRun if any(path.suffix.lower() == RAW for path in options.inputs) else _ImageRun
    return kind(options, listener or Listener(), ranks).run()


class Run:
    """What all kinds of run have in common. Constructors refuse what can be refused before the model is read."""

    folder: Path  # where the results go
    by_root: bool  # whether rank 0 alone reads and writes files, and sends images to the others

    def __init__(self, options: TranslateOptions, listener: Listener, ranks: Ranks | None) -> None:
        self.options, self.listener, self.ranks = options, listener, ranks
        self.limits = Limits(options.image_timeout, options.memory)

    def run(self) -> Report:
        measured = self._name_measured_plan()
        with closing(self._load()) as engine:
            info = engine.info
            if self.ranks:
                self.limits = replace(self.limits, processes=self.ranks.per_host)
            self.batch_size = self.options.batch_size or best_batch_size(engine)
            told = self.ranks.described() if self.ranks else [f"device: {info}"]
            told += [f"model: {remark}" for remark in engine.generator.remarks]
            self.listener.loaded([*told, *self._size_told(engine), *measured])
            facts = {"device": info.device, "threads": info.threads, "precision": self.options.engine.precision}
            self.report = Report(facts | {"model": str(self.options.model), "output": str(self.options.output)})
            self.translate(engine)
        if self.ranks:
            self.report.lost = list(self.ranks.lost.values())
            self.report.facts["ranks"] = self.ranks.summary()
        return self.report

    def translate(self, engine: Engine) -> None:
        """Do the work, and fill the report."""
        raise NotImplementedError

    def _size_told(self, engine: Engine) -> list[str]:
        """That the size of the images is a guess, and what changes it, if so."""
        size = engine.generator.size
        if "size" not in engine.generator.assumed or self.options.size or self.options.fit == "pad":
            return []
        return [f"size: {size}x{size}, which the model's file does not say: --size for another"]

    def _name_measured_plan(self) -> list[str]:
        """Name the file of the plan that gpu_layers "auto" measures, if no plan is given; what to tell of it."""
        engine = self.options.engine
        if engine.gpu_layers != "auto":
            return []
        plan = engine.plan or str(self.folder / PLAN_NAME)
        self.options = replace(self.options, engine=replace(engine, plan=plan))
        return [f"plan: {plan}, {'as measured before' if Path(str(plan)).exists() else 'measured now'}"]

    def _load(self) -> Engine:
        """The engine. The model's identity is computed meanwhile."""
        options = self.options
        model = read_model(options.model, options.statistics, options.key, options.overrides)
        with ThreadPoolExecutor(1) as executor:  # after reading: what is no model is refused at once
            identity = executor.submit(model_identity, options.model)
            make = self.ranks.make_engine if self.ranks else make_engine
            engine = make(*model, options.engine, release=True)
            if self.ranks and self.by_root:
                engine = self.ranks.one_engine(engine)
            self.identity = identity.result()
            return engine

    def made_by(self, engine: Engine, size: tuple[int, int] | None) -> dict[str, Any]:
        """The model and the options that pixels depend on, for the run record. ``size`` is (H, W)."""
        options = self.options
        return {
            "model": self.identity,
            "key": options.key,
            "overrides": dict(sorted(options.overrides.items())),
            "statistics": engine.generator.statistics,
            "precision": options.engine.precision,
            "tune": options.engine.tune,
            "plan": _plan_identity(engine),
            "size": size and f"{size[1]}x{size[0]}",
        }

    def consume(self, items: Generator[Any, None, None], take: Callable[[Any], None], record: RunRecord | None) -> None:
        """Take all items, and finish the record. What stops the run midway is reported, not raised."""
        stopped: BaseException | None = None
        try:
            with closing(items):
                for item in items:
                    take(item)
        except RecordError:
            raise
        except STOPS as error:
            stopped = error
        try:
            if record is not None:
                record.finish(is_complete=stopped is None)
        except STOPS as error:
            stopped = stopped or error
        self.report.stop(stopped)


class _ImageRun(Run):
    """Image files and folders."""

    def __init__(self, options: TranslateOptions, listener: Listener, ranks: Ranks | None) -> None:
        super().__init__(options, listener, ranks)
        inputs, output, format = options.inputs, options.output, options.format or "png"
        to_folder = options.to_folder or output.is_dir()
        check_instances(options.instances, inputs)
        self.to_file = output.suffix.lower() in READABLE and not to_folder
        self.folder = output.parent if self.to_file else output
        self.by_root = options.io == "root" or self.to_file
        if self.to_file:
            if len(inputs) > 1 or inputs[0].is_dir():
                raise InputError(f"the output {str(output)!r} is the name of one image: expected a folder")
            if options.gallery or options.format:
                name = str(output)
                raise InputError(f"--gallery and --format are for an output folder, {name!r} is the name of a file")
            self.jobs = [single_job(inputs[0], output)]
            self.inputs = Inputs(self.jobs, Counter(), {})
            return
        if output.exists() and not output.is_dir():
            raise InputError(f"the output {str(output)!r} is a file: expected a folder")
        if not to_folder and len(inputs) == 1 and inputs[0].is_file() and _is_suffix(output.suffix):
            name, kinds = str(output), ", ".join(WRITABLE)
            raise InputError(f"cannot write {name!r}: expected a name ending in {kinds}, or a folder: {name + '/'!r}")
        self.inputs = find_inputs(inputs, output, format)
        self.jobs = self.inputs.jobs

    def translate(self, engine: Engine) -> None:
        options = self.options
        self._find_instances(engine.generator.takes)
        fitting = Fitting.of(
            engine.generator,
            options.fit or "resize",
            options.size,
            options.pair,
            self.limits,
            with_instances=options.instances is not None,
        )
        for job in self.jobs:
            check_writable(job.output, fitting.out_channels)
        if self.to_file:
            remove_abandoned([options.output])
            self._stream(engine, fitting, None, set())
            return
        how: dict[str, Any] = {"fit": fitting.fit, "pair": options.pair, "format": options.format or "png"}
        if fitting.labels is not None:
            how["labels"] = fitting.labels
        made_by = self.made_by(engine, fitting.size) | how
        with RunRecord(options.output / RECORD_NAME) as record:
            finished = record.begin(made_by, self.jobs, overwrite=options.overwrite, verify=options.verify)
            remove_abandoned([options.output / GALLERY_NAME])
            self._stream(engine, fitting, record, finished)

    def _find_instances(self, takes: Input) -> None:
        """Give each job the image of the instances in its label map, if such images are there."""
        options = self.options
        if takes == "labels" and options.instances is None and not options.no_instance:
            raise InputError(
                "this generator takes label maps: give --instances and the folder with images of the instances in "
                "them, or --no-instance if it was trained without"
            )
        if options.instances is not None:
            self.jobs[:] = with_instances(self.jobs, options.inputs, options.instances)

    def _stream(self, engine: Engine, fitting: Fitting, record: RunRecord | None, finished: set[Path]) -> None:
        options = self.options
        edge = thumbnail_edge(len(self.jobs)) if options.gallery else None
        how: dict[str, Any] = {"finished": finished, "batch_size": self.batch_size, "thumbnail_edge": edge}
        if record is None:
            outcomes = translate_files(engine, self.jobs, fitting, put=self._put_single, **how)
        elif self.ranks and not self.by_root:
            outcomes = self.ranks.translate_files(engine, self.jobs, fitting, record.lock.path, **how)
        else:
            outcomes = translate_files(engine, self.jobs, fitting, put=record.put, **how)
        self.listener.started(len(self.jobs) - len(finished))
        self.report.left_out = self.inputs.left_out
        for folder, reason in self.inputs.unreadable.items():
            unread = Outcome(Job(folder, options.output, ""), "failed", f"cannot read this folder: {reason}")
            self.report.add(unread)
            self.listener.outcome(unread)
        with Gallery(options.output / GALLERY_NAME) as gallery:

            def take(outcome: Outcome) -> None:
                self.report.add(outcome)
                self.listener.outcome(outcome)
                if record is not None and outcome.made is not None:  # made by another rank, or put here
                    record.add(outcome.job.name, outcome.made, is_synced=outcome.is_synced)
                if outcome.thumbnails:
                    gallery.add(outcome.job.name, outcome.thumbnails, outcome.metrics)
                if outcome.job.output not in finished:
                    self.listener.progressed(1)

            def everything() -> Generator[Outcome, None, None]:
                yield from outcomes
                if options.gallery:
                    gallery.write(options.output.resolve().name, self._gallery_facts(fitting))

            self.consume(everything(), take, record)

    def _put_single(self, job: Job, content: bytes, _made: Made) -> None:
        """Write the only output, which has no record: another file of its name is not replaced without overwrite."""
        output = job.output
        if not self.options.overwrite and output.exists() and output.read_bytes() != content:
            raise RecordError(
                f"{str(output)!r} exists already, and this model with these options makes another image: give another "
                f"output, or --overwrite to replace it"
            )
        write_atomically(output, content)

    def _gallery_facts(self, fitting: Fitting) -> dict[str, str]:
        facts = {"Model": self.options.model.name, "Fit": fitting.fit}
        if fitting.size:
            facts["Size"] = f"{fitting.size[1]} \u00d7 {fitting.size[0]}"
        if fitting.pair:
            facts["Direction"] = fitting.pair
        return facts


class _RawRun(Run):
    """A raw file of frames."""

    by_root = True

    def __init__(self, options: TranslateOptions, listener: Listener, ranks: Ranks | None) -> None:
        super().__init__(options, listener, ranks)
        if len(options.inputs) > 1 or options.output.suffix.lower() != RAW:
            raise InputError(f"a raw {RAW} file is translated alone, into an --output that is a {RAW} file")
        if options.fit or options.pair or options.gallery or options.format or options.instances:
            raise InputError(
                f"a raw {RAW} file takes --size alone: not --fit, --pair, --instances, --format or --gallery"
            )
        self.job = single_job(options.inputs[0], options.output)
        self.folder = options.output.parent

    def translate(self, engine: Engine) -> None:
        options, job = self.options, self.job
        height, width = size = options.size or (engine.generator.size, engine.generator.size)
        engine.generator.check_size(height, width)
        total = raw_frames(job.source, height, width, engine.generator.in_channels)
        made_by = self.made_by(engine, size) | {"input": f"{job.source.name}, {job.source.stat().st_size} bytes"}
        with RunRecord(hidden_beside(job.output, RECORD_NAME)) as record:
            is_finished = record.begin(made_by, [job], overwrite=options.overwrite, verify=options.verify)
            self.listener.started(total)

            def take(count: int) -> None:
                self.report.counts["done"] += count
                self.listener.progressed(count)

            def frames() -> Generator[int, None, None]:
                if is_finished:
                    return
                made = yield from translate_raw(engine, job.source, job.output, size, self.batch_size, self.limits)
                record.add(job.name, made, is_synced=True)

            if is_finished:
                self.report.counts["skipped"] += total
            self.consume(frames(), take, record)


def _plan_identity(engine: Engine) -> str | None:
    """What tells the engine's plan from others: its algorithm if there is one for all layers, else a hex digest.

    Of the plan itself, not of --plan: another version of this package may choose another one.
    """
    plan = engine.info.plan
    if plan is None:
        return None
    does = {name: plan.to_dict()[name] for name in ("layers", "placement")}
    if len(algorithms := set(does["layers"].values())) == 1 and not does["placement"]:
        return algorithms.pop()
    return hashlib.sha256(json.dumps(does, sort_keys=True).encode()).hexdigest()


def _is_suffix(text: str) -> bool:
    """Whether ``text`` looks like the end of a file's name (.tga, .heic, .jp2) and not of a folder's (.v2, .2024)."""
    return re.fullmatch(r"\.[a-z][a-z0-9]{2,4}", text.lower()) is not None
