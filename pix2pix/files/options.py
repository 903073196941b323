"""What a run over image files is asked to do, as values: made once by whoever parses, passed whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..factory import EngineOptions
from ..model.generator import Statistics
from ..model.palette import Palette

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


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of ``pix2pix serve``; :func:`pix2pix.server.run.serve` does what they say.

    ``models`` are (name, file); the first answers requests that name none. ``engine`` to ``image_timeout`` are those
    of :class:`TranslateOptions`, for all models; ``fit``, ``size``, ``pair`` and ``format`` are what a request gets
    that asks for nothing else. Requests must give the ``token`` if there is one. Pages of ``allow_origins`` may use the
    server from a browser, beside its own. ``hosts`` are names that a request may call this server by, besides those of
    a loopback address: where it listens on one, others are refused.

    The page offers the labels of ``palette`` for models whose files have none, and ``examples``, PNG images.

    ``max_queue`` images wait at most, and each up to ``max_delay`` seconds for others of its size. A request body has
    up to ``max_body`` bytes and comes within ``body_timeout`` seconds, an image has up to ``max_pixels`` when padded,
    and all requests together take up to ``max_bytes``. ``grace`` is how many seconds requests get to finish when the
    server is to end.
    """

    models: tuple[tuple[str, Path], ...]
    host: str = "127.0.0.1"
    port: int = 8000
    engine: EngineOptions = EngineOptions()
    statistics: Statistics | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    fit: Fit = "resize"
    size: tuple[int, int] | None = None
    pair: Pair | None = None
    no_instance: bool = False
    format: OutputFormat = "png"
    image_timeout: float = 30.0
    memory: int | None = None
    token: str | None = None
    allow_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    palette: Palette = ()
    examples: tuple[Path, ...] = ()
    max_queue: int = 64
    max_delay: float = 0.005
    max_body: int = 64 << 20
    max_pixels: int = 1 << 24
    max_bytes: int = 1 << 30
    body_timeout: float = 30.0
    grace: float = 10.0
