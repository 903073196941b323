"""What a run has to do: which input files, and the output file of each.

An output's name depends on its input's name alone, never on what else is in the folder, and no two names give the
same: ``x.png`` stays ``x.png``; everything else gets ``.png`` after its whole name (``x.jpg.png``, ``x.PNG.png``), and
so does a name that could have come about that way (``x.jpg.png`` -> ``x.jpg.png.png``).
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from ..errors import InputError
from .codecs import READABLE, SUFFIXES, WRITABLE
from .options import OutputFormat


@dataclass(frozen=True, slots=True)
class Job:
    """One image to translate: its file, the file to write, and the latter's name inside the output folder.

    ``instances`` is the image of the instances in a label map, if the generator takes their edges.
    """

    source: Path
    output: Path
    name: str
    instances: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read."""
        return (self.source,) if self.instances is None else (self.source, self.instances)


class Inputs(NamedTuple):
    """What a run finds: jobs; how many files were left out, by reason; folders that cannot be read, and why."""

    jobs: list[Job]
    left_out: Counter[str]
    unreadable: dict[Path, str]


def left_out_words(left_out: Counter[str]) -> str:
    """What was left out, in words."""
    return "left out: " + ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())


def output_name(name: str, format: str = "png") -> str:
    """The name of the output for an input called ``name``, of a suffix without its dot.

    ``same`` keeps its kind where that can be written.
    """
    stem, suffix = os.path.splitext(name)
    wanted = f".{format}" if format != "same" else suffix if suffix.lower() in WRITABLE else ".png"
    ambiguous = os.path.splitext(stem)[1].lower() in SUFFIXES
    return name if suffix == wanted and not ambiguous else name + wanted


def natural(path: PurePath) -> list[list[tuple[int, int, str]]]:
    """A sort key under which ``x2`` comes before ``x10``, and a folder's files stay together."""
    return [
        [(0, int(s), s) if s.isdecimal() else (1, 0, s) for s in re.split(r"(\d+)", part) if s] for part in path.parts
    ]


def find_jobs(inputs: Sequence[str | os.PathLike[str]], output: Path, format: OutputFormat = "png") -> list[Job]:
    """The jobs of :func:`find_inputs`."""
    return find_inputs(inputs, output, format).jobs


def find_inputs(
    inputs: Sequence[str | os.PathLike[str]], output: Path, format: OutputFormat = "png", may_be_none: bool = False
) -> Inputs:
    """The jobs for image files and folders, in natural order, and what was left out.

    Of a folder, all image files are taken, those in its sub-folders too (linked ones included, each folder once),
    but nothing hidden and nothing inside ``output``. Outputs keep their path inside a folder; if several inputs are
    given, the folder's own name comes first. Raises InputError if an input isn't there, there is nothing to do (unless
    there ``may_be_none``), two inputs have the same output, or an output would replace an input.
    """
    jobs: dict[tuple[Path, str], Job] = {}
    result = Inputs([], Counter(), {})
    for path in map(Path, inputs):
        if path.is_dir():
            found = [(file, file.relative_to(path)) for file in sorted(_images(path, output, result), key=natural)]
            if len(inputs) > 1:
                found = [(file, path.resolve().name / relative) for file, relative in found]
        elif path.exists():
            found = [(path, Path(path.name))]
        else:
            raise InputError(f"there is no file or folder {str(path)!r}")
        for source, relative in found:
            name = relative.with_name(output_name(relative.name, format)).as_posix()
            jobs.setdefault((source.resolve(), name), Job(source, output / name, name))
    if not jobs and not may_be_none:
        told = [f"cannot read {str(folder)!r}: {reason}" for folder, reason in result.unreadable.items()]
        if result.left_out:
            told.append(left_out_words(result.left_out))
        raise InputError(
            f"found no images in {', '.join(map(str, inputs))}: "
            + "; ".join([f"expected files ending in {', '.join(READABLE)}", *told])
        )
    _check(jobs)
    result.jobs.extend(jobs.values())
    return result


def single_job(source: str | os.PathLike[str], output: Path) -> Job:
    """The job that writes one image to a file of a given name. Raises InputError as :func:`find_jobs` does."""
    source = Path(source)
    if not source.exists():
        raise InputError(f"there is no file {str(source)!r}")
    job = Job(source, output, output.name)
    _check({(source.resolve(), job.name): job})
    return job


def _images(folder: Path, excluded: Path, result: Inputs) -> Iterator[Path]:
    """The image files below ``folder``, outside ``excluded``; notes in ``result`` what is left out.

    Links to folders are followed after all that isn't linked: a folder with several names is taken once, under its
    own if it lies below ``folder``, and links in a circle come to an end.
    """
    excluded = excluded.resolve()
    if folder.resolve() == excluded:
        raise InputError(f"the output folder {str(folder)!r} is the input folder: give another with --output")
    seen: set[Path] = set()
    starts = deque([folder])

    def note(error: OSError) -> None:
        result.unreadable[Path(error.filename)] = error.strerror or str(error)

    while starts:
        for parent, folders, files in os.walk(starts.popleft(), onerror=note):
            here = Path(parent)
            resolved = here.resolve()
            if resolved in seen:
                folders.clear()
                continue
            seen.add(resolved)
            hidden = [name for name in folders if name.startswith(".")]
            result.left_out.update(["hidden"] * len(hidden))
            folders[:] = sorted(n for n in {*folders}.difference(hidden) if (here / n).resolve() != excluded)
            links = [here / name for name in folders if (here / name).is_symlink()]  # os.walk leaves these out
            starts.extend(link for link in links if not link.resolve().is_relative_to(excluded))
            for name in files:
                suffix = os.path.splitext(name)[1].lower()
                if name.startswith("."):
                    result.left_out["hidden"] += 1
                elif suffix in READABLE:
                    yield here / name
                else:
                    result.left_out[_reason(suffix)] += 1


def _reason(suffix: str) -> str:
    """Why a file is left out."""
    if suffix in SUFFIXES:
        return f"ending in {suffix} (to read these, {SUFFIXES[suffix].needs})"
    return f"ending in {suffix}" if suffix else "without a suffix"


def _check(jobs: dict[tuple[Path, str], Job]) -> None:
    """Raise InputError for outputs that would replace each other or an input."""
    sources = {source for source, _ in jobs}
    writes: dict[Path, Job] = {}
    for job in jobs.values():
        other = writes.setdefault(job.output, job)
        if other is not job:
            raise InputError(
                f"{str(other.source)!r} and {str(job.source)!r} would both be written to {str(job.output)!r}: "
                f"give the folders that they are in, or translate them in two runs"
            )
        if job.output.resolve() in sources:
            raise InputError(f"the output {str(job.output)!r} would replace an input: give another folder or name")
