"""Run trained pix2pix generators fast, without the framework that trained them."""

from . import checkpoints
from .engines.base import Engine
from .loading import load
from .model.generator import Generator, Layer
from .plans.plan import Plan

__all__ = ["Engine", "Generator", "Layer", "Plan", "checkpoints", "load"]
__version__ = "0.1.0"
