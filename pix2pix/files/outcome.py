"""From an engine's output to a file, and to an :class:`Outcome`."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from ..atomic import write_atomically
from ..engines.base import Engine
from ..errors import ImageError
from . import codecs, metrics
from .fitting import FittedImage, Fitting
from .gallery import Thumbnails
from .jobs import Job
from .limits import Deferred
from .provenance import Made, Source

NOT_FINITE = "the generator's output is not finite: its weights are damaged, or its options (eps) do not suit it"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job.

    ``reason`` is why it failed. ``metrics`` compare the output with the target, if there is one. ``thumbnails`` are
    for a gallery, if one was asked for. ``made`` is for the run record; ``is_synced`` says that the output is on the
    disk.
    """

    job: Job
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    metrics: Mapping[str, float] | None = None
    thumbnails: Thumbnails | None = None
    made: Made | None = None
    is_synced: bool = False


class Item(NamedTuple):
    """A job whose input is decoded."""

    job: Job
    image: FittedImage
    source: Source


Put = Callable[[Job, bytes, Made], None]  # writes the output of a job: its content, and what that was made from


def put_file(job: Job, content: bytes, _made: Made) -> None:
    """Write an output."""
    write_atomically(job.output, content, sync=False)


@dataclass(frozen=True, slots=True)
class Finisher:
    """Writes outputs, compares them with targets, and makes thumbnails. Thread-safe."""

    engine: Engine
    fitting: Fitting
    thumbnail_edge: int | None
    put: Put

    @property
    def shows(self) -> bool:
        """Whether outputs are compared with targets, or shown in a gallery."""
        return bool(self.fitting.pair or self.thumbnail_edge)

    def finish(self, item: Item, output: np.ndarray) -> Outcome:
        """Write what the engine made of an image, uint8 (H,W,Cout).

        Raises OSError if the disk is full, MemoryError or Deferred if memory ends.
        """
        job = item.job
        if is_suspicious(output) and not is_finite(self.engine, item.image.pixels):
            return Outcome(job, "failed", NOT_FINITE)
        try:
            content = codecs.encode(output, job.output.suffix)
            made = Made.of(item.source, content)
            self.put(job, content, made)
            if self.shows and not codecs.WRITABLE[job.output.suffix.lower()].is_lossless:
                output = codecs.read(io.BytesIO(content), self.fitting.out_channels)  # as later runs will see it
            return replace(self._outcome(job, "done", item.image, output), made=made)
        except Deferred:
            raise
        except ImageError as error:
            return Outcome(job, "failed", str(error))
        except OSError as error:
            if is_fatal(error):
                raise
            return Outcome(job, "failed", f"cannot write {str(job.output)!r}: {error.strerror or error}")

    def review(self, job: Job, image: FittedImage) -> Outcome:
        """The outcome of a job that an earlier run did. Raises ImageError if its output cannot be read."""
        output = codecs.read(job.output, self.fitting.out_channels)
        if output.shape[:2] != (image.height, image.width):
            return Outcome(job, "failed", f"{str(job.output)!r} has another size than it should: use --overwrite")
        return self._outcome(job, "skipped", image, output)

    def _outcome(self, job: Job, status: Literal["done", "skipped"], image: FittedImage, output: np.ndarray) -> Outcome:
        compared = metrics.compare(output, image.target) if image.target is not None else None
        thumbnails = None
        if self.thumbnail_edge:
            thumbnails = Thumbnails.of(self.fitting.shown(image), output, image.target, self.thumbnail_edge)
        return Outcome(job, status, "", compared, thumbnails)


def is_suspicious(y: np.ndarray) -> bool:
    """Whether a translated image (H,W,C) may come from values that are not finite.

    Engines turn these into one byte, black or white, and norms spread them over the whole image.
    """
    return y.flat[0] in (0, 255) and bool((y == y.flat[0]).all())


def is_finite(engine: Engine, x: np.ndarray) -> bool:
    """Whether the engine's output for an image, uint8 (H,W,Cin), is finite. Computes it in floating point."""
    return bool(np.isfinite(engine.run(x / np.float32(127.5) - np.float32(1))).all())


def is_fatal(error: OSError) -> bool:
    """Whether no further file can be written either: the disk is full, over quota or read-only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
