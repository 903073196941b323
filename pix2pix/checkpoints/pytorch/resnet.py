"""ResNet generators that are a Sequential of modules: their variant, inferred from names and shapes of the tensors.

CycleGAN's with any padding, norm and number of blocks, its form with resize-convolutions, CUT's with its filters
against aliasing, PyTorch-GAN's, pix2pixHD's global generator, and programs derived from these. What the modules are is
told by :mod:`.sequence`; what they compute:

    transposed   3x3, stride 2, output padding 1
    upsampled    nearest, then 3x3 padded with zeros; where a filter is stored, bilinear (CUT's filter is exactly that)
    padded       bilinear, then 3x3 padded by reflection

Sources: models/networks.py of https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix and of
https://github.com/taesungp/contrastive-unpaired-translation; models/networks.py of
https://github.com/NVIDIA/pix2pixHD; implementations/cyclegan/models.py of
https://github.com/eriklindernoren/PyTorch-GAN.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ...errors import CheckpointError
from ...model.generator import Statistics
from ...model.resnet import BLUR, ResnetVariant, resnet
from ...model.sampling import Upsampling
from ..tensors import Stored, Unread
from .labels import takes_labels, with_labels
from .layout import Norms, Places, biased, canonical, counted, extent, norms_in
from .sequence import INNER, BlockForm, ModuleSequence, find_sequence

__all__ = ["INNER", "is_resnet", "read"]

_ENLARGE = (0.25, 0.75, 0.75, 0.25)
_HD_LEVELS = 3  # a global generator has as many or more, 4 by default; the others have 2
HD_SIZE = 512  # pixels; pix2pixHD translates images of 1024x512
_SIZE = 256  # pixels: the default of the other programs


def is_resnet(tensors: Stored) -> bool:
    """Whether these tensors, which have no prefix, are those of such a generator."""
    return find_sequence(tensors) is not None


def read(tensors: Stored, origin: str) -> Unread:
    """The network that has these tensors, which have no prefix, and its weights.

    Raises CheckpointError that lists all tensors that don't fit.
    """
    found = find_sequence(tensors)
    if found is None:
        raise CheckpointError("the tensors are not those of a ResNet generator")
    places, filtered = found.places(), any(name in tensors for name in found.enlargers().values())
    norms, variant = variant_of(tensors, places, found.form)
    variant = replace(
        variant,
        down="blurred" if found.blurred else "strided",
        up=_way_up(found, filtered),
        up_padding="reflect" if found.up == "padded" else "zeros",
    )
    kernels = {layer: f"{place.convolution}weight" for layer, place in places.items()}
    widths = [extent(tensors, kernels[f"down_{level}"], 0) for level in range(1, found.levels + 1)]
    network = _network(found, filtered)
    is_hd = found.levels >= _HD_LEVELS
    in_channels = extent(tensors, kernels["first"], 1)
    generator = resnet(
        0,
        found.blocks,
        in_channels,
        extent(tensors, kernels["last"], 0),
        variant,
        levels=found.levels,
        filters=[extent(tensors, kernels["first"], 0), *widths],
        origin=f"{origin}: {network}",
        statistics=statistics_of(norms, found.form),
        size=HD_SIZE if is_hd else _SIZE,
        assumed=assumed(norms, found.form, corners=found.up == "padded"),
        remarks=norms.remarks + label_remarks(in_channels),
    )
    filters = _filters(found, filtered, [generator[layer].filters for layer in found.blurs()], widths)
    weights = canonical(tensors, generator, places, norms, network, filters)
    if is_hd and takes_labels(in_channels):
        return with_labels(generator, weights)
    if found.up == "upsampled" and not filtered and in_channels != 3:
        raise CheckpointError(
            f"this generator of PyTorch-GAN takes {in_channels} channels, and that program pads its first and last "
            f"7x7 convolutions by as many pixels: outputs have another size than inputs, which pix2pix cannot run; "
            f"only 3 channels are supported"
        )
    return generator, weights


def variant_of(tensors: Stored, places: Places, form: BlockForm) -> tuple[Norms, ResnetVariant]:
    """The norms and, as far as they and the blocks show it, the variant."""
    ups = {layer: place for layer, place in places.items() if "up_" in layer}
    others = {layer: place for layer, place in places.items() if layer not in ups and layer != "last"}
    all_biased = biased(tensors, others.values())
    norms = norms_in(tensors, places, instance=all_biased)
    bias: Literal["all", "ups", "last"] = "last"
    if all_biased:
        bias = "all"
    elif biased(tensors, ups.values()):
        bias = "ups"
    return norms, ResnetVariant(norm=norms.norm, bias=bias, block_padding="reflect" if form.padded else "zeros")


def statistics_of(norms: Norms, form: BlockForm) -> Statistics:
    """What the programs do at test time: those whose blocks are called ``block`` switch to evaluation mode."""
    return "running" if norms.running and form.container == "block" else "image"


def assumed(norms: Norms, form: BlockForm, *, corners: bool = False) -> tuple[str, ...]:
    """What the tensors don't show. ``corners``: whether align_corners is part of it."""
    unsaid = {
        "eps": norms.norm is not None,
        "statistics": norms.running,
        "align_corners": corners,
        "padding_mode": form.padded,
        "size": True,
    }
    return tuple(name for name, is_unsaid in unsaid.items() if is_unsaid)


def label_remarks(in_channels: int) -> tuple[str, ...]:
    """A remark about inputs that are no images."""
    if not takes_labels(in_channels):
        return ()
    return (
        f"the input has {in_channels} channels, so it is no image: pix2pixHD encodes each label as one channel (35 for "
        f"Cityscapes) and adds one for the edges of instances",
    )


def _way_up(found: ModuleSequence, filtered: bool) -> Literal["transposed"] | Upsampling:
    """How the second half enlarges maps."""
    if found.up == "transposed":
        return "transposed"
    return "bilinear" if found.up == "padded" or filtered else "nearest"


def _network(found: ModuleSequence, filtered: bool) -> str:
    """What people call the network."""
    if found.blurred or filtered:
        name = "a ResNet generator of CUT"
    elif found.levels >= _HD_LEVELS:
        name = "a global generator of pix2pixHD"
    elif found.up == "upsampled":
        name = "a ResNet generator of PyTorch-GAN's CycleGAN"
    else:
        name = "a ResNet generator of CycleGAN" + (" with resize-convolutions" if found.up == "padded" else "")
    details = [counted(found.blocks)]
    details += ["zero padding"] if not found.form.padded else []
    details += ["trained with dropout"] if found.form.dropout else []
    return f"{name} ({', '.join(details)})"


def _filters(found: ModuleSequence, filtered: bool, down: list[int], up: list[int]) -> dict[str, np.ndarray]:
    """The fixed filters that CUT stores, for maps of ``down`` channels and, from the widest, of ``up`` channels."""

    def filters(taps: tuple[float, ...], channels: int) -> np.ndarray:
        square = np.outer(taps, taps)
        return np.broadcast_to(square, (channels, 1, *square.shape))

    stored = {name: filters(BLUR, width) for name, width in zip(found.blurs().values(), down, strict=True)}
    if filtered:
        widest_first = zip(found.enlargers().values(), reversed(up), strict=True)
        stored |= {name: filters(_ENLARGE, width) for name, width in widest_first}
    return stored
