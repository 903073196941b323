"""The exceptions of this package, all of one root.

Pix2PixError
|-- CheckpointError   (ValueError)    a model file that cannot be read
|   `-- NoGeneratorError              it holds another part of a training, such as a discriminator
|-- ImageError        (ValueError)    an image file that cannot be used
|-- InputError        (ValueError)    inputs and an output that no run can be made of
|-- RecordError       (ValueError)    an output folder with something that a run must not replace
|-- RanksLostError    (RuntimeError)  MPI processes that died
|-- RootLostError     (RuntimeError)  rank 0 died
`-- RankHungError     (RuntimeError)  an MPI process that no longer responds

Each keeps a base of Python's own, so that callers can catch them without this module. Wrong arguments raise plain
TypeError and ValueError; unavailable hardware raises plain RuntimeError.
"""

from __future__ import annotations

from collections.abc import Sequence


class Pix2PixError(Exception):
    """The root of all exceptions that this package defines."""


class CheckpointError(Pix2PixError, ValueError):
    """A file that is not a readable model, or is damaged. The message says what to do."""


class NoGeneratorError(CheckpointError):
    """A file with something that is no generator: a discriminator, an optimizer, other weights."""


class ImageError(Pix2PixError, ValueError):
    """An image file that cannot be used. The message is the reason, without the file's name."""


class InputError(Pix2PixError, ValueError):
    """Inputs and an output that no run can be made of."""


class RecordError(Pix2PixError, ValueError):
    """The output folder holds files that this run must neither mix with nor replace."""


class RanksLostError(Pix2PixError, RuntimeError):
    """Some MPI ranks died. The survivors can communicate again; messages in flight are lost.

    ``ranks`` are their numbers. The message is for callers that cannot go on.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        named = ", ".join(f"rank {rank}" for rank in ranks)
        super().__init__(f"{named} died before the work had begun: give the same command again")
        self.ranks = ranks


class RankHungError(Pix2PixError, RuntimeError):
    """An MPI rank gave no sign of life within its timeout, or its engine no result. The job ends."""


class RootLostError(Pix2PixError, RuntimeError):
    """Rank 0 died. It alone knows what has to be done, so the other ranks cannot go on."""
