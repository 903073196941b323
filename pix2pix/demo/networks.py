"""The networks that :mod:`.train` trains, in PyTorch: the generator, and the discriminator that judges it.

The generator's state dict has the key names of the PyTorch pix2pix program (junyanz/pytorch-CycleGAN-and-pix2pix,
netG=unet_256, norm=batch), so that program can load it too.

Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", arXiv:1611.07004.
"""

from __future__ import annotations

import torch
from torch import nn

LEVELS = 8  # how often a 256 x 256 picture is halved
EPS = 1e-5


class ImageNorm(nn.Module):
    """Batch normalisation with each image's own statistics, which is what pix2pix does at batch size 1.

    (N,C,H,W) -> (N,C,H,W); more than one pixel is needed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels) * 0.02 + 1)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=EPS)


def _down(in_channels: int, filters: int, *, bias: bool = False, stride: int = 2) -> nn.Conv2d:
    return nn.Conv2d(in_channels, filters, kernel_size=4, stride=stride, padding=1, bias=bias)


def _up(in_channels: int, filters: int, *, bias: bool = False) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, filters, kernel_size=4, stride=2, padding=1, bias=bias)


class Level(nn.Module):
    """One level of the U-Net around the deeper ones: halve, go deeper, double, and put the skip in front.

    ``outer`` and ``inner`` are the channels outside and inside; without a ``deeper`` level it is the innermost one.
    """

    def __init__(self, outer: int, inner: int, deeper: Level | None = None) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.LeakyReLU(0.2), _down(outer, inner)]
        if deeper is not None:
            modules += [ImageNorm(inner), deeper]
        modules += [nn.ReLU(), _up(inner if deeper is None else 2 * inner, outer), ImageNorm(outer)]
        self.model = nn.Sequential(*modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.model(x)], dim=1)


class OutermostLevel(nn.Module):
    """The level that takes and returns pictures: no norms, no skip, tanh."""

    def __init__(self, ngf: int, deeper: Level) -> None:
        super().__init__()
        self.model = nn.Sequential(_down(3, ngf), deeper, nn.ReLU(), _up(2 * ngf, 3, bias=True), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class Unet(nn.Module):
    """The generator: (N,3,H,W) in [-1,1] -> the same; H and W are multiples of 256."""

    def __init__(self, ngf: int) -> None:
        super().__init__()
        level = Level(8 * ngf, 8 * ngf)
        for _ in range(LEVELS - 5):
            level = Level(8 * ngf, 8 * ngf, level)
        for outer in (4, 2, 1):
            level = Level(outer * ngf, 2 * outer * ngf, level)
        self.model = OutermostLevel(ngf, level)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def patch_discriminator(ndf: int) -> nn.Sequential:
    """The 70 x 70 PatchGAN: labels and picture, (N,6,H,W) -> one logit per patch, (N,1,H/8-2,W/8-2)."""
    modules: list[nn.Module] = [_down(6, ndf, bias=True), nn.LeakyReLU(0.2)]
    for multiple, stride in ((1, 2), (2, 2), (4, 1)):
        filters = 2 * multiple * ndf
        modules += [_down(multiple * ndf, filters, stride=stride), ImageNorm(filters), nn.LeakyReLU(0.2)]
    return nn.Sequential(*modules, _down(8 * ndf, 1, bias=True, stride=1))


def initialise(module: nn.Module) -> None:
    """Convolutions as pix2pix starts them: N(0, 0.02), no bias. For ``Module.apply``."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
