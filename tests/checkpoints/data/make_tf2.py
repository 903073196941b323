"""Make TensorFlow 2's files of tests, with Keras 2 or 3, and what TensorFlow computes with them.

    python make_tf2.py                                             tf2_keras3.tar.xz and .npz (tensorflow-cpu 2.21)
    TF_USE_LEGACY_KERAS=1 python make_tf2.py                       tf2_keras2.tar.xz and .npz (tf_keras 2.21)
    python make_tf2.py FOLDER NGF DEPTH                            one folder of another size, elsewhere

The generator is a restatement of that of the TensorFlow tutorial on pix2pix, and, with another norm, of that on
CycleGAN, whose training keeps two of them. The archives have the folders exactly as TensorFlow wrote them. The .npz
files hold the float32 NHWC outputs with dropout off, with the image's statistics and with stored ones, every 3rd row
and column, of those of 512 pixels every 31st. The inputs are those of pytorch.npz and tf1.npz.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
KERAS_2 = os.environ.get("TF_USE_LEGACY_KERAS") == "1"
keras = tf.keras
L = keras.layers


@dataclass(frozen=True)
class Case:
    """A generator, and the way it is saved."""

    name: str
    widths: tuple[int, ...] = (1, 2, 4, 4, 4)
    bias: bool = False
    slope: float = 0.3
    eps: float = 1e-3
    norm: str = "batch"
    skip_before_activation: bool = False  # and concatenated before the upsampled map
    dropout: float = 0.5
    channels: tuple[int, int] = (3, 3)


class InstanceNormalization(L.Layer):
    """The norm of the tutorial on CycleGAN."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.scale = self.add_weight(name="scale", shape=shape[-1:], initializer="ones")
        self.offset = self.add_weight(name="offset", shape=shape[-1:], initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, axes=[1, 2], keepdims=True)
        return self.scale * (x - mean) * tf.math.rsqrt(variance + 1e-5) + self.offset


def normalization(case: Case) -> L.Layer:
    return InstanceNormalization() if case.norm == "instance" else L.BatchNormalization(epsilon=case.eps)


def convolution(case: Case, filters: int, transposed: bool, **options: object) -> L.Layer:
    layer = L.Conv2DTranspose if transposed else L.Conv2D
    return layer(filters, 4, strides=2, padding="same", **{"use_bias": case.bias, **options})


def generator(case: Case, side: int | None) -> keras.Model:
    """The U-Net, images in [-1, 1]."""
    leaky = {"alpha" if KERAS_2 else "negative_slope": case.slope}
    x = inputs = L.Input([side, side, case.channels[0]])
    skips = []
    for level, width in enumerate(case.widths):
        steps = [convolution(case, width, False)] + ([normalization(case)] if level else [])
        if case.skip_before_activation:
            for step in steps:
                x = step(x)
            skips.append(x)
            x = L.LeakyReLU(**leaky)(x)
        else:
            x = keras.Sequential([*steps, L.LeakyReLU(**leaky)])(x)
            skips.append(x)
    for level, width in reversed(list(enumerate(case.widths[:-1], 1))):
        steps = [convolution(case, width, True), normalization(case)]
        steps += [L.Dropout(case.dropout)] if level > len(case.widths) - 3 else []
        x = keras.Sequential([*steps, L.ReLU()])(x)
        skip = skips[level - 1]
        x = L.Concatenate()([skip, x] if case.skip_before_activation else [x, skip])
    return keras.Model(inputs, convolution(case, case.channels[1], True, use_bias=True, activation="tanh")(x))


def discriminator(case: Case) -> keras.Model:
    """As in the tutorial: five convolutions."""
    first, second = (L.Input([None, None, n]) for n in case.channels)
    x = L.Concatenate()([first, second])
    for width in (1, 2, 2):
        x = keras.Sequential([convolution(case, width, False), L.BatchNormalization(), L.LeakyReLU()])(x)
    x = L.Conv2D(2, 4, strides=1, use_bias=False)(L.ZeroPadding2D()(x))
    x = L.LeakyReLU()(L.BatchNormalization()(x))
    return keras.Model([first, second], L.Conv2D(1, 4, strides=1)(L.ZeroPadding2D()(x)))


def fill(model: keras.Model, seed: int) -> keras.Model:
    """The model with weights that make every part of it matter."""
    rng = np.random.default_rng(seed)
    ways = {"gamma": (1, 0.2), "scale": (1, 0.2), "moving_variance": (1, 0.2)}
    values = []
    for variable in model.weights:
        shape, part = tuple(variable.shape), variable.name.partition(":")[0].rpartition("/")[2]
        mean, deviation = ways.get(part, (0, 0.5 / max(shape[2:]) ** 0.5 if part == "kernel" else 0.2))
        values.append(rng.normal(mean, deviation, shape))
    model.set_weights(values)
    return model


def outputs_of(case: Case, model: keras.Model) -> dict[str, np.ndarray]:
    """What TensorFlow computes for two sizes, under both kinds of statistics."""
    silent = generator(replace(case, dropout=0.0), None)
    native = 2 ** len(case.widths)
    channels = case.channels[0]
    small = np.load(HERE / "pytorch.npz")[f"input/{native}x{native}x{channels}"]
    results = {}
    for image in (small, np.load(HERE / "tf1.npz")["input/512x512"][:, :, :channels]):
        x = image[None].astype(np.float32) / 255 * 2 - 1
        h, w, _ = image.shape
        step = 3 if h <= 64 else 9 if h < 512 else 31
        for statistics in ("image", "running") if case.norm == "batch" else ("image",):
            silent.set_weights(model.get_weights())  # training=True changes the moving statistics
            y = np.asarray(silent(x, training=statistics == "image"))[0]
            results[f"{case.name}/{h}x{w}/{statistics}"] = y[::step, ::step]
    return results


def trained(case: Case, folder: Path, models: dict[str, keras.Model]) -> None:
    """Write what the tutorial's training loop writes after a step: models and optimizers, in several shards."""
    kept: dict[str, object] = dict(models)
    for name, model in models.items():
        optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5)
        optimizer.apply_gradients([(tf.ones(v.shape), v) for v in model.trainable_variables])
        kept[f"{name}_optimizer"] = optimizer
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=30_000)
    options = tf.train.CheckpointOptions(experimental_sharding_callback=policy)
    checkpoint = tf.train.Checkpoint(**kept)
    for _ in range(2):
        checkpoint.save(str(folder / "ckpt"), options=options)
    for path in folder.glob("ckpt-1.*"):
        path.unlink()


def saved_for_training(case: Case, model: keras.Model) -> None:
    """Write a SavedModel whose signature runs the model as the tutorial does: with training=True, so with dropout."""

    def run(x: tf.Tensor) -> tf.Tensor:
        return model(x, training=True)

    signature = [tf.TensorSpec([None, None, None, case.channels[0]])]
    if KERAS_2:
        tf.saved_model.save(model, case.name, signatures=tf.function(run, signature))
    else:
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", run, signature)
        archive.write_out(case.name, verbose=False)


def make(folder: Path) -> dict[str, np.ndarray]:
    """Write the folders of all cases into ``folder``; their outputs."""
    side = 32
    case = Case("training")
    model = fill(generator(case, side), 1)
    trained(case, Path(case.name), {"generator": model, "discriminator": discriminator(case)})
    results = outputs_of(case, model)

    case = Case("saved_model", slope=0.2, eps=1e-5, bias=True)
    model = fill(generator(case, side), 2)
    if KERAS_2:
        model.save(case.name, save_format="tf")
    else:
        model.export(case.name, verbose=False)
    results |= outputs_of(case, model)

    case = Case("saved_with_dropout", skip_before_activation=True, channels=(1, 2))
    model = fill(generator(case, None), 3)
    saved_for_training(case, model)
    results |= outputs_of(case, model)

    if KERAS_2:
        case = Case("weights", bias=True, channels=(1, 2))
        model = fill(generator(case, side), 4)
        model.save_weights(f"{case.name}/weights")
        results |= outputs_of(case, model)
    else:
        case = Case("cyclegan", norm="instance", eps=1e-5)
        models = {"generator_g": fill(generator(case, None), 5), "generator_f": fill(generator(case, None), 6)}
        trained(case, Path(case.name), models | {"discriminator_x": discriminator(case)})
        results |= outputs_of(case, models["generator_f"])
    return results


def make_live(ngf: int, depth: int) -> dict[str, np.ndarray]:
    """One generator of that size, as a checkpoint and as a SavedModel."""
    case = Case("live", tuple(ngf * min(2**level, 8) for level in range(depth)))
    model = fill(generator(case, 2**depth), 7)
    tf.train.Checkpoint(generator=model).save("live/ckpt")
    tf.saved_model.save(model, "live_saved")
    return outputs_of(case, model)


if __name__ == "__main__":
    target, wanted, levels = sys.argv[1:] or ("", 0, 0)
    if target:
        os.chdir(target)
        np.savez_compressed("tf2.npz", **make_live(int(wanted), int(levels)))
    else:
        name = f"tf2_keras{2 if KERAS_2 else 3}"
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            outputs = make(Path(place))
            shutil.make_archive(str(HERE / name), "xztar", place)
        np.savez_compressed(HERE / f"{name}.npz", **outputs)
