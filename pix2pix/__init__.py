"""Run trained pix2pix generators fast, without the framework that trained them."""

from . import checkpoints
from .engine import Engine, load
from .generator import Generator, Layer
from .plan import Plan

__all__ = ["Engine", "Generator", "Layer", "Plan", "checkpoints", "load"]
__version__ = "0.1.0"
