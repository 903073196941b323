"""The families of generators that PyTorch files hold, and the networks of a state dict that belong to them.

To add a family, write a function that reads its tensors and add its row to :data:`FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from ..budget import Budget
from ..tensors import Stored, StoredTensor, Unread
from . import pix2pixhd, resnet, transformer, unet


def _any(tensors: Stored) -> bool:
    return True


class Family(NamedTuple):
    """One family of networks."""

    inner: re.Pattern[str]
    """Finds names of tensors that only such networks have. Before the group ``block`` is the network's prefix."""
    read: Callable[[Stored, str], Unread]
    """The generator that tensors without their prefix make, and its canonical weights, unread; given the origin."""
    is_one: Callable[[Stored], bool] = _any
    """Whether tensors without their prefix are a generator, once some of their names have been found."""
    part: str | None = None
    """The prefix of a part that another family would take for a whole network."""


FAMILIES = (
    Family(pix2pixhd.INNER, pix2pixhd.read, part=pix2pixhd.GLOBAL),
    Family(resnet.INNER, resnet.read, resnet.is_resnet),
    Family(unet.INNER, unet.read, unet.is_unet),
    Family(unet.GAN_INNER, unet.read_gan, unet.is_gan),
    Family(transformer.INNER, transformer.read),
)


class Network(NamedTuple):
    """One generator of a state dict: its prefix, its tensors without it, and its family."""

    prefix: str
    tensors: dict[str, StoredTensor]
    family: Family


def find_networks(tensors: Stored, budget: Budget) -> list[Network]:
    """The generators among the tensors of one dict, by their prefixes."""
    families: dict[str, Family] = {}
    for name in tensors:
        budget.spend(2 + len(name) // 32)
        for family in FAMILIES:
            if match := family.inner.search(name):
                families.setdefault(name[: match.start("block")], family)
                break
    for prefix, family in list(families.items()):
        if family.part is not None:
            families.pop(prefix + family.part, None)
    own: dict[str, dict[str, StoredTensor]] = {prefix: {} for prefix in families}
    for name, tensor in tensors.items() if own else ():
        for end in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if (found := own.get(name[:end])) is not None:
                budget.spend()
                found[name[end:]] = tensor
    networks = (Network(prefix, own[prefix], families[prefix]) for prefix in sorted(own))
    return [network for network in networks if network.family.is_one(network.tensors)]
