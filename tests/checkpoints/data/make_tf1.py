"""Make the TensorFlow 1 checkpoints of this folder, and what TensorFlow computes with them.

    TF_USE_LEGACY_KERAS=1 python make_tf1.py                            (tensorflow-cpu 2.21, tf_keras 2.21)
    TF_USE_LEGACY_KERAS=1 python make_tf1.py FOLDER NGF DEPTH           one of another size, elsewhere

The generator is a restatement of the one of affinelayer/pix2pix-tensorflow with the same names of variables, of before
and since December 2017. Training takes one step, so that the file has the discriminator's variables and Adam's.
tf1.npz holds the input of 512x512 pixels, in blocks of 8x8, and the float32 NHWC outputs with dropout off: every 3rd
row and column, of those of 256 pixels every 9th, of 512 every 31st; and the first of them as the bytes that the
program writes. The smaller inputs are those of pytorch.npz.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
INPUTS = np.load(HERE / "pytorch.npz")
tf1 = tf.compat.v1
normal = tf1.random_normal_initializer


@dataclass(frozen=True)
class Case:
    """A folder to make: the network, and how much of it training has touched."""

    name: str
    ngf: int
    depth: int
    channels: tuple[int, int] = (3, 3)
    old: bool = False  # the names of before December 2017
    trained: bool = False  # one step of Adam, with a discriminator
    updated: bool = False  # moving statistics, which the program itself never updates
    steps: tuple[int, ...] = (200,)
    direction: str = "AtoB"


CASES = (
    Case("tf1_trained", 1, 5, trained=True, steps=(100, 200), direction="BtoA"),
    Case("tf1_old", 1, 6, old=True),
    Case("tf1_updated", 1, 5, channels=(1, 2), updated=True),
    Case("tf1_levels", 1, 8),
)


def convolved(x: tf.Tensor, filters: int, transposed: bool, old: bool) -> tf.Tensor:
    """A 4x4 convolution of stride 2, with weights that make every part of the network matter."""
    read = x.shape[3]
    kernel = normal(0, 1.4 / (4 * float(read) ** 0.5) * (2 if transposed else 1))
    if not old:
        layer = tf1.layers.conv2d_transpose if transposed else tf1.layers.conv2d
        return layer(x, filters, 4, 2, padding="same", kernel_initializer=kernel, bias_initializer=normal(0, 0.2))
    with tf1.variable_scope("deconv" if transposed else "conv"):
        if transposed:
            weights = tf1.get_variable("filter", [4, 4, filters, read], initializer=kernel)
            n, h, w, _ = tf.unstack(tf.shape(x))
            y = tf1.nn.conv2d_transpose(x, weights, tf.stack([n, 2 * h, 2 * w, filters]), [1, 2, 2, 1], "SAME")
            return tf.ensure_shape(y, [None, None, None, filters])
        weights = tf1.get_variable("filter", [4, 4, read, filters], initializer=kernel)
        return tf1.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), weights, [1, 2, 2, 1], "VALID")


def normed(x: tf.Tensor, old: bool, training: bool) -> tf.Tensor:
    """The norm of a layer, by the image's statistics if ``training``."""
    if not old:
        return tf1.layers.batch_normalization(
            x,
            epsilon=1e-5,
            momentum=0.1,
            training=training,
            gamma_initializer=normal(1, 0.2),
            beta_initializer=normal(0, 0.2),
        )
    with tf1.variable_scope("batchnorm"):
        offset = tf1.get_variable("offset", [x.shape[3]], initializer=normal(0, 0.2))
        scale = tf1.get_variable("scale", [x.shape[3]], initializer=normal(1, 0.2))
        mean, variance = tf1.nn.moments(x, axes=[0, 1, 2])
        return tf.nn.batch_normalization(x, mean, variance, offset, scale, 1e-5)


def generator(x: tf.Tensor, case: Case, training: bool) -> tf.Tensor:
    """The U-Net, images in [-1, 1]."""
    maps = []
    for level in range(1, case.depth + 1):
        with tf1.variable_scope(f"encoder_{level}"):
            x = tf.nn.leaky_relu(x, 0.2) if level > 1 else x
            x = convolved(x, case.ngf * min(2 ** (level - 1), 8), False, case.old)
            x = normed(x, case.old, training) if level > 1 else x
        maps.append(x)
    for level in range(case.depth, 0, -1):
        with tf1.variable_scope(f"decoder_{level}"):
            x = tf.nn.relu(x if level == case.depth else tf.concat([x, maps[level - 1]], axis=3))
            x = convolved(x, int(maps[level - 2].shape[3]) if level > 1 else case.channels[1], True, case.old)
            x = normed(x, case.old, training) if level > 1 else tf.tanh(x)
    return x


def discriminator(x: tf.Tensor, case: Case) -> tf.Tensor:
    for layer, width in enumerate((2, 1), 1):
        with tf1.variable_scope(f"layer_{layer}"):
            x = convolved(x, width, False, case.old)
    return tf.sigmoid(x)


def train(x: tf.Tensor, y: tf.Tensor, case: Case) -> list[tf.Operation]:
    """Operations of one step of training, each with variables of its own."""
    with tf1.variable_scope("discriminator"):
        judged = discriminator(tf.concat([x, y], axis=3), case)
    judged = tf.reduce_mean(judged)
    operations = []
    for name, loss in (("discriminator", judged), ("generator", tf.reduce_mean(tf.abs(y)) - judged)):
        with tf1.name_scope(f"{name}_train"):
            variables = [each for each in tf1.trainable_variables() if each.name.startswith(name)]
            operations.append(tf1.train.AdamOptimizer(2e-4, 0.5).minimize(loss, var_list=variables))
    average = tf.train.ExponentialMovingAverage(decay=0.99)
    return [*operations, average.apply([judged])]


def outputs_of(session: tf1.Session, x: tf.Tensor, y: tf.Tensor, name: str, inputs: list[np.ndarray]) -> dict:
    """What TensorFlow computes for each input."""
    results = {}
    for image in inputs:
        h, w, _ = image.shape
        step = 3 if h <= 64 else 9 if h < 512 else 31
        result = session.run(y, {x: image[None].astype(np.float32) / 255 * 2 - 1})[0]
        results[f"{name.format(f'{h}x{w}')}"] = result[::step, ::step]
    return results


def make(case: Case, large: np.ndarray) -> dict[str, np.ndarray]:
    """Write the folder of one case into the working folder, so that no other path gets into it; its outputs."""
    side, channels = 2**case.depth, case.channels[0]
    inputs = [INPUTS[f"input/{side}x{side}x{channels}"], large[:, :, :channels]]
    results = {}
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(7)
        x = tf1.placeholder(tf.float32, [None, None, None, channels])
        with tf1.variable_scope("generator"):
            y = generator(x, case, True)
        update = tf1.get_collection(tf1.GraphKeys.UPDATE_OPS) if case.updated else []
        with tf1.variable_scope("generator", reuse=True):
            evaluated = generator(x, case, False)
        step = tf1.train.get_or_create_global_step()
        steps = train(x, y, case) if case.trained else []
        session.run(tf1.global_variables_initializer())
        saver = tf1.train.Saver(max_to_keep=1)
        for number in case.steps:
            session.run([*steps, *update], {x: inputs[0][None].astype(np.float32) / 255 * 2 - 1})
            session.run(step.assign(number))
            saver.save(session, f"{case.name}/model", step, write_meta_graph=False)
        results |= outputs_of(session, x, y, f"{case.name}/{{}}/image", inputs)
        if case.updated:
            results |= outputs_of(session, x, evaluated, f"{case.name}/{{}}/running", inputs)
    options = {"mode": "train", "ngf": case.ngf, "ndf": 2, "which_direction": case.direction, "lab_colorization": False}
    Path(case.name, "options.json").write_text(json.dumps(options, sort_keys=True, indent=4))
    return results


def make_all(cases: tuple[Case, ...]) -> None:
    """Write the folders of all cases, and tf1.npz beside them."""
    blocks = np.random.default_rng(7).integers(0, 256, (64, 64, 3), np.uint8)
    large = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    results = {"input/512x512": large}
    for case in cases:
        results |= make(case, large)
    y = results[f"{cases[0].name}/{2 ** cases[0].depth}x{2 ** cases[0].depth}/image"]
    with tf.Graph().as_default(), tf1.Session() as session:
        results["bytes"] = session.run(tf.image.convert_image_dtype((y + 1) / 2, tf.uint8, saturate=True))
    np.savez_compressed("tf1.npz", **results)


if __name__ == "__main__":
    target, ngf, depth = sys.argv[1:] or (HERE, 0, 0)
    os.chdir(target)
    make_all((Case("tf1_live", int(ngf), int(depth), updated=True),) if depth else CASES)
