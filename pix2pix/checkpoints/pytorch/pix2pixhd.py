"""pix2pixHD's local enhancer, inferred from the names and shapes of its tensors.

``model`` is a global generator without its last layer, at half the size. For enhancer N, ``modelN_1`` is its first two
convolutions, and ``modelN_2`` blocks, a transposed convolution and, in the last enhancer, the last convolution.

Source: models/networks.py of https://github.com/NVIDIA/pix2pixHD.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...errors import CheckpointError
from ...model.pix2pixhd import COARSE, Coarse, enhancer_prefix, local_enhancer
from ..tensors import Stored, Unread
from .labels import takes_labels, with_labels
from .layout import Place, canonical, counted, extent
from .resnet import HD_SIZE, assumed, label_remarks, statistics_of, variant_of
from .sequence import BlockForm, find_form, find_sequence

INNER = re.compile(r"(?:^|\.)(?P<block>model(?P<enhancer>[1-9])_2\.(?P<number>\d{1,2})\.conv_block\.\d\.[a-z_]+)$")
GLOBAL = "model."  # the prefix of the coarse network, which looks like one of its own
_MAX_ENHANCERS = 3


def read(tensors: Stored, origin: str) -> Unread:
    """The network that has these tensors, which have no prefix, and its weights.

    Raises CheckpointError that lists all tensors that don't fit.
    """
    found = [match for name in tensors if (match := INNER.match(name))]
    enhancers = max(int(match["enhancer"]) for match in found)
    blocks = 1 + max(int(match["number"]) for match in found)
    network = f"a local enhancer of pix2pixHD ({enhancers} x {counted(blocks)})"
    own = {name.removeprefix(GLOBAL): tensor for name, tensor in tensors.items() if name.startswith(GLOBAL)}
    below = find_sequence(own)
    if enhancers > _MAX_ENHANCERS or below is None or below.blurred or below.up != "transposed":
        raise CheckpointError(
            f"the tensors are those of {network}, but not those in {GLOBAL!r}, which must be a global generator of "
            f"pix2pixHD, and there must be at most {_MAX_ENHANCERS} enhancers: its network was changed"
        )
    form = find_form(tensors, "conv_block", [f"model{match['enhancer']}_2.{match['number']}" for match in found])
    places = {
        f"{COARSE}{layer}": Place(f"{GLOBAL}{place.convolution}", f"{GLOBAL}{place.norm}")
        for layer, place in below.places().items()
        if layer != "last"
    } | dict(_places(enhancers, blocks, form))
    norms, variant = variant_of(tensors, places, form)
    in_channels = extent(tensors, f"{places['first'].convolution}weight", 1)
    generator = local_enhancer(
        extent(tensors, f"{places['first'].convolution}weight", 0),
        blocks,
        in_channels,
        extent(tensors, f"{places['last'].convolution}weight", 0),
        variant,
        coarse=Coarse(below.levels, below.blocks),
        enhancers=enhancers,
        origin=f"{origin}: {network}",
        statistics=statistics_of(norms, form),
        size=HD_SIZE,
        assumed=assumed(norms, form),
        remarks=norms.remarks + label_remarks(in_channels),
    )
    weights = canonical(tensors, generator, places, norms, network)
    return with_labels(generator, weights) if takes_labels(in_channels) else (generator, weights)


def _places(enhancers: int, blocks: int, form: BlockForm) -> Iterator[tuple[str, Place]]:
    """(layer, place of its tensors) of all enhancers."""
    for number in range(1, enhancers + 1):
        prefix, down, up = enhancer_prefix(number, enhancers), f"model{number}_1.", f"model{number}_2."
        yield f"{prefix}first", Place(f"{down}1.", f"{down}2.")
        yield f"{prefix}down_1", Place(f"{down}4.", f"{down}5.")
        for block in range(blocks):
            for half, place in enumerate(form.places(f"{up}{block}"), 1):
                yield f"{prefix}block_{block + 1}_{half}", place
        yield f"{prefix}up_1", Place(f"{up}{blocks}.", f"{up}{blocks + 1}.")
    yield "last", Place(f"model{enhancers}_2.{blocks + 4}.")
