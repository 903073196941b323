"""From a model file to an engine: :func:`load`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import checkpoints
from .engines.base import Engine
from .factory import EngineOptions, make_engine
from .model.generator import Generator, Statistics, Weights
from .plans.plan import Plan


def load(
    model: str | os.PathLike[str],
    device: str = "auto",
    precision: str = "float32",
    tune: str = "throughput",
    statistics: Statistics | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    threads: int | None = None,
    workers: int | None = None,
    gpu_layers: str | None = None,
    key: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Engine:
    """Read a model file and make it ready to run.

    ``model`` is a file or folder of any format that :mod:`pix2pix.checkpoints` reads. ``device`` names one or several,
    see :mod:`pix2pix.devices`; ``precision`` is float32, int8, or bfloat16 where the processor has it, or, on a
    GPU, tf32, float16 or bfloat16. ``tune`` is ``latency`` (one image at a time) or ``throughput``.
    ``statistics=None`` keeps what the model's own framework does at test time. ``plan`` is a Plan, the name of an
    algorithm (``direct``) or a file. ``threads`` defaults to the physical cores that this process may use; with
    several devices, one less for each GPU. ``workers`` share the work, see :func:`pix2pix.devices.share_workers`;
    if there are more than one, the engine is a pool. ``gpu_layers`` places some layers on the GPU and the others on
    the CPU, in words that :mod:`pix2pix.plans.placements` explains; ``auto`` measures what is best and writes the
    file ``plan``, or takes that file if it exists. ``key`` picks one of several models in a file; ``overrides``
    corrects what the file does not say, e.g. ``{"eps": 1e-5}``.

    Raises CheckpointError for a file that is no readable model, ValueError for options that make no sense,
    RuntimeError for hardware that isn't there.
    """
    options = EngineOptions(device, precision, tune, plan, threads, workers, gpu_layers)
    options.check()
    generator, weights = read_model(model, statistics, key, overrides)
    return make_engine(generator, weights, options, release=True)


def read_model(
    model: str | os.PathLike[str],
    statistics: Statistics | None = None,
    key: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Generator, Weights]:
    """The (generator, weights) of a model file, corrected as :func:`load` says.

    Raises CheckpointError for a file that is no readable model, ValueError for corrections that make no sense.
    """
    generator, weights = checkpoints.read(Path(model), key=key)
    if overrides:
        generator = generator.with_overrides(overrides)
    if statistics is not None:
        generator = generator.with_statistics(statistics)
    if statistics == "running" and generator.eps is not None and not any(name.endswith(".mean") for name in weights):
        raise ValueError(f"got statistics 'running', but {os.fspath(model)!r} holds none: it needs 'image'")
    return generator, weights
