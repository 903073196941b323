"""What the layers of a Generator cannot express is refused, whichever reader asks for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pix2pix.checkpoints import CheckpointError
from pix2pix.checkpoints.network import Convolution, Network, NotExpressible, Value
from pix2pix.model.generator import Norm

CHANNELS = 4


class Steps:
    """A network that is being made: each step takes and returns values."""

    def __init__(self) -> None:
        self.network = Network()
        self.image = self.network.input(CHANNELS)

    def convolved(self, value: Value, kernel: int = 3, stride: int = 1, **options: object) -> Value:
        name = f"layer {len(self.network.layers)}"
        given = {"bias": False, "filters": CHANNELS, **options}
        return self.network.convolve(value, Convolution(name, kernel, stride, **given))

    def padded(self, value: Value, mode: str = "reflect") -> Value:
        return self.network.pad(value, (1, 1, 1, 1), mode)

    def normed(self, value: Value) -> Value:
        return self.network.normalise(value, Norm(), True)


def bilinear(steps: Steps) -> Value:
    return steps.network.upsample(steps.convolved(steps.image), 2, "bilinear")


REFUSED: dict[str, tuple[Callable[[Steps], Value], str]] = {
    "ReLU after bilinear": (lambda s: s.network.activate(bilinear(s), 0.0), "enlarged with weights"),
    "bilinear twice": (lambda s: s.network.upsample(bilinear(s), 2, "bilinear"), "padded or enlarged already"),
    "enlarged after padding": (lambda s: s.network.upsample(s.padded(s.image), 2, "nearest"), "padded or enlarged"),
    "reflected twice": (lambda s: s.padded(s.padded(s.image)), "reflects what is padded already"),
    "zeros after reflection": (lambda s: s.padded(s.padded(s.image), "zeros"), "padded in another way"),
    "same after padding": (lambda s: s.convolved(s.padded(s.image, "zeros")), "pads what is padded already"),
    "valid without padding": (lambda s: s.convolved(s.image, padding="valid"), "does not keep the map's size"),
    "norm of the image": (lambda s: s.normed(s.image), "directly follow a convolution"),
    "two norms": (lambda s: s.normed(s.normed(s.convolved(s.image))), "a second norm"),
    "norm of a padded map": (lambda s: s.normed(s.padded(s.convolved(s.image))), "directly follow a convolution"),
    "norm after a sum": (
        lambda s: s.normed(s.network.add([s.image, s.convolved(s.image)])),
        "directly follow a convolution",
    ),
    "bias after a norm": (lambda s: s.network.add_bias(s.normed(s.convolved(s.image))), "no convolution's own sum"),
    "two biases": (lambda s: s.network.add_bias(s.convolved(s.image, bias=True)), "no convolution's own sum"),
    "tanh of a ReLU": (lambda s: s.network.tanh(s.network.activate(s.convolved(s.image), 0.0)), "another activation"),
    "after the tanh": (lambda s: s.convolved(s.network.tanh(s.convolved(s.image))), "follows the final tanh"),
    "sum of a map with itself": (lambda s: s.network.add([s.convolved(s.image)] * 2), "last convolution of a block"),
    "sum with an enlarged map": (lambda s: s.network.add([s.convolved(s.image), bilinear(s)]), "the sum of two maps"),
    "joined before its padding": (
        lambda s: s.network.concatenate([s.image, s.padded(s.convolved(s.image))]),
        "without a convolution after that",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_layer_does_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(NotExpressible, match=message):
        make(Steps())


def test_a_map_that_a_norm_has_changed_cannot_be_read() -> None:
    steps = Steps()
    before = steps.convolved(steps.image)
    steps.normed(before)
    with pytest.raises(NotExpressible, match="that a norm or a sum after it reads, too"):
        steps.convolved(before)


def test_a_map_that_has_been_read_cannot_change() -> None:
    steps = Steps()
    before = steps.convolved(steps.image)
    steps.convolved(before)
    for change in (steps.normed, steps.network.tanh, steps.network.add_bias):
        with pytest.raises(NotExpressible, match="that nothing else reads"):
            change(before)


def test_padding_commutes_with_activations_and_nearest_upsampling_with_both() -> None:
    steps = Steps()
    value = steps.network.upsample(steps.convolved(steps.image), 2, "nearest")
    value = steps.network.activate(steps.padded(value), 0.2)
    layer = steps.network.layers[steps.convolved(value, padding="valid").parts[0].layer]
    assert (layer.upsample, layer.padding, layer.padding_mode, layer.inputs[0].slope) == (2, 1, "reflect", 0.2)


def finish(steps: Steps, output: Value, size: int = 0) -> None:
    steps.network.generator(output, size, "", ())


def test_outputs_that_are_no_image_are_refused() -> None:
    steps = Steps()
    with pytest.raises(CheckpointError, match="not its last convolution"):
        finish(steps, steps.padded(steps.convolved(steps.image)))
    with pytest.raises(CheckpointError, match="another size than its input"):
        finish(steps, steps.convolved(steps.image, stride=2))
    steps = Steps()
    unused, output = steps.convolved(steps.image), steps.convolved(steps.image)
    with pytest.raises(CheckpointError, match="does not depend on layer 'layer 0'"):
        finish(steps, output)
    assert unused != output


def test_sizes_that_are_too_small_to_reflect_are_refused() -> None:
    steps = Steps()
    output = steps.convolved(steps.network.pad(steps.image, (3, 3, 3, 3), "reflect"), 7, padding="valid")
    finish(steps, output, 4)
    with pytest.raises(CheckpointError, match="does not take images of the size in its graph"):
        finish(steps, output, 3)
