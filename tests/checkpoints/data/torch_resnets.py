"""The ResNet generators of the PyTorch programs and PyTorch-GAN's U-Net, restated with the same names of tensors."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

NORMS = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
    "affine": partial(nn.InstanceNorm2d, affine=True),
    "none": lambda channels: nn.Identity(),
}
PADDINGS = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}


class Filter(nn.Module):
    """A fixed filter for every channel by itself."""

    def __init__(self, channels: int, taps: list[float]) -> None:
        super().__init__()
        row = torch.tensor(taps) / sum(taps)
        self.register_buffer("filt", torch.outer(row, row).repeat(channels, 1, 1, 1))


class Blur(Filter):
    """Halves the map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, [1.0, 2.0, 1.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x, [1, 1, 1, 1], mode="reflect")
        return functional.conv2d(x, self.filt, stride=2, groups=x.shape[1])


class Enlarge(Filter):
    """Doubles the map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, [1.0, 3.0, 3.0, 1.0])
        self.filt *= 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x, [1, 1, 1, 1], mode="replicate")
        y = functional.conv_transpose2d(x, self.filt, stride=2, padding=2, groups=x.shape[1])
        return y[:, :, 1:-1, 1:-1]


class Block(nn.Module):
    """A residual block whose modules are its attribute ``container``."""

    def __init__(self, width: int, norm: str, padding: str, dropout: bool, container: str, bias: bool) -> None:
        super().__init__()
        pads = [] if padding == "zero" else [PADDINGS[padding](1)]
        steps: list[nn.Module] = []
        for half in (1, 2):
            steps += [*pads, nn.Conv2d(width, width, 3, padding=int(not pads), bias=bias), NORMS[norm](width)]
            if half == 1:
                steps += [nn.ReLU(True), *([nn.Dropout(0.5)] if dropout else [])]
        self.container = container
        setattr(self, container, nn.Sequential(*steps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + getattr(self, self.container)(x)


def way_up(kind: str, read: int, width: int, bias: bool) -> list[nn.Module]:
    """The modules that double a map, up to the convolution."""
    if kind == "transposed":
        return [nn.ConvTranspose2d(read, width, 3, 2, 1, output_padding=1, bias=bias)]
    if kind == "filter":
        return [Enlarge(read), nn.Conv2d(read, width, 3, padding=1, bias=bias)]
    if kind == "nearest":
        return [nn.Upsample(scale_factor=2), nn.Conv2d(read, width, 3, padding=1, bias=bias)]
    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=kind == "corners")
    return [enlarge, nn.ReflectionPad2d(1), nn.Conv2d(read, width, 3)]  # with a bias, whatever the others have


def modules(
    ngf: int,
    blocks: int,
    norm: str = "instance",
    channels: tuple[int, int] = (3, 3),
    *,
    levels: int = 2,
    blur: bool = False,
    up: str = "transposed",
    **block: object,
) -> list[nn.Module]:
    """The modules of a ResNet generator. ``block``: padding, dropout, container and bias of its blocks."""
    block = {"padding": "reflect", "dropout": False, "container": "conv_block"} | block
    bias = bool(block.setdefault("bias", norm in ("instance", "affine")))

    def with_norm(convolution: list[nn.Module], width: int) -> list[nn.Module]:
        return [*convolution, NORMS[norm](width), nn.ReLU(True)]

    steps = [nn.ReflectionPad2d(3), *with_norm([nn.Conv2d(channels[0], ngf, 7, bias=bias)], ngf)]
    for level in range(levels):
        read, width = ngf * 2**level, ngf * 2 ** (level + 1)
        steps += with_norm([nn.Conv2d(read, width, 3, 1 if blur else 2, 1, bias=bias)], width)
        steps += [Blur(width)] if blur else []
    steps += [Block(ngf * 2**levels, norm, **block) for _ in range(blocks)]
    for level in reversed(range(levels)):
        width = ngf * 2**level
        steps += with_norm(way_up(up, 2 * width, width, bias), width)
    return [*steps, nn.ReflectionPad2d(3), nn.Conv2d(ngf, channels[1], 7), nn.Tanh()]


class Resnet(nn.Module):
    """A generator that is one Sequential; the arguments are those of :func:`modules`."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__()
        self.model = nn.Sequential(*modules(*arguments, **options))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class LocalEnhancer(nn.Module):
    """pix2pixHD's generator of two or more scales; every convolution has a bias."""

    def __init__(self, ngf: int, norm: str, channels: tuple[int, int], enhancers: int, levels: int, blocks: int):
        super().__init__()
        coarse = modules(ngf * 2**enhancers, blocks, norm, channels, levels=levels, bias=True)
        self.model = nn.Sequential(*coarse[:-3])
        for number in range(1, enhancers + 1):
            width = ngf * 2 ** (enhancers - number)
            # A generator of one level, taken apart before its blocks and, but for the finest, without its last layer.
            own = modules(width, blocks, norm, (channels[0], channels[1]), levels=1, bias=True)
            setattr(self, f"model{number}_1", nn.Sequential(*own[:7]))
            setattr(self, f"model{number}_2", nn.Sequential(*(own[7:] if number == enhancers else own[7:-3])))
        self.downsample = nn.AvgPool2d(3, stride=2, padding=[1, 1], count_include_pad=False)
        self.enhancers = enhancers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = [x]
        for _ in range(self.enhancers):
            images.append(self.downsample(images[-1]))
        y = self.model(images.pop())
        for number in range(1, self.enhancers + 1):
            y = getattr(self, f"model{number}_2")(getattr(self, f"model{number}_1")(images.pop()) + y)
        return y


class GanUnet(nn.Module):
    """PyTorch-GAN's U-Net; its own has 8 levels."""

    def __init__(self, widths: list[int], channels: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        self.depth = len(widths)
        for level, (read, width) in enumerate(zip([channels[0], *widths], widths, strict=False), 1):
            norm = [nn.InstanceNorm2d(width)] if 1 < level < self.depth else []
            down = [nn.Conv2d(read, width, 4, 2, 1, bias=False), *norm, nn.LeakyReLU(0.2), nn.Dropout(0.5)]
            self.add_module(f"down{level}", self.named(down))
        read = widths[-1]
        for step, width in enumerate(reversed(widths[:-1]), 1):
            up = [nn.ConvTranspose2d(read, width, 4, 2, 1, bias=False), nn.InstanceNorm2d(width), nn.ReLU(True)]
            self.add_module(f"up{step}", self.named(up))
            read = 2 * width
        self.final = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.ZeroPad2d((1, 0, 1, 0)),
            nn.Conv2d(read, channels[1], 4, padding=1),
            nn.Tanh(),
        )

    @staticmethod
    def named(steps: list[nn.Module]) -> nn.Module:
        holder = nn.Module()
        holder.model = nn.Sequential(*steps)
        return holder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in range(1, self.depth + 1):
            x = getattr(self, f"down{level}").model(x)
            skips.append(x)
        skips.pop()
        for step in range(1, self.depth):
            x = torch.cat([getattr(self, f"up{step}").model(x), skips.pop()], 1)
        return self.final(x)


class Padded(nn.Module):
    """A convolution behind a reflection, as fast style transfer names it."""

    def __init__(self, read: int, width: int, kernel: int, stride: int = 1, enlarge: int = 1) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.reflection_pad = nn.ReflectionPad2d(kernel // 2)
        self.conv2d = nn.Conv2d(read, width, kernel, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.enlarge > 1:
            x = functional.interpolate(x, scale_factor=float(self.enlarge), mode="nearest")
        return self.conv2d(self.reflection_pad(x))


class StyleBlock(nn.Module):
    """A residual block of fast style transfer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.in1 = Padded(width, width, 3), nn.InstanceNorm2d(width, affine=True)
        self.conv2, self.in2 = Padded(width, width, 3), nn.InstanceNorm2d(width, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.in2(self.conv2(torch.relu(self.in1(self.conv1(x)))))


class TransformerNet(nn.Module):
    """The generator of fast style transfer: from 0 to 255 to numbers that are clamped to 0 to 255."""

    def __init__(self, ngf: int, blocks: int = 5) -> None:
        super().__init__()
        a, b, c = ngf, 2 * ngf, 4 * ngf
        self.conv1, self.in1 = Padded(3, a, 9), nn.InstanceNorm2d(a, affine=True)
        self.conv2, self.in2 = Padded(a, b, 3, 2), nn.InstanceNorm2d(b, affine=True)
        self.conv3, self.in3 = Padded(b, c, 3, 2), nn.InstanceNorm2d(c, affine=True)
        for block in range(1, blocks + 1):
            self.add_module(f"res{block}", StyleBlock(c))
        self.deconv1, self.in4 = Padded(c, b, 3, 1, 2), nn.InstanceNorm2d(b, affine=True)
        self.deconv2, self.in5 = Padded(b, a, 3, 1, 2), nn.InstanceNorm2d(a, affine=True)
        self.deconv3 = Padded(a, 3, 9)
        self.blocks = blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in (1, 2, 3):
            x = torch.relu(getattr(self, f"in{number}")(getattr(self, f"conv{number}")(x)))
        for block in range(1, self.blocks + 1):
            x = getattr(self, f"res{block}")(x)
        for number in (1, 2):
            x = torch.relu(getattr(self, f"in{number + 3}")(getattr(self, f"deconv{number}")(x)))
        return self.deconv3(x)
