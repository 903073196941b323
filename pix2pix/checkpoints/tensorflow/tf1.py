"""Variables of TensorFlow 1 generators of affinelayer/pix2pix-tensorflow: names to layers.

    generator/encoder_2/conv2d/kernel      generator/encoder_2/batch_normalization/gamma      since December 2017
    generator/encoder_2/conv/filter        generator/encoder_2/batchnorm/scale                before; no biases

The names and shapes show everything about the network; ``options.json`` beside the checkpoint tells how it was
trained. Such a file also has the discriminator and Adam's variables, which are not read. The program normalises with
the statistics of each image and never updates the moving ones.

Source: pix2pix.py of https://github.com/affinelayer/pix2pix-tensorflow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import CheckpointError, NoGeneratorError
from ...model.generator import Generator, Norm
from ...model.unet import UnetVariant, unet
from ..budget import Budget
from ..model_file import inside, read_beside
from ..tensors import MAX_CHANNELS, Stored, StoredTensor, Unread, matched
from ..text import read_json, shown

OUTPUT_SCALE = 255.5  # convert_image_dtype multiplies by 255.5 and truncates
OPTIONS = "options.json"
_MAX_LEVELS = 12
_FIRST = re.compile(r"(.*?)encoder_1/(?:conv2d/kernel|conv/filter)$")
_LAYER = re.compile(r"(?:en|de)coder_([1-9]\d?)/")


class _Names(NamedTuple):
    """The names of a layer's parts in one generation of the program."""

    encoder: str
    decoder: str
    norm: str
    parts: Mapping[str, str]  # canonical to the file's

    def stored(self, canonical: str) -> str:
        """The variable of a canonical tensor, without the scope."""
        layer, _, part = canonical.rpartition(".")
        convolution = self.encoder if layer.startswith("encoder") else self.decoder
        return f"{layer}/{convolution if part in ('kernel', 'bias') else self.norm}/{self.parts[part]}"


_STATISTICS = {"mean": "moving_mean", "variance": "moving_variance"}
_CURRENT = _Names(
    "conv2d",
    "conv2d_transpose",
    "batch_normalization",
    {"kernel": "kernel", "bias": "bias", "gamma": "gamma", "beta": "beta"} | _STATISTICS,
)
_OLD = _Names(
    "conv",
    "deconv",
    "batchnorm",
    {"kernel": "filter", "bias": "bias", "gamma": "scale", "beta": "offset"} | _STATISTICS,
)


def from_tensors(tensors: Stored, key: str | None, origin: str, output_scale: float = OUTPUT_SCALE) -> Unread:
    """The generator among the variables of a file. ``key`` picks one of several. Raises CheckpointError."""
    scope = _chosen_scope(tensors, key)
    own = {name.removeprefix(scope): tensor for name, tensor in tensors.items() if name.startswith(scope)}
    names = _OLD if "encoder_1/conv/filter" in own else _CURRENT
    generator = _infer(own, names, origin, output_scale)
    possible = [(name, shape) for layer in generator.layers for name, shape in layer.tensors("running").items()]
    wanted = {names.stored(name): (name, shape) for name, shape in possible}
    statistics = {names.stored(name) for name, _ in possible if name.endswith((".mean", ".variance"))}
    for stored in statistics - own.keys():
        del wanted[stored]
    surplus = [name for name in own if name not in wanted and not _is_slot(name, wanted)]
    if not scope:
        surplus = [name for name in surplus if _LAYER.match(name)]
    return generator, _without_stale(matched(wanted, own, surplus), generator)


def check_options(folder: Path, budget: Budget) -> str:
    """The direction that the ``options.json`` of a folder says the model was trained in, or "" without one.

    Raises CheckpointError if the model doesn't translate RGB images.
    """
    path = inside(folder, OPTIONS)
    if path is None:
        return ""
    options = read_json(read_beside(path, budget), OPTIONS)
    if not isinstance(options, dict):
        raise CheckpointError(f"{OPTIONS} has no options: the file is damaged")
    if options.get("lab_colorization"):
        raise CheckpointError(
            "the model was trained with --lab_colorization: it makes the colours of a lightness (Lab), which is not "
            "supported yet; models of RGB images are"
        )
    direction = options.get("which_direction")
    return direction if direction in ("AtoB", "BtoA") else ""


# -- which network --------------------------------------------------------------------------------------------


def _chosen_scope(tensors: Iterable[str], key: str | None) -> str:
    """What comes before ``encoder_1/`` in the names of the one generator, or the one that ``key`` names."""
    scopes = sorted(match[1] for name in tensors if (match := _FIRST.match(name)))
    names = ", ".join(shown(scope.rstrip("/")) for scope in scopes[:20])
    if key is not None:
        scopes = [scope for scope in scopes if scope.rstrip("/") == key]
        if not scopes:
            raise CheckpointError(f"key {shown(key)} is none of the generators in the checkpoint: {names or 'none'}")
    if len(scopes) > 1:
        raise CheckpointError(f"the checkpoint holds {len(scopes)} generators: choose one with key (--key): {names}")
    if not scopes:
        raise _explanation(list(tensors))
    return scopes[0]


def _explanation(names: list[str]) -> CheckpointError:
    """What a checkpoint without a U-Net of that program holds instead."""
    if names and all(name.startswith("discriminator") or "discriminator" in name.split("/") for name in names):
        return NoGeneratorError("the checkpoint holds a discriminator alone: translating needs the generator")
    if any("encoder_1/separable_conv2d/" in name for name in names):
        return CheckpointError("the model was trained with --separable_conv, which is not supported yet")
    few = ", ".join(shown(name) for name in names[:5])
    return NoGeneratorError(
        f"the checkpoint holds {len(names)} variables ({few}, ...) but no U-Net generator of pix2pix-tensorflow, whose "
        f"variables are called generator/encoder_1/conv2d/kernel and so on"
    )


def _infer(own: Stored, names: _Names, origin: str, output_scale: float) -> Generator:
    """The network that has these variables, as far as they fit one."""
    depth = max(int(match[1]) for name in own if (match := _LAYER.match(name)))
    if not 2 <= depth <= _MAX_LEVELS:
        raise CheckpointError(f"the U-Net has {depth} levels, expected 2 to {_MAX_LEVELS}")

    def extent(layer: str, axis: int) -> int:
        """One extent of a kernel, or 1 if it is missing or odd, so that all problems can still be listed."""
        tensor = own.get(names.stored(f"{layer}.kernel"))
        return tensor.shape[axis] if tensor and len(tensor.shape) == 4 and 0 < tensor.shape[axis] <= MAX_CHANNELS else 1

    return unet(
        depth=depth,
        in_channels=extent("encoder_1", 2),
        out_channels=extent("decoder_1", 2),
        filters=[extent(f"encoder_{level}", 3) for level in range(1, depth + 1)],
        output_scale=output_scale,
        origin=origin,
        assumed=("eps", "slope", "size"),
        variant=UnetVariant(
            norm=Norm() if any(f"/{names.norm}/" in name for name in own) else None,
            innermost_norm=names.stored(f"encoder_{depth}.gamma") in own,
            bias="all" if any(name.endswith("/bias") for name in own) else "none",
        ),
    )


def _is_slot(name: str, wanted: Mapping[str, Any]) -> bool:
    """Whether this is an optimizer's variable: the name of a variable, then one of the optimizer's."""
    return name.rpartition("/")[0] in wanted


def _without_stale(weights: dict[str, StoredTensor], generator: Generator) -> dict[str, StoredTensor]:
    """``weights`` without the moving statistics, unless training has changed all of them from zeros and ones."""
    norms = [layer.name for layer in generator.layers if layer.norm]
    updated = all(
        f"{name}.mean" in weights
        and f"{name}.variance" in weights
        and (weights[f"{name}.mean"].read().any() or (weights[f"{name}.variance"].read() != 1).any())
        for name in norms
    )
    return {name: tensor for name, tensor in weights.items() if updated or not name.endswith((".mean", ".variance"))}
