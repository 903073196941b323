"""Which tensors of a PyTorch file are the generator: state dicts anywhere in a tree of plain values.

Training programs put the state dict into larger ones, beside optimizers, losses and other networks, and give its
tensors a prefix. A generator shows by the names of its inner blocks; see :mod:`.families`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from ...errors import CheckpointError, NoGeneratorError
from ..budget import Budget
from ..containers import pickles
from ..tensors import StoredTensor, Unread
from ..text import shown
from . import torch_file
from .families import Network, find_networks

_MAX_NESTING = 8
_MAX_NAME = 300
_OF_OPTIMIZERS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg")
_PLAIN_KERNEL = re.compile(r"(?:^|\.)(?:scale\d+_)?(?:model|net|layer\d+)\.\d+\.weight$")

Path = tuple[str, ...]  # the keys that lead to a dict in the file


class _Model(NamedTuple):
    """One generator in a file, and the name by which ``key`` chooses it."""

    name: str
    network: Network


def from_tensors(content: Any, key: str | None, origin: str, budget: Budget) -> Unread:
    """The generator and its weights in a tree of dicts and lists whose leaves are StoredTensor.

    ``key`` picks one of several generators. Raises CheckpointError.
    """
    found = [(path, _tensors(container)) for path, container in _containers(content)]
    models = [model for path, tensors in found for model in _models(path, tensors, budget)]
    if not models:
        raise _explanation(content)
    network = _choose(models, key).network
    return network.family.read(network.tensors, origin)


def _containers(content: Any) -> Iterator[tuple[Path, dict[Any, Any]]]:
    """(path, dict) of every dict and list in the tree, outermost first, each once; lists as dicts of their indices."""
    waiting: deque[tuple[Path, Any]] = deque([((), content)])
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


def _tensors(container: dict[Any, Any]) -> dict[str, StoredTensor]:
    return {
        name: value
        for name, value in container.items()
        if isinstance(name, str) and isinstance(value, StoredTensor) and len(name) <= _MAX_NAME
    }


def _models(path: Path, tensors: dict[str, StoredTensor], budget: Budget) -> Iterator[_Model]:
    """The generators among the tensors of one dict."""
    for network in find_networks(tensors, budget):
        shown_parts = [part for part in network.prefix.split(".") if part not in ("", "module", "model")]
        yield _Model(".".join([*path, *shown_parts]), network)


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
    """What a file without a generator holds instead, and what to do."""
    containers = [container for _, container in _containers(content)]
    tensors = [pair for container in containers for pair in _tensors(container).items()]
    if not tensors:
        values = [content, *(value for container in containers for value in container.values())]
        strangers = [value.name for value in values if isinstance(value, pickles.Opaque)]
        if strangers:
            return torch_file.whole_model(shown(strangers[0]))
        return NoGeneratorError("the file holds no tensors: expected the state dict of a generator, latest_net_G.pth")
    kernels = [pair for pair in tensors if _PLAIN_KERNEL.search(pair[0]) and len(pair[1].shape) == 4]
    if len(kernels) >= 3 and max(kernels, key=_position)[1].shape[0] == 1:
        return NoGeneratorError(
            f"the file holds a discriminator ({len(kernels)} convolutions, the last with 1 filter), which training "
            f"needs and translating does not: take the generator, usually latest_net_G.pth beside it"
        )
    if any(name in _OF_OPTIMIZERS for name, _ in tensors):
        return NoGeneratorError(
            "the file holds the state of an optimizer, which only training needs: take the generator, usually "
            "latest_net_G.pth beside it"
        )
    names = ", ".join(shown(name) for name, _ in tensors[:5])
    return NoGeneratorError(
        f"the file holds {len(tensors)} tensors ({names}, ...) but no generator that is known here: expected one of "
        f"pytorch-CycleGAN-and-pix2pix, CUT, pix2pixHD, PyTorch-GAN or fast style transfer, with its own names of "
        f"tensors, such as model.model.0.weight or model.10.conv_block.1.weight"
    )


def _position(named: tuple[str, StoredTensor]) -> list[int]:
    """What orders tensors as their modules are; some files have them in alphabetical order."""
    return [int(number) for number in re.findall(r"\d+", named[0])]
