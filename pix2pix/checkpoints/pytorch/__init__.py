"""Models of PyTorch: state dicts of the families of pix2pix and CycleGAN, in files of torch.save and torch.jit.save."""

from __future__ import annotations

from ..containers import zips
from ..containers.pickles import Attributes
from ..model_file import ModelFile
from ..sample import Sample
from ..tensors import Unread
from . import torch_file
from .state_dict import from_tensors
from .torchscript import state_dict

__all__ = ["from_tensors", "read", "recognises"]


def recognises(sample: Sample) -> bool:
    """Whether this is a zip archive or the older form of torch.save's files."""
    return sample.start.startswith((zips.START, torch_file.LEGACY_START))


def read(file: ModelFile, key: str | None) -> Unread:
    """Read a file of torch.save or torch.jit.save. ``key`` picks one of several generators. Raises CheckpointError."""
    content = torch_file.load(file)
    if not isinstance(content, Attributes):
        return from_tensors(content, key, "PyTorch state dict", file.budget)
    generator, weights = from_tensors(state_dict(content, file.budget), key, "TorchScript", file.budget)
    training = content.get("training")
    if "statistics" in generator.assumed and isinstance(training, bool):
        generator = generator.with_statistics("image" if training else "running")
    return generator, weights
