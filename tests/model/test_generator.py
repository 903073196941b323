"""The model as data: shapes, counts, validation, folding."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from pix2pix.model.generator import Generator, Layer, Norm, Source
from pix2pix.model.lowering import lower
from pix2pix.model.resnet import resnet
from pix2pix.model.unet import UnetVariant, unet
from pix2pix.model.weights import fold, random_weights
from tests.models import VARIANTS, weights_of


def test_counts_of_the_published_network():
    g = unet()
    assert (g.ngf, g.depth, g.channels, g.eps, g.size, g.multiple) == (64, 8, (3, 3), 1e-5, 256, 256)
    assert g.flops() == g.flops(256, 256) == 2 * 6_048_186_368
    assert sum(np.prod(shape) for shape in g.tensors().values()) == 54_420_483
    moving = sum(np.prod(s) for s in g.with_statistics("running").tensors().values())
    assert moving == 54_431_363  # what the course's network.bin holds


def test_shapes_halve_and_double():
    shapes = unet(ngf=64).shapes(512, 256)
    assert shapes["input"] == (512, 256, 3)
    assert shapes["encoder_1"] == (256, 128, 64)
    assert shapes["encoder_8"] == (2, 1, 512)
    assert shapes["decoder_8"] == (4, 2, 512)
    assert shapes["decoder_1"] == (512, 256, 3)


@pytest.mark.parametrize("h, w", [(255, 256), (256, 0), (128, 256), (384, 256)])
def test_sizes_that_the_network_cannot_take(h, w):
    with pytest.raises(ValueError, match=f"{w}x{h}.*multiples of 256"):
        unet().check_size(h, w)


@pytest.mark.parametrize(
    "h, w, nearest", [(300, 300, "256x256 or 512x512"), (256, 700, "512x256 or 768x256"), (0, 9, "256x256")]
)
def test_the_nearest_sizes_are_named(h, w, nearest):
    with pytest.raises(ValueError, match=f"got {w}x{h} pixels .*, e.g. {nearest}$"):
        unet().check_size(h, w)


def test_constant_layers_only_where_a_normalised_map_is_one_pixel():
    g = unet(ngf=4)
    assert lower(g).constants(256, 256) == ("encoder_8", "decoder_8")
    assert lower(g).constants(256, 512) == ()
    assert lower(g.with_statistics("running")).constants(256, 256) == ()
    assert lower(unet(ngf=4, variant=UnetVariant(innermost_norm=False))).constants(256, 256) == ()


@pytest.mark.parametrize("variant", VARIANTS)
def test_description_survives_json(variant):
    g = VARIANTS[variant]
    assert Generator.from_dict(json.loads(json.dumps(g.to_dict()))) == g


@pytest.mark.parametrize(
    "change",
    [
        {"layers": []},
        {"layers": None},
        {"statistics": "batch"},
        {"surplus": 1},
        {"layers": [{"name": "a"}]},
    ],
)
def test_descriptions_that_make_no_sense(change):
    with pytest.raises(ValueError):
        Generator.from_dict({**unet(ngf=2, depth=5).to_dict(), **change})


@pytest.mark.parametrize("field, value", [("stride", 0), ("filters", 10**9), ("bias", 3), ("join", "sum")])
def test_layers_that_make_no_sense(field, value):
    description = unet(ngf=2, depth=5).to_dict()
    description["layers"][1][field] = value
    with pytest.raises(ValueError):
        Generator.from_dict(description)


def test_layers_must_fit_together():
    first = Layer("a", (Source("input"),), 3, 8)
    with pytest.raises(ValueError, match="takes 9 channels"):
        Generator((first, Layer("b", (Source("a"),), 9, 8)))
    with pytest.raises(ValueError, match="no earlier layer"):
        Generator((first, Layer("b", (Source("c"),), 8, 8)))
    with pytest.raises(ValueError, match="twice"):
        Generator((first, first))


def test_problems_are_listed_all_at_once():
    g = unet(ngf=2, depth=5)
    weights = random_weights(g)
    del weights["encoder_2.gamma"]
    weights["surplus.kernel"] = np.zeros(3, np.float32)
    weights["decoder_1.bias"] = np.zeros(4, np.float32)
    weights["encoder_1.bias"] = weights["encoder_1.bias"].astype(np.float64)
    with pytest.raises(ValueError) as error:
        g.check_weights(weights)
    text = str(error.value)
    for fragment in ("4 problems", "missing encoder_2.gamma (4,)", "surplus surplus.kernel", "float64"):
        assert fragment in text
    assert "decoder_1.bias has shape (4,), expected (3,)" in text


def test_needed_walks_back_from_the_outputs_only():
    g = unet(ngf=2, depth=5)
    assert [y.name for y in lower(g).needed(["encoder_3"])] == ["encoder_1", "encoder_2", "encoder_3"]
    assert [y.name for y in lower(g).needed(["decoder_1"], ["decoder_2", "encoder_1"])] == ["decoder_1"]
    with pytest.raises(ValueError, match="without the value of input"):
        lower(g).needed(["decoder_1"], ["decoder_2"])


def test_overrides():
    g = unet(ngf=2, depth=5).with_overrides({"eps": "1e-3", "slope": 0.3, "output_scale": 255.5, "size": 64})
    assert (g.eps, g.output_scale, g.size) == (1e-3, 255.5, 64)
    assert g["encoder_2"].inputs == (Source("encoder_1", 0.3),)
    assert g["decoder_2"].inputs[0].slope == 0.0
    for bad in ({"beta": 1}, {"eps": "small"}, {"eps": -1}, {"size": 33}, {"size": 64.5}, {"size": 1e400}):
        with pytest.raises(ValueError):
            g.with_overrides(bad)


def test_folding_gives_the_same_function_without_norms():
    g, weights = VARIANTS["running"], weights_of("running")
    folded, folded_weights = fold(g, weights)
    folded.check_weights(folded_weights)
    assert all(layer.norm is None and layer.bias for layer in folded.layers if g[layer.name].norm)
    name, layer = "decoder_3", g["decoder_3"]
    r = weights[f"{name}.gamma"] / np.sqrt(weights[f"{name}.variance"].astype(float) + layer.norm.eps)
    expected = weights[f"{name}.kernel"] * r[:, None]
    np.testing.assert_allclose(folded_weights[f"{name}.kernel"], expected, rtol=1e-6)
    expected = weights[f"{name}.beta"] - weights[f"{name}.mean"] * r
    np.testing.assert_allclose(folded_weights[f"{name}.bias"], expected, rtol=1e-5, atol=1e-6)


def test_generators_are_values():
    g = unet(ngf=2, depth=5)
    assert g == unet(ngf=2, depth=5) and hash(g) == hash(unet(ngf=2, depth=5))
    assert g != unet(ngf=2, depth=5, variant=UnetVariant(norm=Norm(eps=1e-3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        g.size = 3


def test_results_and_scratch_share_memory_unless_both_are_needed_at_once():
    program = lower(unet(ngf=2, depth=4))
    sizes = {op.name: 10 + at for at, op in enumerate(program.ops)}
    places = program.places(sizes, {"encoder_2": 100})
    assert places.end < sum(sizes.values()) + 100
    where = {**places.results, "scratch": places.scratch["encoder_2"]}
    assert {name: at.stop - at.start for name, at in where.items()} == {**sizes, "scratch": 100}
    made = {op.name: at for at, op in enumerate(program.ops)} | {"scratch": 1}
    last = {name: max([made[name], *(made[op.name] for op in program.ops if name in op.reads)]) for name in where}
    for a in where:
        for b in where:
            at_once = made[a] <= last[b] and made[b] <= last[a]
            apart = where[a].stop <= where[b].start or where[b].stop <= where[a].start
            assert a == b or apart or not at_once


def test_the_maps_of_a_resnet_and_their_scratch_leave_no_gaps():
    program = lower(resnet())
    shapes = program.shapes(256, 256)
    sizes = {op.name: math.prod(shapes[op.name]) for op in program.ops if not op.makes_image}
    scratch = {name: 2_700_000 for name in sizes if name.startswith("block")}
    at_first = sizes["first"] + sizes["down_1"]  # beside which the blocks' maps and their scratch have room
    assert program.places(sizes, scratch).end == at_first


def test_group_norms_keep_biases_and_small_maps_that_vary():
    """What is added to all pixels of a channel, and a map of one pixel, do not vanish behind a norm of several."""
    generators = [unet(ngf=2, depth=3, variant=UnetVariant(norm=Norm(groups=groups))) for groups in (0, 2)]
    of_channels, of_groups = ({y.name for y in fold(g, random_weights(g))[0].layers if y.bias} for g in generators)
    assert of_groups - of_channels == {y.name for y in generators[1].layers if y.norm and y.bias}
    assert [bool(lower(g).constants(8, 8)) for g in generators] == [True, False]


@pytest.mark.parametrize("groups", [-1, 3, 5, 2.0, True])
def test_groups_divide_the_channels(groups):
    g = unet(ngf=4, depth=2, variant=UnetVariant(norm=Norm(groups=2)))
    description = json.loads(json.dumps(g.to_dict()))
    assert Generator.from_dict(description) == g
    description["layers"][1]["norm"]["groups"] = groups
    with pytest.raises(ValueError, match="not a layer that any engine could run"):
        Generator.from_dict(description)
