"""What a run over image files is asked to do, as values: made once by whoever parses, passed whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..factory import EngineOptions
from ..model.generator import Statistics

Fit = Literal["resize", "pad"]
Pair = Literal["AtoB", "BtoA"]
OutputFormat = Literal["png", "jpg", "same"]
FileAccess = Literal["ranks", "root"]


@dataclass(frozen=True, slots=True)
class TranslateOptions:
    """The options of ``pix2pix translate``; :func:`.translate.translate` does what they say.

    ``inputs`` are image files and folders, or one raw .rgb file. ``output`` is a folder, or the name of a file for one
    input; ``to_folder`` makes it a folder whatever its name is. ``size`` is (H, W) in pixels; ``fit``, ``pair`` and
    ``format`` are explained by :class:`.fitting.Fitting` and :func:`.jobs.output_name`. For generators that take label
    maps, ``instances`` is the folder (or, for one input, the file) of images of the instances in them, and
    ``no_instance`` says that there are none. ``batch_size`` never changes a pixel. ``image_timeout``, seconds of
    processor time, and ``memory``, bytes, bound what an image may take (:class:`.limits.Limits`). ``io`` says which
    ranks of an MPI job read and write files. ``overwrite`` makes again what is there; ``verify`` compares the content
    of files, and not only sizes and times, before it keeps what is there; ``gallery`` adds an HTML page to the output
    folder.
    """

    inputs: tuple[Path, ...]
    output: Path
    model: Path
    engine: EngineOptions = EngineOptions()
    statistics: Statistics | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    to_folder: bool = False
    fit: Fit | None = None
    size: tuple[int, int] | None = None
    pair: Pair | None = None
    instances: Path | None = None
    no_instance: bool = False
    format: OutputFormat | None = None
    batch_size: int | None = None
    image_timeout: float = 30.0
    memory: int | None = None
    io: FileAccess = "ranks"
    overwrite: bool = False
    verify: bool = False
    gallery: bool = False
