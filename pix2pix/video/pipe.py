"""Raw frames from one file descriptor to another, for pipelines of FFmpeg, GStreamer or OBS: :func:`translate_pipe`.

Frames are uint8 (H,W,Cin) and (H,W,Cout), concatenated. Each is written as soon as it is translated; meanwhile a thread
reads the next one, and another writes the one before.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np

from ..engines.base import Engine
from ..errors import ImageError, InputError
from ..files.fitting import pad
from ..files.outcome import NOT_FINITE, is_finite, is_suspicious
from ..files.raw import frames_at_once
from ..files.report import Report
from ..files.sharing import Ranks
from ..files.translate import Listener, Run
from .options import STANDARD, PipeOptions
from .threads import Behind, ahead

PIPE_BYTES = 1 << 20  # that a pipe holds at most, unless the system has another limit


def translate_pipe(
    options: PipeOptions, source: int, sink: int, listener: Listener | None = None, ranks: Ranks | None = None
) -> Report:
    """Translate frames from the file descriptor ``source`` to ``sink`` until one of them ends.

    That nobody reads ``sink`` any more ends the run in good order. Raises ValueError, RuntimeError or OSError, with a
    message for people, if the run cannot start. What ends it early, such as an input that ends within a frame, is said
    in the report.
    """
    options.run.engine.check()
    return _PipeRun(options, source, sink, listener or Listener(), ranks).run()


class _PipeRun(Run):
    by_root = True

    def __init__(self, options: PipeOptions, source: int, sink: int, listener: Listener, ranks: Ranks | None) -> None:
        run = options.run
        if run.inputs != (STANDARD,) or run.output != STANDARD:
            raise InputError("--raw is for frames from stdin to stdout: translate - --output - --raw WxH")
        if run.fit == "resize" or run.size or run.pair or run.gallery or run.format or run.instances:
            raise InputError("--raw takes no --fit resize, --size, --pair, --instances, --format or --gallery")
        super().__init__(replace(run, fit="pad"), listener, ranks)
        self.folder = run.output.parent
        self.size, self.source, self.sink = options.size, source, sink
        self.damage = ""

    def translate(self, engine: Engine) -> None:
        multiple = engine.generator.multiple
        height, width = (side + -side % multiple for side in self.size)
        frames_at_once(engine, height, width, 1, self.limits)
        self.listener.started(0)
        self.consume(self._frames(engine), lambda count: None, None)

    def _frames(self, engine: Engine) -> Generator[int, None, None]:
        """Translate all frames. Yields 1 for each. Raises ImageError in the end if the input ended within one."""
        height, width = self.size
        with suppress(BrokenPipeError), io.FileIO(self.sink, "wb", closefd=False) as sink:
            _enlarge(self.sink)

            def write(result: np.ndarray) -> None:
                left = result.data.cast("B")
                while left:
                    left = left[sink.write(left) :]
                self.report.counts["done"] += 1
                self.listener.progressed(1)

            with Behind(write, 1, is_waited_for=False) as behind:
                with closing(ahead(self._read(engine), 1, is_waited_for=False)) as frames:
                    for frame in frames:
                        result = engine.translate(frame)
                        if is_suspicious(result) and not is_finite(engine, frame):
                            raise ValueError(NOT_FINITE)
                        behind.put(np.ascontiguousarray(result[:height, :width]))
                        yield 1
                behind.finish()
        if self.damage:
            raise ImageError(self.damage)

    def _read(self, engine: Engine) -> Iterator[np.ndarray]:
        """The frames of the input, padded to what the network takes: uint8 (H,W,Cin)."""
        generator = engine.generator
        shape = (*self.size, generator.in_channels)
        number = 0
        with io.FileIO(self.source, "rb", closefd=False) as source:
            _enlarge(self.source)
            while True:
                frame = np.empty(shape, np.uint8)
                view = frame.data.cast("B")
                got = 0
                while got < len(view) and (count := source.readinto(view[got:])):
                    got += count
                if got < len(view):
                    break
                number += 1
                yield pad(frame, generator.multiple)
        if got:
            self.damage = f"the input ended within frame {number}: got {got} of {frame.nbytes} bytes"


def _enlarge(descriptor: int) -> None:
    """Let a pipe hold more, where the system can do that: a frame then takes fewer switches between processes."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
