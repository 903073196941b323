"""Label maps, and the instances in them, as pix2pixHD encodes them for its generators.

Each label is a channel, 255 where it is (one-hot). One more channel can hold the edges of instances: both of two pixels
side by side, or one above the other, whose instances differ. Files store ids as greys or as palette indices.

Source: models/pix2pixHD_model.py and data/aligned_dataset.py of https://github.com/NVIDIA/pix2pixHD.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import ImageError, InputError
from .jobs import Job

CITYSCAPES = ("labelIds", "instanceIds")  # by which that data set's names differ
_HUE_STEP = 0.61803398875  # of a turn: the golden ratio keeps the colours of neighbouring ids apart


def encode(ids: np.ndarray, labels: int, instances: np.ndarray | None) -> np.ndarray:
    """Ids of labels (H,W) -> uint8 (H,W,labels), 255 or 0; with ``instances`` (H,W), one channel more for their edges.

    Raises ImageError for an id that is not from 0 to ``labels`` - 1.
    """
    wrong = ids[(ids < 0) | (ids >= labels)]
    if wrong.size:
        raise ImageError(f"label id {wrong[0]}, expected 0 to {labels - 1}: the generator takes {labels} labels")
    encoded = np.zeros((*ids.shape, labels + (instances is not None)), np.uint8)
    np.put_along_axis(encoded, ids[..., None].astype(np.intp), 255, axis=2)
    if instances is not None:
        encoded[..., labels] = 255 * edges(instances).astype(np.uint8)
    return encoded


def edges(instances: np.ndarray) -> np.ndarray:
    """Whether each pixel (H,W) has a neighbour at its left, right, top or bottom that is of another instance."""
    result = np.zeros(instances.shape, bool)
    for before, after in (((slice(None), slice(-1)), (slice(None), slice(1, None))), ((slice(-1),), (slice(1, None),))):
        differ = instances[before] != instances[after]
        result[before] |= differ
        result[after] |= differ
    return result


def check_instances(instances: Path | None, inputs: Sequence[Path]) -> None:
    """Raise InputError if images of instances are asked for that cannot be there."""
    if instances is None:
        return
    if not instances.exists():
        raise InputError(f"there is no file or folder {str(instances)!r} with images of instances")
    if not instances.is_dir() and (len(inputs) > 1 or inputs[0].is_dir()):
        raise InputError(f"the images of instances, {str(instances)!r}, are one file: expected a folder, as the inputs")


def with_instances(jobs: Iterable[Job], inputs: Sequence[Path], instances: Path) -> list[Job]:
    """Jobs that know the images of the instances in their label maps, which may not exist.

    That is ``instances`` itself if it is a file. In a folder, such an image lies and is called as its label map in that
    one of ``inputs`` that holds it; names may have Cityscapes' instanceIds in place of labelIds. Raises InputError for
    an output that would replace one of them.
    """
    found = [replace(job, instances=_instance_file(job.source, inputs, instances)) for job in jobs]
    files = {job.instances.resolve() for job in found if job.instances is not None}
    for job in found:
        if job.output.resolve() in files:
            raise InputError(f"the output {str(job.output)!r} would replace an image of instances: give another folder")
    return found


def _instance_file(source: Path, inputs: Sequence[Path], instances: Path) -> Path:
    if not instances.is_dir():
        return instances
    folder = next((path for path in inputs if path.is_dir() and source.is_relative_to(path)), source.parent)
    same = instances / source.relative_to(folder)
    renamed = same.with_name(same.name.replace(*CITYSCAPES))
    return same if same.exists() else renamed


def shown(encoded: np.ndarray, labels: int) -> np.ndarray:
    """What :func:`encode` made, as an image for people, uint8 (H,W,3): a colour for each label, white edges."""
    hues = np.arange(labels) * _HUE_STEP
    turns = np.stack([hues, hues + 1 / 3, hues + 2 / 3], axis=1) * 2 * np.pi
    palette = (127.5 * (1 + np.cos(turns)) * 0.85).astype(np.uint8)
    image = palette[encoded[..., :labels].argmax(axis=2)]
    if encoded.shape[2] > labels:
        image[encoded[..., labels] > 0] = 255
    return image
