"""Make the images and labels.npz here with PyTorch 2.13: ``PYTHONPATH=. python tests/files/data/make_labels.py``.

The input of pix2pixHD's generator is computed as that program does at test time, restated from what it does: an image
is resized to the nearest pixel and becomes a tensor, ids / 255 where they have 8 bits; ids * 255 tell where scatter_
puts a one; edges come from shifted comparisons. labels.npz has the bits of (channels, height, width), by the files'
names and the size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
LABELS = 6
SIZES = [(37, 23), (64, 32), (20, 50)]  # width, height; the first is the images' own


def draw(seed: int, most: int) -> np.ndarray:
    """Regions of ids (23,37)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:23, :37]
    centres = rng.uniform(0, 1, (most + 4, 2)) * (23, 37)
    nearest = np.argmin([(y - a) ** 2 + (x - b) ** 2 for a, b in centres], axis=0)
    return nearest % most


def tensor_of(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """An image as a tensor (1,1,H,W), 8 bits from 0 to 1."""
    image = Image.open(path)
    if image.size != size:
        image = image.resize(size, Image.Resampling.NEAREST)
    numbers = np.array(image)
    if numbers.dtype == np.uint8:
        return torch.from_numpy(numbers)[None, None].float().div(255)
    return torch.from_numpy(numbers.astype(np.int32))[None, None]


def edges_of(t: torch.Tensor) -> torch.Tensor:
    """The edges of instances (1,1,H,W)."""
    edge = torch.zeros(t.shape, dtype=torch.uint8)
    beside, below = t[..., 1:] != t[..., :-1], t[..., 1:, :] != t[..., :-1, :]
    edge[..., 1:] |= beside
    edge[..., :-1] |= beside
    edge[..., 1:, :] |= below
    edge[..., :-1, :] |= below
    return edge.float()


def encoded(label: str, instances: str | None, size: tuple[int, int]) -> np.ndarray:
    """What the generator reads, as bits."""
    ids = (tensor_of(HERE / label, size) * 255.0).long()
    one_hot = torch.zeros(1, LABELS, *ids.shape[2:]).scatter_(1, ids, 1.0)
    if instances is not None:
        one_hot = torch.cat([one_hot, edges_of(tensor_of(HERE / instances, size))], dim=1)
    return np.packbits(one_hot[0].numpy().astype(np.uint8))


def main() -> None:
    """Write everything."""
    ids = draw(0, LABELS).astype(np.uint8)
    Image.fromarray(ids).save(HERE / "label.png")
    palette = Image.fromarray(ids)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    palette.save(HERE / "palette.png")
    Image.fromarray((draw(1, 9) * 1000 + 7).astype(np.uint16)).save(HERE / "instances.png")
    Image.fromarray(draw(2, 9).astype(np.uint8)).save(HERE / "instances8.png")
    cases = [("label.png", "instances.png"), ("palette.png", "instances8.png"), ("palette.png", None)]
    results = {
        f"{label}/{w}x{h}/{instances or 'none'}": encoded(label, instances, (w, h))
        for label, instances in cases
        for w, h in SIZES
    }
    np.savez_compressed(HERE / "labels.npz", **results)


if __name__ == "__main__":
    main()
