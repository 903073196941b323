"""Make the PyTorch files of this folder, and what PyTorch computes with them: ``python make_pytorch.py`` (torch 2.13).

The U-Net here is a restatement of the one of junyanz/pytorch-CycleGAN-and-pix2pix with the same names of tensors.
pytorch.npz holds the uint8 inputs by their size, and for every case the float32 NHWC outputs under the statistics of
the image (training mode, dropout off) and stored ones (evaluation mode): every 3rd row and column, of large ones
every 9th.
"""

from __future__ import annotations

import argparse
import datetime
from collections import OrderedDict, defaultdict, deque
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent
NORMS = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
    "affine": partial(nn.InstanceNorm2d, affine=True),
    "none": lambda channels: nn.Identity(),
}


class Level(nn.Module):
    """One level of the U-Net, with the levels below it inside: x -> concat(x, up(below(down(x))))."""

    def __init__(self, widths: list[int], out: int, norm: str, dropout: bool, outermost: bool = False) -> None:
        """``widths``: channels of the input of this level, then of those below."""
        super().__init__()
        read, width, *deeper = widths
        biased = norm in ("instance", "affine")
        down = nn.Conv2d(read, width, 4, 2, 1, bias=biased)
        below = [Level([width, *deeper], width, norm, dropout)] if deeper else []
        read_up = 2 * width if deeper else width
        up = nn.ConvTranspose2d(read_up, out, 4, 2, 1, bias=biased or outermost)
        normed = NORMS[norm]
        if outermost:
            steps = [down, *below, nn.ReLU(True), up, nn.Tanh()]
        elif deeper:
            steps = [nn.LeakyReLU(0.2, True), down, normed(width), *below, nn.ReLU(True), up, normed(out)]
            steps += [nn.Dropout(0.5)] if dropout and width == deeper[0] else []
        else:
            steps = [nn.LeakyReLU(0.2, True), down, nn.ReLU(True), up, normed(out)]
        self.model = nn.Sequential(*steps)
        self.outermost = outermost

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.model(x)
        return y if self.outermost else torch.cat([x, y], 1)


class UNet(nn.Module):
    """A generator of ``depth`` levels, with weights that make every part of it matter."""

    def __init__(self, ngf: int, depth: int, norm: str, channels: tuple[int, int] = (3, 3), dropout: bool = False):
        super().__init__()
        widths = [channels[0], *(ngf * min(2**i, 8) for i in range(depth))]
        self.model = Level(widths, channels[1], norm, dropout, outermost=True)
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 2.0)
                elif tensor.dim() == 4:
                    tensor.normal_(0, 1.4 / (4 * tensor.shape[1] ** 0.5))
                elif name.endswith("weight"):
                    tensor.normal_(1, 0.2)
                elif tensor.is_floating_point():
                    tensor.normal_(0, 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def input_image(h: int, w: int, c: int) -> np.ndarray:
    """A uint8 image (h,w,c) that varies in all three directions and compresses well."""
    y, x, z = np.ogrid[:h, :w, :c]
    return ((y // 4 * 37 + x // 4 * 53 * (z + 1) + x % 4 * 9) % 256).astype(np.uint8)


def outputs(net: nn.Module, channels: int, sizes: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Inputs and outputs of ``net`` at some (h, w). Changes its running statistics."""
    results = {}
    modes = ["image", "running"] if any(isinstance(m, nn.BatchNorm2d) for m in net.modules()) else ["image"]
    for mode in reversed(modes):
        for h, w in sizes:
            b, step = input_image(h, w, channels), 9 if w > 64 else 3
            net.train(mode == "image")
            for module in net.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
            x = torch.from_numpy(b.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
            with torch.no_grad():
                y = net(x)[0].permute(1, 2, 0).numpy()
            results[f"{h}x{w}/{mode}"] = y[::step, ::step]
    return results


def rounded(net: UNet, dtype: torch.dtype) -> tuple[UNet, dict[str, torch.Tensor]]:
    """``net`` with its weights rounded to ``dtype``, and its state dict in that type."""
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    return net, state


def in_one_storage(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as views of one storage; kernels with their last two axes exchanged in memory."""
    flat = torch.cat([(v.transpose(2, 3) if v.dim() == 4 else v).float().reshape(-1) for v in state.values()])
    views, position = {}, 0
    for name, tensor in state.items():
        view = flat[position : position + tensor.numel()].view(tensor.shape)
        views[name] = view.transpose(2, 3) if tensor.dim() == 4 else view
        position += tensor.numel()
    return views


def stale_statistics(net: UNet) -> dict[str, torch.Tensor]:
    """The state dict as PyTorch 0.3 wrote it for InstanceNorm: with statistics that are never used."""
    state = net.state_dict()
    for name, module in net.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            state[f"{name}.running_mean"] = torch.full([module.num_features], 7.0)
            state[f"{name}.running_var"] = torch.full([module.num_features], 9.0)
    return state


def save_models() -> dict[str, np.ndarray]:
    """Write the files that hold generators; their outputs by "<case>/<size>/<statistics>"."""
    small, results = [(32, 32), (32, 64)], {}

    def case(name: str, net: UNet, content: object = None, sizes=small, channels: int = 3, **options: object) -> None:
        torch.save(net.state_dict() if content is None else content, HERE / f"{name}.pth", **options)
        results.update({f"{name}/{key}": value for key, value in outputs(net, channels, sizes).items()})

    case("batch", UNet(2, 5, "batch"))
    case("instance", UNet(1, 5, "instance"))
    net = UNet(1, 5, "instance")
    case("instance_stale", net, stale_statistics(net))
    case("instance_affine", UNet(1, 5, "affine"))
    case("no_norm", UNet(1, 5, "none"))
    case("dropout", UNet(1, 6, "batch", dropout=True), sizes=[(64, 64)])
    case("depth_7", UNet(1, 7, "batch"), sizes=[(128, 128)])
    case("depth_8", UNet(1, 8, "batch"), sizes=[(256, 256), (256, 512)])
    case("float16", *rounded(UNet(3, 5, "batch"), torch.float16))
    case("bfloat16", *rounded(UNet(1, 5, "batch"), torch.bfloat16))
    case("float64", *rounded(UNet(1, 5, "batch"), torch.float64))
    case("legacy", UNet(1, 5, "batch"), _use_new_zipfile_serialization=False)
    net = UNet(1, 5, "batch", (1, 2))
    case("data_parallel", net, nn.DataParallel(net).state_dict(), channels=1)
    net = UNet(1, 5, "batch")
    case("one_storage", net, in_one_storage(net.state_dict()))
    net = UNet(1, 5, "batch")
    case("protocol_4", net, OrderedDict(net.named_parameters()) | dict(net.named_buffers()), pickle_protocol=4)
    net = UNet(1, 5, "batch")
    save_file(net.state_dict(), HERE / "converted.safetensors")
    (HERE / "converted.safetensors").chmod(0o644)
    results.update({f"converted/{key}": value for key, value in outputs(net, 3, small).items()})
    save_training(case)
    return results


def discriminator() -> nn.Module:
    """The layout of a PatchGAN, with few filters."""
    steps: list[nn.Module] = [nn.Conv2d(6, 2, 4, 2, 1), nn.LeakyReLU(0.2, True)]
    for read, width in ((2, 4), (4, 4)):
        steps += [nn.Conv2d(read, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.2, True)]
    steps.append(nn.Conv2d(4, 1, 4, 1, 1))
    net = nn.Module()
    net.model = nn.Sequential(*steps)
    return net


class WholeModule(nn.Module):
    """What somebody saves who saves the module itself."""


def save_training(case) -> None:
    """Write what training programs save: everything at once, two generators, and what is no generator."""
    net = UNet(1, 5, "batch")
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "netG": net.state_dict(),
        "netD": discriminator().state_dict(),
        "optimizer_G": optimizer.state_dict(),
        "losses": [0.5, 0.25],
    }
    case("training", net, content)
    torch.save({"state": {f"G_{side}": UNet(1, 5, "none").state_dict() for side in "AB"}}, HERE / "two.pth")
    torch.save(discriminator().state_dict(), HERE / "discriminator.pth")
    torch.save(WholeModule(), HERE / "whole_module.pth")
    torch.save(optimizer.state_dict(), HERE / "optimizer.pth")
    torch.save({"epoch": 1, "netG": WholeModule()}, HERE / "module_inside.pth")
    save_with_objects(case)


def save_with_objects(case) -> None:
    """Write a checkpoint as long scripts save it: options, losses and much else beside the generator and its average.

    One of the two generators is in half precision and in an OrderedDict with attributes, as state_dict() gives it.
    """
    net = UNet(1, 5, "batch")
    losses = defaultdict(list, L1=[0.5, 0.25])
    content = {
        "opt": argparse.Namespace(name="facades", gpu_ids=[0], lr=2e-4, path=PurePosixPath("checkpoints")),
        "state_dict": {f"netG.{name}": tensor for name, tensor in net.state_dict().items()},
        "ema": {"shadow": UNet(1, 5, "batch").half().state_dict(), "decay": np.float64(0.999)},
        "losses": losses,
        "best": np.float32(0.25),
        "window": deque([1.0, 2.0], maxlen=5),
        "seen": {1, 2},
        "when": datetime.datetime(2026, 1, 1),
        "random": (torch.get_rng_state(), np.arange(3)),
        "device": torch.device("cuda:0"),
        "dtype": torch.float16,
    }
    case("objects", net, content)


if __name__ == "__main__":
    torch.manual_seed(1)
    torch.set_num_threads(1)
    results = save_models()
    sizes = {tuple(map(int, key.split("/")[1].split("x"))) for key in results}
    inputs = {
        f"input/{h}x{w}x{c}": input_image(h, w, c) for h, w in sorted(sizes) for c in ((1, 3) if h == 32 else (3,))
    }
    np.savez_compressed(HERE / "pytorch.npz", **inputs, **results)
