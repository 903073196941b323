"""Models of PyTorch: state dicts of pytorch-CycleGAN-and-pix2pix, in files of torch.save."""

from __future__ import annotations

from ..containers import zips
from ..model_file import ModelFile
from ..sample import Sample
from ..tensors import Unread
from . import torch_file
from .state_dict import from_tensors

__all__ = ["from_tensors", "read", "recognises"]


def recognises(sample: Sample) -> bool:
    """Whether this is a zip archive or the older form of torch.save's files."""
    return sample.start.startswith((zips.START, torch_file.LEGACY_START))


def read(file: ModelFile, key: str | None) -> Unread:
    """Read a file of torch.save. ``key`` picks one of several generators. Raises CheckpointError."""
    return from_tensors(torch_file.load(file), key, "PyTorch state dict", file.budget)
