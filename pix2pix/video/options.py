"""What a run over a film, a pipe or a watched folder is asked to do, as values."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..files.options import TranslateOptions
from .names import input_kind, output_kind


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """The options of ``pix2pix translate`` for a film or numbered images; :func:`.translate.translate_video` does
    what they say.

    ``run.inputs`` is one file, or a name such as ``frames/%05d.png`` for numbered images; ``run.output`` is a file, a
    folder or such a name. ``codec`` is FFmpeg's name of an encoder, by default the one that suits the output's name.
    ``crf`` is its constant rate factor: less is better and larger. ``fps`` is how many numbered images make a second.
    """

    run: TranslateOptions
    codec: str | None = None
    crf: int | None = None
    fps: Fraction = Fraction(25)


STANDARD = Path("-")  # stdin as an input, stdout as an output


@dataclass(frozen=True, slots=True)
class PipeOptions:
    """The options of ``pix2pix translate - --output - --raw WxH``: raw frames of ``size`` (H, W) pixels."""

    run: TranslateOptions
    size: tuple[int, int]


def is_video(inputs: tuple[Path, ...], output: Path) -> bool:
    """Whether ``translate`` of these inputs into this output is a run over a film or numbered images."""
    return output_kind(output) is not None or any(input_kind(path) is not None for path in inputs)
