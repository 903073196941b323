"""Canonical names of the layers of a graph, whose own names say little: by what the layers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..model.generator import Layer, Source


def renamed(layer: Layer, names: Mapping[str, str]) -> Layer:
    """``layer`` with other names of itself and of what it reads."""
    inputs = tuple(Source(names[source.layer], source.slope) for source in layer.inputs)
    residual = Source(names[layer.residual.layer], layer.residual.slope) if layer.residual else None
    return replace(layer, name=names[layer.name], inputs=inputs, residual=residual)


def canonical_names(layers: Sequence[Layer]) -> dict[str, str]:
    """Own name -> canonical one: encoder_1, ..., decoder_1 of a U-Net; otherwise those of a ResNet generator.

    These are first, down_1, ..., block_1_1 to the layer that ends a residual block, up_1, ... and last; conv_1, ... are
    others that keep the map's size.
    """
    downs = [layer.name for layer in layers if not layer.transposed and layer.stride > layer.upsample]
    ups = [layer.name for layer in layers if layer.upsample > layer.stride or (layer.transposed and layer.stride > 1)]
    if len(downs) == len(ups) and len(layers) == 2 * len(ups):
        names = {name: f"encoder_{number}" for number, name in enumerate(downs, 1)}
        return names | {name: f"decoder_{len(ups) - number}" for number, name in enumerate(ups)}
    names = {name: f"down_{number}" for number, name in enumerate(downs, 1)}
    names |= {name: f"up_{number}" for number, name in enumerate(ups, 1)}
    names |= {layers[-1].name: "last"}
    names |= {} if layers[0].name in names else {layers[0].name: "first"}
    blocks, others = 0, 0
    inside: list[str] = []  # the layers that may belong to a block whose end is still to come
    for layer in layers:
        if layer.name not in names:
            inside.append(layer.name)
            if layer.residual:
                blocks += 1
                names |= {name: f"block_{blocks}_{number}" for number, name in enumerate(inside, 1)}
                inside = []
        elif inside:
            names |= {name: f"conv_{others + number}" for number, name in enumerate(inside, 1)}
            others, inside = others + len(inside), []
    return names
