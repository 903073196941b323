"""Run trained pix2pix generators fast, without the framework that trained them.

Names are imported when they are first used, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import checkpoints
    from .engines.base import Engine
    from .loading import load
    from .model.generator import Generator, Layer
    from .plans.plan import Plan

__all__ = ["Engine", "Generator", "Layer", "Plan", "checkpoints", "load"]
__version__ = "0.1.0"

_ROOMS = {
    "Engine": "engines.base",
    "Generator": "model.generator",
    "Layer": "model.generator",
    "Plan": "plans.plan",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    try:  # a sub-package
        return import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
