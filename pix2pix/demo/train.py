"""Trains a demo generator (labels -> facade) with the objective of pix2pix: conditional PatchGAN plus L1.

    python -m pix2pix.demo.train --minutes 84 --output latest_net_G.pth

writes a state dict with the key names of the PyTorch program, running statistics included, which both that program
and pix2pix read. It needs PyTorch (the extra ``train``). Images are normalised by their own statistics, the weights
that are written are running averages, and the pairs are drawn by :mod:`.facades` at the start.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .facades import TRAINING_SEEDS, facade
from .networks import ImageNorm, Unet, initialise, patch_discriminator

LEARNING_RATE = 2e-4
BETAS = (0.5, 0.999)
SLOWEST_AVERAGE = 0.998  # share of the average that a step keeps, once there were many steps
REPORT_EVERY = 200  # steps
SAVE_EVERY = 2000  # steps


@dataclass(frozen=True)
class Options:
    """What the command line says; see :func:`parse`."""

    output: Path
    resume: Path | None
    ngf: int
    ndf: int
    minutes: float
    steps: int | None
    pairs: int
    batch: int
    l1: float
    seed: int
    threads: int
    bf16: bool


def parse(arguments: list[str] | None = None) -> Options:
    """Options from the command line."""
    parser = argparse.ArgumentParser(prog="python -m pix2pix.demo.train", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--output", type=Path, default=Path("latest_net_G.pth"), help="the state dict to write (%(default)s)")
    add("--resume", type=Path, help="go on from this .state file, which lies beside the output")
    add("--ngf", type=int, default=24, help="filters of the generator's first layer (%(default)s)")
    add("--ndf", type=int, default=32, help="filters of the discriminator's first layer (%(default)s)")
    add("--minutes", type=float, default=84, help="how long to train, all runs together (%(default)s)")
    add("--steps", type=int, help="how many steps to train, all runs together, instead of --minutes")
    add("--pairs", type=int, default=len(TRAINING_SEEDS), help="pictures to train on (%(default)s)")
    add("--batch", type=int, default=2, help="pictures per step (%(default)s)")
    add("--l1", type=float, default=60, help="weight of the L1 loss (%(default)s)")
    add("--seed", type=int, default=1, help="of the first weights (%(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (%(default)s)")
    add("--bf16", action="store_true", help="compute in bfloat16 where PyTorch considers it safe")
    options = Options(**vars(parser.parse_args(arguments)))
    for name in ("ngf", "ndf", "minutes", "pairs", "batch", "threads"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    return options


def draw_pairs(count: int, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """(labels, pictures) of the first ``count`` training seeds, each uint8 (count, 256, 256, 3)."""
    seeds = range(TRAINING_SEEDS.start, TRAINING_SEEDS.start + count)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as executor:
        pairs = list(executor.map(facade, seeds, chunksize=25))
    return np.stack([labels for labels, _ in pairs]), np.stack([picture for _, picture in pairs])


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (N,H,W,3) -> float32 (N,3,H,W) in [-1,1], channels last in memory."""
    scaled = torch.tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


class Trainer:
    """Both networks, their optimisers, the averaged generator, and how far training has come."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.generator = Unet(options.ngf)
        self.discriminator = patch_discriminator(options.ndf)
        for network in (self.generator, self.discriminator):
            network.apply(initialise).to(memory_format=torch.channels_last)
        self.optimisers = [
            torch.optim.Adam(network.parameters(), LEARNING_RATE, BETAS)
            for network in (self.generator, self.discriminator)
        ]
        self.average = {key: value.clone() for key, value in self.generator.state_dict().items()}
        self.step = 0
        self.minutes = 0.0

    def state(self) -> dict[str, Any]:
        """All that is needed to go on later."""
        return {
            "networks": [self.generator.state_dict(), self.discriminator.state_dict()],
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
            "step": self.step,
            "minutes": self.minutes,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` returned. Networks of other sizes raise RuntimeError."""
        for network, values in zip((self.generator, self.discriminator), state["networks"], strict=True):
            network.load_state_dict(values)
        for optimiser, values in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        self.average, self.step, self.minutes = state["average"], state["step"], state["minutes"]

    def progress(self) -> float:
        """The share of the training that is done; 1 or more is the end."""
        if self.options.steps is not None:
            return self.step / max(1, self.options.steps)
        return self.minutes / self.options.minutes

    def train_step(self, labels: torch.Tensor, pictures: torch.Tensor) -> tuple[float, float, float]:
        """One step of both networks; returns the losses (discriminator, generator, L1).

        The learning rate is constant for the first half of the training and then falls linearly.
        """
        rate = LEARNING_RATE * min(1.0, max(0.02, 2 * (1 - self.progress())))
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = rate
        with self._autocast():
            fake = self.generator(labels)
        judged = self._train_discriminator(labels, pictures, fake.detach())
        fooled, distance = self._train_generator(labels, pictures, fake)
        self.step += 1
        self._update_average()
        return judged, fooled, distance

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16)

    def _logits(self, labels: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return self.discriminator(torch.cat([labels, pictures], dim=1)).float()

    def _train_discriminator(self, labels: torch.Tensor, pictures: torch.Tensor, fake: torch.Tensor) -> float:
        softplus = nn.functional.softplus
        self.discriminator.requires_grad_(True)
        loss = softplus(-self._logits(labels, pictures)).mean() + softplus(self._logits(labels, fake)).mean()
        _descend(self.optimisers[1], loss / 2)
        return loss.item() / 2

    def _train_generator(self, labels: torch.Tensor, pictures: torch.Tensor, fake: torch.Tensor) -> tuple[float, float]:
        self.discriminator.requires_grad_(False)
        adversarial = nn.functional.softplus(-self._logits(labels, fake)).mean()
        distance = nn.functional.l1_loss(fake.float(), pictures)
        _descend(self.optimisers[0], adversarial + self.options.l1 * distance)
        return adversarial.item(), distance.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(SLOWEST_AVERAGE, self.step / (self.step + 20))
        for key, value in self.generator.state_dict().items():
            self.average[key].lerp_(value, 1 - keep)


def _descend(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


@torch.no_grad()
def running_statistics(generator: Unet, labels: np.ndarray) -> dict[str, torch.Tensor]:
    """Means and variances of every norm's input, each averaged over ``labels`` (N,256,256,3).

    The keys are those of BatchNorm: running_mean, running_var (unbiased), num_batches_tracked.
    """
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str, norm: ImageNorm) -> None:
        def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = inputs[0].double()
            both = torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3))])
            sums[name] = sums.get(name, torch.zeros_like(both)) + both

        handles.append(norm.register_forward_hook(add))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in generator.named_modules():
        if isinstance(module, ImageNorm):
            watch(name, module)
    for picture in labels:
        generator(to_tensor(picture[None]))
    for handle in handles:
        handle.remove()
    statistics: dict[str, torch.Tensor] = {}
    for name, (mean, variance) in sums.items():
        statistics[f"{name}.running_mean"] = (mean / len(labels)).float()
        statistics[f"{name}.running_var"] = (variance / len(labels)).float()
        statistics[f"{name}.num_batches_tracked"] = torch.tensor(len(labels))
    return statistics


def write(trainer: Trainer, labels: np.ndarray) -> None:
    """Write the averaged generator, with running statistics over ``labels``, and the state to resume from."""
    path = trainer.options.output
    averaged = Unet(trainer.options.ngf)
    averaged.load_state_dict(trainer.average)
    whole = dict(trainer.average) | running_statistics(averaged, labels)
    _save({key: whole[key] for key in sorted(whole)}, path)
    _save(trainer.state(), path.with_suffix(".state"))


def _save(value: dict[str, Any], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    torch.save(value, partial)
    partial.replace(path)


def _batches(seed: int, pairs: int, batch: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(0, pairs, batch)


def train(options: Options) -> None:
    """Train as the options say, report on the way, write now and then and at the end."""
    torch.set_num_threads(options.threads)
    trainer = Trainer(options)
    if options.resume:
        trainer.load(torch.load(options.resume, weights_only=True))
    labels, pictures = draw_pairs(options.pairs, options.threads)
    batches = _batches(trainer.step, options.pairs, options.batch)
    before, start = trainer.minutes, time.monotonic()
    losses = []
    while trainer.progress() < 1:
        chosen = next(batches)
        losses.append(trainer.train_step(to_tensor(labels[chosen]), to_tensor(pictures[chosen])))
        trainer.minutes = before + (time.monotonic() - start) / 60
        if trainer.step % REPORT_EVERY == 0 or trainer.progress() >= 1:
            judged, fooled, distance = np.mean(losses, axis=0)
            print(
                f"{trainer.minutes:.1f} min, step {trainer.step}: "
                f"discriminator {judged:.3f}, generator {fooled:.3f}, L1 {distance:.4f}",
                flush=True,
            )
            losses.clear()
        if trainer.step % SAVE_EVERY == 0:
            write(trainer, labels[:20])
    write(trainer, labels[:300])
    print(f"wrote {options.output} and, to resume from, {options.output.with_suffix('.state')}")


if __name__ == "__main__":
    train(parse())
