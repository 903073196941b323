"""A generator's weights in the GPU's memory, and where its maps lie.

Each operation has a map of its own from which it reads, in packed words of the precision: the values of its sources,
activated, side by side, enlarged and padded as it reads them. So a value is written once for each of its readers. A
residual is read from a map that another operation has of the value, or from one of its own. Numbers of channels are
padded to multiples of 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model.generator import INPUT, Generator, Source, Weights
from ..model.lowering import Op, Program, lower
from ..model.sampling import Upsampling
from ..model.weights import fold
from ..plans.algorithms import Algorithm, multiplies_all_taps, multiplies_columns
from ..plans.plan import Plan
from .device import HOPPER, Device
from .filters import all_taps, columns_of_taps, flipped_taps, padded, phase_taps, plain_taps, reorder_columns
from .jit import SIMULATED
from .kernels.parameters import REFLECT, REPLICATE, ZEROS
from .kernels.simt_gemm import SIMT_TILES, SIMULATED_SIMT_TILE
from .ptx.fragments import CHUNK, column_order
from .ptx.packed_words import ELEMENTS, FLOAT16, FLOAT32, KINDS, LARGEST_FLOAT16, TF32, words_of

NARROW = 4  # channels of an image, which tensor cores read with less padding
MOST_TARGETS = 2  # maps that a product, or the norm after it, writes at once
FILLS = {"reflect": REFLECT, "replicate": REPLICATE}


@dataclass(frozen=True, slots=True)
class Use:
    """Where a value is written for one of its readers: `width` words from `first` of each pixel of its map."""

    map: str
    first: int
    width: int
    slope: np.float32


@dataclass(frozen=True, slots=True)
class MapOf:
    """What an operation reads: `words` of each pixel. Each pixel of `source` is repeated `factor` times along both
    axes, or values between pixels are computed; the border around them holds what `fill` says.

    The kernel reads `pairs` of pixels: then the border of zeros is the padding.
    """

    source: str
    words: int
    border: int = 0
    fill: int = ZEROS
    factor: int = 1
    upsampling: Upsampling = "nearest"
    pairs: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether its pixels are those of its source."""
        return not self.border and self.factor == 1

    @property
    def interpolates(self) -> bool:
        """Whether it holds values between pixels."""
        return self.factor > 1 and self.upsampling != "nearest"

    def size(self, h: int, w: int) -> tuple[int, int]:
        """(H, W) of the map of an h x w value."""
        return h * self.factor + 2 * self.border, w * self.factor + 2 * self.border


@dataclass(frozen=True, slots=True)
class PackedOp:
    """An operation on the GPU, how it is computed, and its weights in the GPU's memory."""

    op: Op
    algorithm: Algorithm
    weights: Any  # packed words, as the product's kernel reads them
    columns: int
    affine: Any  # (3, columns): bias, gamma, beta; 0, 1, 0 where there is none
    residual: Use | None  # where it is read
    is_padded: bool  # whether pad_map writes the readers' maps
    averaged: Any  # (kernel): taps, to scale, of a filter that leaves its padding out; else None


class DeviceWeights:
    """All operations that a plan places on the GPU, packed and uploaded. Engines of one device can share it.

    Raises ValueError for weights that are too large for float16, RuntimeError for a plan that takes another GPU.
    """

    def __init__(self, generator: Generator, weights: Weights, plan: Plan, device: Device) -> None:
        self.generator, weights = fold(generator, weights)
        self.program: Program = lower(self.generator)
        self.kind, self.device = KINDS[plan.precision], device
        self.channels = {INPUT: generator.in_channels, **{op.name: op.filters for op in self.program.ops}}
        served = plan.layers_on("cuda")
        ops = [op for op in self.program.ops if op.name in served]
        _check_capability(device, {name: plan.layers[name] for name in served})
        self.maps: dict[str, MapOf] = {}
        self.uses: dict[str, list[Use]] = {op.name: [] for op in ops}
        for op in ops:
            self._place(op)
        self.residuals = {op.name: self._residual(op.epilogue.residual) for op in ops if op.epilogue.residual}
        for op in ops:
            if not self.uses[op.name] and not op.makes_image:  # read elsewhere alone
                words = padded(op.filters) // ELEMENTS[self.kind]
                self.maps[f"value of {op.name}"] = MapOf(op.name, words)
                self.uses[op.name].append(Use(f"value of {op.name}", 0, words, np.float32(1)))
        self.ops: Mapping[str, PackedOp] = {op.name: self._pack(op, weights, plan.layers[op.name]) for op in ops}

    def _place(self, op: Op) -> None:
        """The map that an operation reads, and what is written there."""
        first = 0
        for source in op.sources:
            width = self._width(op, source.layer)
            uses = self.uses.setdefault(source.layer, [])
            uses.append(Use(op.name, first, width, np.float32(source.slope)))
            first += width
        s, pairs = op.sampling, self._reads_pairs(op)
        border = max(s.padding) if pairs or s.padding_mode in FILLS else 0
        fill = FILLS.get(s.padding_mode, ZEROS)
        self.maps[op.name] = MapOf(op.sources[0].layer, first, border, fill, s.upsample, s.upsample_mode, pairs)

    def _residual(self, source: Source) -> Use:
        """Where the residual is read: a map that holds it anyway, or one of its own."""
        uses = self.uses.setdefault(source.layer, [])
        for use in uses:
            if use.slope == np.float32(source.slope) and self.maps[use.map].factor == 1:
                return use
        words = padded(self.channels[source.layer]) // ELEMENTS[self.kind]
        uses.append(Use(f"residual of {source.layer} by {source.slope}", 0, words, np.float32(source.slope)))
        self.maps[uses[-1].map] = MapOf(source.layer, words)
        return uses[-1]

    def _width(self, op: Op, source: str) -> int:
        """Words of each pixel that an operation reads of one of its sources."""
        channels, per_word = self.channels[source], ELEMENTS[self.kind]
        fills_chunks = self._reads_pairs(op) or (self.kind == TF32 and op.sampling.upsample == 1)
        return (NARROW if source == INPUT and channels <= NARROW and fills_chunks else padded(channels)) // per_word

    def _reads_pairs(self, op: Op) -> bool:
        """Whether an operation reads pairs of an image's pixels, which fill a chunk.

        The image then has its padding as a border, so that pairs begin where chunks do.
        """
        s = op.sampling
        is_narrow = op.reads == (INPUT,) and self.channels[INPUT] <= NARROW and ELEMENTS[self.kind] == 2
        is_even = s.kernel % 2 == s.stride % 2 == 0 and min(s.padding) == max(s.padding) > 0
        return is_narrow and is_even and s.upsample == 1 and not s.transposed and s.counts_padding

    def _is_padded(self, op: Op) -> bool:
        """Whether the maps of a value's readers are more than the product, or the norm after it, can write."""
        e, uses = op.epilogue, self.uses[op.name]
        has_more = e.residual or e.inner_slope != 1 or (e.norm and e.norm.fixed)
        return bool(has_more or len(uses) > MOST_TARGETS or not all(self.maps[use.map].is_plain for use in uses))

    def _pack(self, op: Op, weights: Weights, algorithm: Algorithm) -> PackedOp:
        kernel = _dense_filter(op) if op.depthwise else weights[f"{op.name}.kernel"]
        if op.sampling.transposed:
            kernel = kernel.transpose(0, 1, 3, 2)
        per_word = ELEMENTS[self.kind]
        wide = np.zeros((*kernel.shape[:2], self.maps[op.name].words * per_word, op.filters), np.float32)
        row = first = 0
        for source in op.sources:
            count = self.channels[source.layer]
            wide[:, :, first : first + count] = kernel[:, :, row : row + count]
            row = row + count if op.join == "concat" else 0  # a sum of maps is read as maps side by side
            first += self._width(op, source.layer) * per_word
        if self.kind == FLOAT16 and (largest := np.abs(wide).max()) > LARGEST_FLOAT16:
            raise ValueError(f"{op.name} has a weight of {largest:g}, too large for float16: use bfloat16 or tf32")
        matrix, columns = self._matrix(wide, op, algorithm)
        affine = np.zeros((3, columns), np.float32)
        affine[1] = 1
        for row, part in enumerate(("bias", "gamma", "beta")):
            if (found := weights.get(f"{op.name}.{part}")) is not None:
                affine[row, : op.filters] = found
        words = self.device.upload(words_of(matrix, self.kind).view(np.float32))
        residual, is_padded = self.residuals.get(op.name), not op.makes_image and self._is_padded(op)
        averaged = None
        if not op.sampling.counts_padding:
            averaged = self.device.upload((_filter_taps(op) / sum(op.depthwise)).astype(np.float32))
        return PackedOp(op, algorithm, words, columns, self.device.upload(affine), residual, is_padded, averaged)

    def _matrix(self, kernel: np.ndarray, op: Op, algorithm: Algorithm) -> tuple[np.ndarray, int]:
        """W as the product's kernel reads it, and its number of columns (padded, but not in W's order)."""
        if algorithm.kind == "im2col":
            taps = (flipped_taps if op.sampling.transposed else plain_taps)(kernel)
        elif multiplies_all_taps(op):
            taps = all_taps(kernel)
        elif multiplies_columns(op):
            taps = columns_of_taps(kernel)
        else:
            taps = phase_taps(kernel, op.sampling)
        columns = padded(taps.shape[-1])
        if self.kind == FLOAT32:
            lanes = (SIMULATED_SIMT_TILE if SIMULATED else next(iter(SIMT_TILES.values()))).lx
            return reorder_columns(taps, column_order(columns, lanes, CHUNK)), columns
        return reorder_columns(taps, column_order(columns)).transpose(0, 2, 1), columns


def _dense_filter(op: Op) -> np.ndarray:
    """The kernel (kh, kw, channels, channels) of a filter that is applied to each channel by itself."""
    taps = _filter_taps(op)
    return np.multiply.outer(np.outer(taps, taps), np.eye(op.filters)).astype(np.float32)


def _filter_taps(op: Op) -> np.ndarray:
    """The taps of such a filter along either axis. Those of an average are over the largest, for their sums are divided
    anyway, and 1 is exact in every precision, 1/9 is not.
    """
    taps = np.array(op.depthwise)
    return taps if op.sampling.counts_padding else taps / np.abs(taps).max()


def _check_capability(device: Device, algorithms: Mapping[str, Algorithm]) -> None:
    """Raise RuntimeError if an algorithm needs another GPU."""
    if device.capability == HOPPER:
        return
    for name, algorithm in algorithms.items():
        if algorithm.kind == "hopper":
            there, needed = (".".join(map(str, version)) for version in (device.capability, HOPPER))
            raise RuntimeError(
                f"cuda:{device.index} ({device.name}) has compute capability {there}, and the plan's "
                f"{str(algorithm)!r} for {name} is for {needed}: use another plan"
            )
