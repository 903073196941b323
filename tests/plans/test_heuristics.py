"""Which algorithms the rules choose on a CPU."""

from __future__ import annotations

import pytest

from pix2pix.model.resnet import resnet
from pix2pix.model.unet import unet
from pix2pix.plans.heuristics import choose


@pytest.mark.parametrize("precision, algorithm", [("float32", "winograd4"), ("bfloat16", "winograd3")])
def test_blocks_of_a_resnet_use_the_largest_tile_that_is_accurate_enough(precision, algorithm):
    layers = choose(resnet(), "throughput", precision=precision).layers
    assert {str(layers[name]) for name in layers if name.startswith("block")} == {algorithm}
    assert {str(layers[name]) for name in layers if not name.startswith("block")} == {"direct"}


def test_amx_needs_no_transforms():
    for generator in (resnet(), unet()):
        layers = choose(generator, "throughput", precision="bfloat16", processor="amx").layers
        assert {str(layer) for layer in layers.values()} == {"direct"}


@pytest.mark.parametrize("processor, tiles", [("avx512", True), ("portable", True), ("amx", False)])
def test_integers_are_transformed_without_amx_where_maps_are_large(processor, tiles):
    layers = choose(resnet(), "latency", precision="int8", processor=processor).layers
    assert {str(layers[name]) for name in layers if "block" in name} == {"int8-winograd2" if tiles else "int8"}
    assert [str(layers[name]) for name in layers if "block" not in name] == ["direct", *["int8"] * 4, "direct"]
    for tune in ("latency", "throughput"):
        layers = choose(unet(), tune, precision="int8", processor=processor).layers
        transformed = [name for name, layer in layers.items() if str(layer) == "int8-winograd3"]
        inner = ["encoder_2", "encoder_3", "encoder_4", "decoder_4", "decoder_3", "decoder_2"]
        assert transformed == (inner if tiles else [])


def test_transformed_weights_of_wide_layers_are_limited():
    """Every second one has larger tiles, whatever is before them: with ngf=256, a layer of stride 2 that is as wide."""
    for ngf, precision in ((64, "float32"), (64, "bfloat16"), (256, "float32")):
        layers = choose(resnet(ngf, levels=4 if ngf == 64 else 3, size=512), "latency", precision=precision).layers
        assert {str(layers[name]) for name in layers if name.endswith("_1") and "block" in name} == {"winograd3"}
        assert {str(layers[name]) for name in layers if name.endswith("_2") and "block" in name} == {"winograd2"}


def test_a_u_net_uses_larger_tiles_for_more_images_at_once():
    plans = [choose(unet(), tune).layers for tune in ("latency", "throughput")]
    assert [str(plan["encoder_5"]) for plan in plans] == ["winograd2", "winograd4"]
    assert [str(plan["decoder_2"]) for plan in plans] == ["winograd-shared3"] * 2
    assert [str(plan["encoder_7"]) for plan in plans] == ["direct", "direct"]
