"""Placements that tests of placing and of hybrid engines share."""

from __future__ import annotations

from pix2pix.model.unet import unet
from pix2pix.plans.heuristics import choose
from pix2pix.plans.placements import parse_placement
from pix2pix.plans.plan import place
from tests.models import VARIANTS

PUBLISHED = unet()
HEAVIEST = ("encoder_2", "encoder_3", "encoder_4", "decoder_4", "decoder_3", "decoder_2")
SPLIT = "encoder_2-4,decoder_4-2"


def crossings(parts) -> list[tuple[bool, str]]:
    """(to the GPU?, value) of everything that a walk gives to an engine."""
    return [(part.on_gpu, name) for part in parts for name in part.inputs]


def placed(variant: str, placement: str, tune: str = "throughput"):
    """(the layers on the GPU, a plan that has them there) for a variant."""
    g = VARIANTS[variant]
    layers = parse_placement(placement, g)
    return layers, place(choose(g, tune), choose(g, tune, hardware="cuda"), layers)
