"""The U-Nets of pytorch-CycleGAN-and-pix2pix and of PyTorch-GAN, inferred from the names and shapes of their tensors.

Nothing in a state dict says what the network is, but its tensors show the number of levels, filters, channels, kind of
norm and biases. The first program's block nests the next one as element 1 (outermost) or 3 of its Sequential:

    outermost   0 conv, 1 block, 3 transposed conv
    middle      1 conv, 2 norm, 3 block, 5 transposed conv, 6 norm
    innermost   1 conv, 3 transposed conv, 4 norm

At test time that program keeps the network in training mode, so the statistics are those of the image. Running ones
are kept if they are in the file, for callers that ask for them. PyTorch-GAN has elements down1, ..., up1, ... with a
convolution and an InstanceNorm each, and ``final``.

Sources: models/networks.py of https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix;
implementations/pix2pix/models.py of https://github.com/eriklindernoren/PyTorch-GAN.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ...errors import CheckpointError
from ...model.generator import Generator
from ...model.unet import UnetVariant, unet
from ..tensors import Stored, Unread
from .layout import Norms, Place, Places, biased, canonical, extent, norms_in

# A tensor inside the outermost block; what comes before the block is the prefix that a training program gave it.
INNER = re.compile(r"(?:^|\.)(?P<block>1\.model\.(?P<levels>(?:3\.model\.)*))\d+\.[a-z_]+$")
GAN_INNER = re.compile(r"(?:^|\.)(?P<block>(?:down|up)(?P<level>[1-9]\d?)\.model\.\d\.[a-z_]+)$")
_RESNET_IN_LIST = re.compile(r"1\.model\.\d+\.(?:conv_)?block\.")
_MAX_LEVELS = 12
_DEFAULT_SIZE = 256  # pixels: the programs' size of images when they test
_NETWORK = "a U-Net of pytorch-CycleGAN-and-pix2pix"
_GAN_NETWORK = "a U-Net of PyTorch-GAN"


def read(tensors: Stored, origin: str) -> Unread:
    """The network of pytorch-CycleGAN-and-pix2pix that has these tensors, which have no prefix, and its weights.

    Raises CheckpointError that lists all tensors that don't fit.
    """
    depth = 2 + max(match["levels"].count("3.") for name in tensors if (match := INNER.match(name)))
    _check_depth(depth)
    places = dict(_places(depth))
    all_biased = biased(tensors, (place for layer, place in places.items() if layer != "decoder_1"))
    norms = norms_in(tensors, places, instance=all_biased)
    variant = UnetVariant(norm=norms.norm, innermost_norm=False, bias="all" if all_biased else "last", skip_first=True)
    generator = _network(tensors, places, norms, variant, origin)
    weights = canonical(tensors, generator, places, norms, _NETWORK)
    if generator.size != _DEFAULT_SIZE and _DEFAULT_SIZE % generator.size == 0:
        remark = (
            f"the size is taken to be {generator.size}, which the network was made for; its own program translates at "
            f"{_DEFAULT_SIZE} unless it is told otherwise: set size={_DEFAULT_SIZE}"
        )
        generator = replace(generator, remarks=(*generator.remarks, remark))
    return generator, weights


def read_gan(tensors: Stored, origin: str) -> Unread:
    """The network of PyTorch-GAN that has these tensors, which have no prefix, and its weights.

    Raises CheckpointError that lists all tensors that don't fit.
    """
    downs = [int(match["level"]) for name in tensors if (match := GAN_INNER.match(name)) and name.startswith("down")]
    depth = max([2, *downs])
    _check_depth(depth)
    places = dict(_gan_places(depth))
    norms = norms_in(tensors, places, instance=True)
    variant = UnetVariant(norm=norms.norm, innermost_norm=False, bias="last", skip_slope=0.2, last_up="nearest")
    generator = _network(tensors, places, norms, variant, f"{origin}: {_GAN_NETWORK}")
    return generator, canonical(tensors, generator, places, norms, _GAN_NETWORK)


def is_unet(tensors: Stored) -> bool:
    """Whether this is no list of ResNets, of which the second has names such as a U-Net's."""
    return not any(_RESNET_IN_LIST.match(name) for name in tensors)


def is_gan(tensors: Stored) -> bool:
    """Whether there are both kinds of PyTorch-GAN's blocks."""
    return any(name.startswith("down1.") for name in tensors) and any(name.startswith("up1.") for name in tensors)


def _check_depth(depth: int) -> None:
    if depth > _MAX_LEVELS:
        raise CheckpointError(f"the U-Net has {depth} levels, more than the {_MAX_LEVELS} allowed")


def _places(depth: int) -> Iterator[tuple[str, Place]]:
    """(layer, place of its tensors) for a U-Net of ``depth`` levels."""
    yield "encoder_1", Place("0.")
    yield "decoder_1", Place("3.")
    for level in range(2, depth + 1):
        block = "1.model." + "3.model." * (level - 2)
        yield f"encoder_{level}", Place(f"{block}1.", f"{block}2.")
        up, norm = ("3.", "4.") if level == depth else ("5.", "6.")
        yield f"decoder_{level}", Place(block + up, block + norm)


def _gan_places(depth: int) -> Iterator[tuple[str, Place]]:
    """The same for PyTorch-GAN; the first and the innermost level have no norm on the way down."""
    for level in range(1, depth + 1):
        normed = 1 < level < depth
        yield f"encoder_{level}", Place(f"down{level}.model.0.", f"down{level}.model.1." if normed else "")
    for level in range(depth, 1, -1):
        up = f"up{depth - level + 1}.model."
        yield f"decoder_{level}", Place(f"{up}0.", f"{up}1.")
    yield "decoder_1", Place("final.2.")


def _network(tensors: Stored, places: Places, norms: Norms, variant: UnetVariant, origin: str) -> Generator:
    """The network, as wide as the kernels show."""
    depth = len(places) // 2
    kernels = {layer: f"{place.convolution}weight" for layer, place in places.items()}
    assumed = (("eps", norms.norm is not None), ("slope", True), ("statistics", norms.running), ("size", True))
    return unet(
        depth=depth,
        in_channels=extent(tensors, kernels["encoder_1"], 1),
        out_channels=extent(tensors, kernels["decoder_1"], 0 if variant.last_up == "nearest" else 1),
        filters=[extent(tensors, kernels[f"encoder_{level}"], 0) for level in range(1, depth + 1)],
        origin=origin,
        assumed=tuple(name for name, unsaid in assumed if unsaid),
        remarks=norms.remarks,
        variant=variant,
    )
