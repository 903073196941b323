"""State dicts of U-Net generators of junyanz/pytorch-CycleGAN-and-pix2pix.

Nothing in such a file says what the network is, but the names and shapes of its tensors do: number of levels, filters,
channels, kind of norm, biases. The program's block nests the next one as element 1 (outermost) or 3 of its Sequential:

    outermost   0 conv, 1 block, 3 transposed conv
    middle      1 conv, 2 norm, 3 block, 5 transposed conv, 6 norm
    innermost   1 conv, 3 transposed conv, 4 norm

At test time the program keeps the network in training mode, so the statistics are those of the image; running ones
are kept if they are in the file, for whoever asks for them.

Source: models/networks.py of https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...errors import CheckpointError
from ...model.generator import Generator, Norm
from ...model.unet import unet
from ..common import FLOAT_TYPES, MAX_CHANNELS, listing, shown
from ..containers import pickles
from . import torchfile

_MAX_NESTING = 8
_MAX_LEVELS = 12
_MAX_NAME = 300
# A tensor inside the outermost block, whatever the model is called: what is before "1.model." is the model's prefix.
_INNER = re.compile(r"(?:^|\.)1\.model\.((?:3\.model\.)*)\d+\.[a-z_]+$")
_OF_OPTIMIZERS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg")
_NORM_PARTS = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance"}


class Tensor(Protocol):
    """A tensor of a state dict whose numbers have not been read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, in the framework's layout."""

    @property
    def dtype(self) -> str:
        """Name of the number type in the file, e.g. ``float16``."""

    def read(self) -> np.ndarray:
        """The numbers as a float32 array of that shape."""


class _Model(NamedTuple):
    """One generator in a file: the name by which ``key`` chooses it, and its tensors without their prefix."""

    name: str
    tensors: dict[str, Tensor]


class _Part(NamedTuple):
    """One tensor that a network has: its canonical name, and its shape in the file's layout."""

    name: str
    shape: tuple[int, ...]


def read(path: Path, key: str | None) -> tuple[Generator, dict[str, np.ndarray]]:
    """Read a file of torch.save. ``key`` picks one of several generators. Raises CheckpointError."""
    return from_tensors(torchfile.load(path), key, path.stat().st_size, "PyTorch state dict")


def from_tensors(content: Any, key: str | None, size: int, origin: str) -> tuple[Generator, dict[str, np.ndarray]]:
    """The generator and weights in a tree of dicts whose leaves are :class:`Tensor`.

    ``size`` is the file's, in bytes, and bounds what is allocated. Raises CheckpointError.
    """
    models = [model for path, container in _containers(content) for model in _models(path, _tensors(container))]
    if not models:
        raise _explanation(content)
    model = _choose(models, key)
    generator, parts = _infer(model.tensors, origin)
    wanted = 4 * sum(math.prod(part.shape) for part in parts.values())
    if wanted > 2 * size + (16 << 20):
        raise CheckpointError(f"the tensors take {wanted} bytes, the file has only {size}: they share their numbers")
    weights = {}
    for name, part in parts.items():
        numbers = model.tensors[name].read()
        if numbers.ndim == 4:
            numbers = numbers.transpose(2, 3, 1, 0)  # OIHW -> HWIO; transposed IOHW -> HWOI
        weights[part.name] = np.array(numbers, np.float32, order="C")
    return generator, weights


# -- which model ----------------------------------------------------------------------------------------------


def _containers(content: Any) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """(path, it) of every dict and list in the tree, outermost first, each once; lists as dicts of their indices."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    seen = {id(content)}
    while waiting:
        path, value = waiting.popleft()
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if not isinstance(value, dict):
            continue
        yield path, value
        for name, child in value.items():
            if isinstance(child, dict | list | tuple) and id(child) not in seen and len(path) < _MAX_NESTING:
                seen.add(id(child))
                waiting.append(((*path, str(name)[:_MAX_NAME]), child))


def _tensors(container: dict[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in container.items() if isinstance(k, str) and hasattr(v, "read") and len(k) <= _MAX_NAME}


def _models(path: tuple[str, ...], tensors: dict[str, Tensor]) -> Iterator[_Model]:
    """The U-Net generators among the tensors of one dict: one for each prefix."""
    prefixes = {name[: match.start(1) - len("1.model.")] for name in tensors if (match := _INNER.search(name))}
    for prefix in sorted(prefixes):
        own = [part for part in prefix.split(".") if part not in ("", "module", "model")]
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        yield _Model(".".join([*path, *own]), inside)


def _choose(models: list[_Model], key: str | None) -> _Model:
    """The model that ``key`` names, or the only one."""
    names = ", ".join(shown(model.name) for model in models[:20])
    if key is not None:
        found = [m for m in models if m.name == key] or [m for m in models if f".{key}." in f".{m.name}."]
        if len(found) != 1:
            raise CheckpointError(
                f"key {key!r} fits {len(found)} of the generators in the file: expected one of {names}"
            )
        return found[0]
    if len(models) > 1:
        raise CheckpointError(f"the file holds {len(models)} generators: choose one with key (--key): {names}")
    return models[0]


def _explanation(content: Any) -> CheckpointError:
    """What a file without a U-Net generator holds instead, and what to do."""
    values = [content, *(value for _, container in _containers(content) for value in container.values())]
    tensors = [pair for _, container in _containers(content) for pair in _tensors(container).items()]
    strangers = [value.name for value in values if isinstance(value, pickles.Opaque)]
    if not tensors and strangers:
        return torchfile.whole_model(shown(strangers[0]))
    if not tensors:
        return CheckpointError("the file holds no tensors: expected the state dict of a generator, latest_net_G.pth")
    if any("conv_block" in name for name, _ in tensors):
        return CheckpointError("the file holds a ResNet generator, which is not supported yet: pix2pix runs U-Nets")
    plain = re.compile(r"(?:^|\.)(?:model|net)\.\d+\.weight$")
    kernels = [tensor for name, tensor in tensors if plain.search(name) and len(tensor.shape) == 4]
    if len(kernels) >= 3 and kernels[-1].shape[0] == 1:
        return CheckpointError(
            f"the file holds a discriminator ({len(kernels)} convolutions, the last with 1 filter), which training "
            f"needs and translating does not: take the generator, usually latest_net_G.pth beside it"
        )
    if any(name in _OF_OPTIMIZERS for name, _ in tensors):
        return CheckpointError(
            "the file holds the state of an optimizer, which only training needs: take the generator, usually "
            "latest_net_G.pth beside it"
        )
    names = ", ".join(shown(name) for name, _ in tensors[:5])
    return CheckpointError(
        f"the file holds {len(tensors)} tensors ({names}, ...) but no U-Net generator of "
        f"pytorch-CycleGAN-and-pix2pix, whose tensors are called model.model.0.weight and so on"
    )


# -- which network --------------------------------------------------------------------------------------------


def _blocks(depth: int) -> Iterator[tuple[str, str, str]]:
    """(layer, prefix of its convolution, prefix of its norm if it has one) for a U-Net of ``depth`` levels."""
    yield "encoder_1", "0.", ""
    yield "decoder_1", "3.", ""
    for level in range(2, depth + 1):
        block = "1.model." + "3.model." * (level - 2)
        yield f"encoder_{level}", f"{block}1.", f"{block}2."
        up, norm = ("3.", "4.") if level == depth else ("5.", "6.")
        yield f"decoder_{level}", block + up, block + norm


def _infer(tensors: Mapping[str, Tensor], origin: str) -> tuple[Generator, dict[str, _Part]]:
    """The network that has these tensors, and what each of them is. Raises CheckpointError listing what doesn't fit."""
    depth = 2 + max(
        match.group(1).count("3.") for name in tensors if (match := _INNER.search(name)) and match.start() == 0
    )
    if depth > _MAX_LEVELS:
        raise CheckpointError(f"the U-Net has {depth} levels, more than the {_MAX_LEVELS} allowed")
    blocks = list(_blocks(depth))
    widths = [_extent(tensors, f"{conv}weight", 0) for layer, conv, _ in blocks if layer.startswith("encoder")]
    norms = {f"{norm}{part}" for _, _, norm in blocks if norm for part in _NORM_PARTS}
    biases = [f"{conv}bias" in tensors for layer, conv, _ in blocks if layer != "decoder_1"]
    all_biased = 2 * sum(biases) >= len(biases)
    affine = any(name in tensors for name in norms if name.endswith(("weight", "bias")))
    # Without their parameters, norms show by the biases, which the program gives only to instance norm.
    norm = Norm(affine=affine) if affine or all_biased else None
    running = affine and any(name in tensors for name in norms if "running" in name)
    assumed = (("eps", norm is not None), ("slope", True), ("statistics", running), ("size", True))
    generator = unet(
        depth=depth,
        in_channels=_extent(tensors, "0.weight", 1),
        out_channels=_extent(tensors, "3.weight", 1),
        filters=widths,
        norm=norm,
        innermost_norm=False,
        bias="all" if all_biased else "last",
        skip_first=True,
        origin=origin,
        assumed=tuple(name for name, unsaid in assumed if unsaid),
    )
    parts = _parts(generator, blocks, running)
    stale = set() if affine else norms  # InstanceNorm once stored statistics that it never used
    surplus = [n for n in tensors if n not in parts and n not in stale and not n.endswith("num_batches_tracked")]
    _check(parts, surplus, tensors)
    return generator, parts


def _extent(tensors: Mapping[str, Tensor], name: str, axis: int) -> int:
    """One extent of a kernel, or 1 if it is missing or odd, so that the list of all problems can still be made."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if len(shape) == 4 and 0 < shape[axis] <= MAX_CHANNELS else 1


def _parts(generator: Generator, blocks: list[tuple[str, str, str]], running: bool) -> dict[str, _Part]:
    """What the network's tensors are, by their names in the file."""
    parts = {}
    for layer_name, conv, norm in blocks:
        for name, shape in generator[layer_name].tensors("running" if running else "image").items():
            part = name.rpartition(".")[2]
            if part == "kernel":
                parts[f"{conv}weight"] = _Part(name, (shape[3], shape[2], shape[0], shape[1]))
            elif part == "bias":
                parts[f"{conv}bias"] = _Part(name, shape)
            else:
                in_file = next(theirs for theirs, ours in _NORM_PARTS.items() if ours == part)
                parts[f"{norm}{in_file}"] = _Part(name, shape)
    return parts


def _check(parts: Mapping[str, _Part], surplus: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError that lists everything missing, surplus or of another shape or type."""
    problems = []
    for name, part in parts.items():
        if name not in tensors:
            problems.append(f"missing {name} {part.shape}")
        elif tensors[name].shape != part.shape:
            problems.append(f"{name} has shape {shown(tensors[name].shape)}, expected {part.shape}")
        elif tensors[name].dtype not in FLOAT_TYPES:
            problems.append(f"{name} has numbers of type {shown(tensors[name].dtype)}, expected floating point")
    problems += [f"surplus {shown(name)} {shown(tensors[name].shape)}" for name in surplus]
    if problems:
        raise CheckpointError(
            f"the tensors are not those of a U-Net of pytorch-CycleGAN-and-pix2pix ({len(problems)} problems; the "
            f"file is damaged, or its network was changed):{listing(problems)}"
        )
