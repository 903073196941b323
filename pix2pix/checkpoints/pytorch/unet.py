"""The U-Net generator of pytorch-CycleGAN-and-pix2pix, inferred from the names and shapes of its tensors.

Nothing in a state dict says what the network is, but its tensors show the number of levels, filters, channels, kind of
norm and biases. The program's block nests the next one as element 1 (outermost) or 3 of its Sequential:

    outermost   0 conv, 1 block, 3 transposed conv
    middle      1 conv, 2 norm, 3 block, 5 transposed conv, 6 norm
    innermost   1 conv, 3 transposed conv, 4 norm

At test time the program keeps the network in training mode, so the statistics are those of the image. Running ones
are kept if they are in the file, for callers that ask for them.

Source: models/networks.py of https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ...errors import CheckpointError
from ...model.generator import Generator, Norm
from ...model.unet import UnetVariant, unet
from ..tensors import MAX_CHANNELS, Stored, Unread, Wanted, matched

# A tensor inside the outermost block; what comes before the block is the prefix that a training program gave it.
INNER = re.compile(r"(?:^|\.)(?P<block>1\.model\.(?P<levels>(?:3\.model\.)*))\d+\.[a-z_]+$")
_MAX_LEVELS = 12
_DEFAULT_SIZE = 256  # pixels: the program's --load_size and --crop_size when it tests
_NORM_PARTS = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
_UNTRACKED = (
    "the norms have parameters, but no running statistics and no biases before them: they are taken to be BatchNorm "
    "without running statistics. If the program used GroupNorm, the images differ from its own"
)
_NETWORK = "a U-Net of pytorch-CycleGAN-and-pix2pix"
_HWIO = (2, 3, 1, 0)  # from OIHW; from IOHW, which transposed convolutions have, to HWOI


def read(tensors: Stored, origin: str) -> Unread:
    """The network that has these tensors, which have no prefix, and its weights.

    Raises CheckpointError that lists all tensors that don't fit.
    """
    depth = 2 + max(match["levels"].count("3.") for name in tensors if (match := INNER.match(name)))
    if depth > _MAX_LEVELS:
        raise CheckpointError(f"the U-Net has {depth} levels, more than the {_MAX_LEVELS} allowed")
    blocks = list(_blocks(depth))
    generator, running = _infer(tensors, blocks, origin)
    wanted = _wanted(generator, blocks, running)
    norms = {f"{norm}{part}" for _, _, norm in blocks if norm for part in _NORM_PARTS.values()}
    has_parameters = any(layer.norm and layer.norm.affine for layer in generator.layers)
    unused = set() if has_parameters or running else norms  # InstanceNorm once stored statistics that it never used
    surplus = [n for n in tensors if n not in wanted and n not in unused and not n.endswith("num_batches_tracked")]
    weights = matched(wanted, tensors, surplus, _NETWORK, str)
    if generator.size != _DEFAULT_SIZE and _DEFAULT_SIZE % generator.size == 0:
        remark = (
            f"the size is taken to be {generator.size}, which the network was made for; its own program translates at "
            f"{_DEFAULT_SIZE} unless it is told otherwise: set size={_DEFAULT_SIZE}"
        )
        generator = replace(generator, remarks=(*generator.remarks, remark))
    return generator, {
        name: tensor.transposed(_HWIO) if len(tensor.shape) == 4 else tensor for name, tensor in weights.items()
    }


def _blocks(depth: int) -> Iterator[tuple[str, str, str]]:
    """(layer, prefix of its convolution, prefix of its norm if it has one) for a U-Net of ``depth`` levels."""
    yield "encoder_1", "0.", ""
    yield "decoder_1", "3.", ""
    for level in range(2, depth + 1):
        block = "1.model." + "3.model." * (level - 2)
        yield f"encoder_{level}", f"{block}1.", f"{block}2."
        up, norm = ("3.", "4.") if level == depth else ("5.", "6.")
        yield f"decoder_{level}", block + up, block + norm


def _infer(tensors: Stored, blocks: list[tuple[str, str, str]], origin: str) -> tuple[Generator, bool]:
    """The network, and whether its running statistics are in the file."""
    norms = {f"{norm}{part}" for _, _, norm in blocks if norm for part in _NORM_PARTS.values()}
    biases = [f"{conv}bias" in tensors for layer, conv, _ in blocks if layer != "decoder_1"]
    all_biased = 2 * sum(biases) >= len(biases)
    affine = any(name in tensors for name in norms if name.endswith(("weight", "bias")))
    stored = any(name in tensors for name in norms if "running" in name)
    # The program gives biases to the convolutions before an InstanceNorm only. Without parameters an InstanceNorm shows
    # by them alone, and statistics beside them are unused. Without either, statistics show a BatchNorm.
    norm = Norm(affine=affine) if affine or all_biased or stored else None
    running = stored and (affine or not all_biased)
    assumed = (("eps", norm is not None), ("slope", True), ("statistics", running), ("size", True))
    remarks = (_UNTRACKED,) if affine and not stored and not all_biased else ()
    generator = unet(
        depth=len(blocks) // 2,
        in_channels=_extent(tensors, "0.weight", 1),
        out_channels=_extent(tensors, "3.weight", 1),
        filters=[_extent(tensors, f"{conv}weight", 0) for layer, conv, _ in blocks if layer.startswith("encoder")],
        origin=origin,
        assumed=tuple(name for name, unsaid in assumed if unsaid),
        variant=UnetVariant(norm=norm, innermost_norm=False, bias="all" if all_biased else "last", skip_first=True),
    )
    return replace(generator, remarks=remarks), running


def _extent(tensors: Stored, name: str, axis: int) -> int:
    """One extent of a kernel, or 1 if it is missing or odd, so that the list of all problems can still be made."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if len(shape) == 4 and 0 < shape[axis] <= MAX_CHANNELS else 1


def _wanted(generator: Generator, blocks: list[tuple[str, str, str]], running: bool) -> Wanted:
    """The network's tensors."""
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer_name, conv, norm in blocks:
        for name, shape in generator[layer_name].tensors("running" if running else "image").items():
            part = name.rpartition(".")[2]
            if part == "kernel":
                wanted[f"{conv}weight"] = name, (shape[3], shape[2], shape[0], shape[1])
            elif part == "bias":
                wanted[f"{conv}bias"] = name, shape
            else:
                wanted[f"{norm}{_NORM_PARTS[part]}"] = name, shape
    return wanted
