"""Trains a small ResNet to turn label images into facades: real weights, on which :mod:`.quality` measures.

    python -m bench.peers.train_resnet --output resnet.safetensors [--minutes 5]

The network is CycleGAN's with ngf=32 and 6 blocks, the loss L1, one step sees one drawn facade of those that the demo
model was trained on. Seeds are fixed, but how many steps fit the time, and so the weights, depends on the machine.
Needs PyTorch, and computes in bfloat16, which is fast where the processor has AMX.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from pix2pix import checkpoints
from pix2pix.demo.facades import TRAINING_SEEDS, facade
from pix2pix.engines.reference import to_float
from pix2pix.model.resnet import resnet
from pix2pix.model.weights import random_weights

from .. import common
from .engines import nchw
from .torch_network import TorchNetwork, tensors_of

LEARNING_RATE = 1e-3  # at the start; it falls linearly to 0
REPORT_EVERY = 50  # steps


def train(network: TorchNetwork, seconds: float) -> list[float]:
    """Train for so long, at least one step; the loss of each step."""
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE, betas=(0.5, 0.999))
    losses: list[float] = []
    rng, start = np.random.default_rng(0), time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds or not losses:
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * max(0.0, 1 - elapsed / seconds)
        pair = facade(int(rng.choice(TRAINING_SEEDS)))
        labels, target = (torch.from_numpy(nchw(to_float(image[None]))) for image in pair)
        with torch.autocast("cpu", torch.bfloat16):
            y = network(labels.contiguous(memory_format=torch.channels_last))
        loss = functional.l1_loss(y.float(), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if len(losses) % REPORT_EVERY == 0:
            print(f"{len(losses)} steps: L1 {np.mean(losses[-REPORT_EVERY:]):.4f}", flush=True)
    return losses


def main(argv: list[str] | None = None) -> int:
    """Train, and write the weights."""
    parser = common.argument_parser("bench.peers.train_resnet", __doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="to be written, .safetensors")
    parser.add_argument("--minutes", type=float, default=5.0, help="(%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.minutes <= 0:
        parser.error(f"--minutes is {arguments.minutes:g}, expected more than 0")
    generator = resnet(ngf=32, blocks=6)
    network = TorchNetwork(generator, tensors_of(generator, random_weights(generator)), group_norm=False)
    losses = train(network, 60 * arguments.minutes)
    checkpoints.write(arguments.output, generator, network.weights())
    print(f"wrote {arguments.output} after {len(losses)} steps")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
