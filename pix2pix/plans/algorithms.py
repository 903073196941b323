"""Algorithms as values, and the registry: which of them the engine of each kind of hardware has, for which operations.

A row of the registry is one family of kernels. The rows of a kind of hardware are in order, the simplest first; a new
kernel is a new row, and everything that plans, engines, messages and benchmarks know of it is what the row says.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from ..model.generator import INPUT
from ..model.lowering import Op
from ..model.quantisation import MOST_PRODUCTS
from ..model.sampling import Sampling
from .precisions import PRECISIONS, Precision

SPLITS = (1, 2, 4, 8, 16, 32)
GPU_TAPS = 15  # along one axis, for which products have bits
IMAGE_COLUMNS = 64  # of the narrowest tile
SWIZZLE_WORDS = 32  # of 128 bytes: what one row of Hopper's tiles in shared memory holds
CONVOLUTION = Sampling(kernel=4, stride=2, padding=(1, 1, 1, 1))
CPU_KERNEL, CPU_SOURCES = 9, 4  # taps along one axis, and maps that a layer reads, at most
TRANSPOSED = Sampling(kernel=4, stride=2, padding=(1, 1, 1, 1), transposed=True)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How an operation is computed. ``str`` gives the name that plan files and ``--plan`` use, :func:`parse` reads it.

    ``m``: Winograd's F(m x m, r x r), where the operation gives r. ``shared``: all phases of a transposed convolution
    use one transformed input (in integers, always: see :func:`shares_tiles`). ``tile``: rows and columns (BM, BN) of a
    block's part of a product; ``splits`` blocks share the sum of each.
    """

    kind: str
    m: int = 0
    shared: bool = False
    tile: tuple[int, int] | None = None
    splits: int = 1

    @property
    def integers(self) -> bool:
        """Whether it multiplies 8-bit integers."""
        return self.kind in ("int8", "int8-winograd")

    def __str__(self) -> str:
        winograd = ("-shared" if self.shared else "") + str(self.m or "")
        tile = f"-{self.tile[0]}x{self.tile[1]}" if self.tile else ""
        return self.kind + winograd + tile + (f"-split{self.splits}" if self.splits > 1 else "")


def _tiled(kind: str, *tiles: tuple[int, int]) -> tuple[Algorithm, ...]:
    return tuple(Algorithm(kind, tile=tile, splits=splits) for splits in SPLITS for tile in tiles)


def _fits_cpu(op: Op) -> bool:
    """Whether the CPU's kernels can read an operation's input and store its result."""
    s = op.sampling
    covers = not s.transposed or (s.stride == 2 <= s.kernel and s.output_size(8, 8) == (16, 16))
    image = not op.reads_image or (len(op.sources) == 1 and s.upsample == 1 and not s.transposed)
    return s.kernel <= CPU_KERNEL and len(op.sources) <= CPU_SOURCES and covers and image


def _direct_on_cpu(op: Op, algorithm: Algorithm, precision: Precision) -> bool:
    """The last layer has a kernel of its own, for it has few filters."""
    s, epilogue = op.sampling, op.epilogue
    if not _fits_cpu(op):
        return False
    if op.makes_image:
        plain = not (epilogue.norm or epilogue.residual or op.reads_image or op.depthwise)
        return plain and (s.transposed or s.stride == 1) and epilogue.inner_slope == 1
    if op.depthwise and (epilogue.norm or epilogue.bias or s.transposed or epilogue.inner_slope != 1):
        return False
    return epilogue.activation == "none"


def _integers_on_cpu(op: Op, algorithm: Algorithm, precision: Precision) -> bool:
    """The layers that read and make images stay in floating point, and sums must fit 32 bits."""
    inside = not (op.reads_image or op.makes_image or op.depthwise)
    fits = op.sampling.kernel**2 * op.in_channels <= MOST_PRODUCTS
    return inside and fits and _direct_on_cpu(op, algorithm, precision)


def _winograd_integers_on_cpu(op: Op, algorithm: Algorithm, precision: Precision) -> bool:
    """Kernels that need not be widened. Their transformed sums have fewer products than those of direct convolution."""
    s = op.sampling
    plain = s in (CONVOLUTION, TRANSPOSED) or is_three_by_three(op)
    return plain and _integers_on_cpu(op, algorithm, precision)


def _winograd_on_cpu(op: Op, algorithm: Algorithm, precision: Precision) -> bool:
    """An image has too few channels for it; what is shared is the input of a transposed convolution's phases.

    Of 3x3 taps with stride 2, it makes 4x4.
    """
    s = op.sampling
    by_two = s in _by_two(s.transposed)
    inside = not (op.reads_image or op.makes_image or op.depthwise)
    return (
        _direct_on_cpu(op, algorithm, precision)
        and inside
        and (is_three_by_three(op) or by_two)
        and (s.transposed or not algorithm.shared)
    )


def shares_tiles(op: Op, algorithm: Algorithm) -> bool:
    """Whether all phases of an output use one transformed input; in integers those of transposed convolutions do."""
    return algorithm.shared or (algorithm.integers and op.sampling.transposed)


def is_three_by_three(op: Op) -> bool:
    """Whether an operation is a convolution of 3x3 taps and stride 1."""
    s = op.sampling
    return s.kernel == 3 and s.stride == 1 and not (s.transposed or op.depthwise)


def _by_two(transposed: bool) -> tuple[Sampling, ...]:
    """Geometries of 3x3 or 4x4 taps that halve a map, or double it: U-Nets', and those of PyTorch's and TensorFlow's
    ResNet generators."""
    return (
        TRANSPOSED if transposed else CONVOLUTION,
        Sampling(3, 2, (1, 1, 1, 1), "zeros", transposed, int(transposed)),
        Sampling(3, 2, (0, 0, 1, 1), "zeros", transposed),
    )


def _on_gpu(op: Op, algorithm: Algorithm, precision: Precision) -> bool:
    """All that implicit GEMMs and what follows them compute: see :func:`_gpu_samples` and :func:`_gpu_ends`."""
    return _gpu_samples(op.sampling) and _gpu_ends(op)


def _gpu_samples(s: Sampling) -> bool:
    """Whether a product's window can be a convolution's.

    The phases of a transposed convolution are products of the same size, two along each axis at most.
    """
    if s.transposed:
        extra = s.kernel + s.output_padding
        fills_phases = extra - s.padding[0] - s.padding[2] == extra - s.padding[1] - s.padding[3] == s.stride
        return fills_phases and s.stride <= 2 and s.stride <= s.kernel <= GPU_TAPS
    return s.kernel <= GPU_TAPS


def _gpu_ends(op: Op) -> bool:
    """Whether the kernels after a product do what follows a convolution."""
    e = op.epilogue
    if op.makes_image:
        return not (e.norm or e.residual or e.inner_slope != 1)
    return e.activation == "none" and not (e.residual and e.residual.layer == INPUT)


def multiplies_all_taps(op: Op) -> bool:
    """Whether a GPU's product for an image is that of each pixel with all taps, which are added up afterwards: a
    U-Net's last operation.
    """
    return op.makes_image and op.sampling == TRANSPOSED


def multiplies_columns(op: Op) -> bool:
    """Whether a GPU's product for an image sums each column of taps by itself, and the columns are added up afterwards.

    An image has few channels: so they fill a tile of the product that would be empty nearly. An average that leaves its
    padding out needs the sum of each pixel.
    """
    s = op.sampling
    is_plain = not s.transposed and s.stride == 1 and s.counts_padding
    return op.makes_image and is_plain and s.kernel * op.filters <= IMAGE_COLUMNS


def _tensor_cores(op: Op, algorithm: Algorithm, precision: Precision) -> bool:
    """The sum of products for an image is short: nothing is gained by splitting it."""
    return _on_gpu(op, algorithm, precision) and (algorithm.splits == 1 or not op.makes_image)


def _hopper(op: Op, algorithm: Algorithm, precision: Precision) -> bool:
    """Channels must fill whole rows of 128 bytes. A source that is read with a stride is one of pairs of pixels."""
    fills_rows = op.in_channels % (SWIZZLE_WORDS * precision.elements) == 0
    return fills_rows and op.sampling.step <= 2 and _tensor_cores(op, algorithm, precision)


@dataclass(frozen=True, slots=True)
class Implementation:
    """A row of the registry: algorithms of one family of kernels, and what they can be used for."""

    hardware: str
    precisions: tuple[str, ...]
    algorithms: tuple[Algorithm, ...]
    supports: Callable[[Op, Algorithm, Precision], bool]


_TENSOR_CORES = ("bfloat16", "float16", "tf32")
REGISTRY = (
    Implementation("cpu", ("float32", "bfloat16", "int8"), (Algorithm("direct"),), _direct_on_cpu),
    Implementation("cpu", ("int8",), (Algorithm("int8"),), _integers_on_cpu),
    Implementation(
        "cpu",
        ("int8",),
        (Algorithm("int8-winograd", 2), Algorithm("int8-winograd", 3)),
        _winograd_integers_on_cpu,
    ),
    Implementation(
        "cpu",
        ("float32", "bfloat16", "int8"),
        tuple(Algorithm("winograd", m, shared) for shared, m in itertools.product((False, True), (2, 3, 4))),
        _winograd_on_cpu,
    ),
    Implementation("cuda", ("float32",), (Algorithm("im2col"),), _on_gpu),
    Implementation("cuda", ("float32",), _tiled("implicit", (128, 128), (128, 64), (32, 128)), _on_gpu),
    Implementation("cuda", _TENSOR_CORES, _tiled("tensor", (128, 128), (128, 64), (64, 64)), _tensor_cores),
    Implementation("cuda", _TENSOR_CORES, _tiled("hopper", (128, 256), (128, 128), (128, 64)), _hopper),
)
# By kind of hardware, then by name, the simplest first.
ALGORITHMS: dict[str, dict[str, Algorithm]] = {
    hardware: {str(a): a for row in REGISTRY if row.hardware == hardware for a in row.algorithms}
    for hardware in ("cpu", "cuda")
}
_NAMES = {name: algorithm for algorithms in ALGORITHMS.values() for name, algorithm in algorithms.items()}


def parse(name: str) -> Algorithm:
    """The algorithm of a name. Raises ValueError if no hardware has one of that name."""
    if name not in _NAMES:
        raise ValueError(f"got the algorithm {name!r}, expected one of {', '.join(_NAMES)}")
    return _NAMES[name]


def algorithms(op: Op, hardware: str = "cpu", precision: str = "float32") -> tuple[Algorithm, ...]:
    """What the engine of that hardware can do for an operation in a precision, the simplest first."""
    wanted = PRECISIONS[precision]
    return tuple(
        algorithm
        for row in REGISTRY
        if row.hardware == hardware and precision in row.precisions
        for algorithm in row.algorithms
        if row.supports(op, algorithm, wanted)
    )


def supports(op: Op, hardware: str = "cpu", precision: str = "float32") -> bool:
    """Whether the engine of that hardware has a kernel for an operation."""
    return bool(algorithms(op, hardware, precision))


def unsupported(op: Op, hardware: str) -> str:
    """In words: an operation that the engine of that hardware has no kernel for, and what it has kernels for."""
    s, kind = op.sampling, "transposed convolution" if op.sampling.transposed else "convolution"
    traits = [f"{s.kernel}x{s.kernel} {kind}, stride {s.stride}, {s.padding_mode} padding {s.padding}"]
    traits += [f"{s.upsample_mode} upsampling by {s.upsample}"] if s.upsample > 1 else []
    traits += ["a fixed depthwise filter"] if op.depthwise else []
    traits += [f"a residual from {op.epilogue.residual.layer}"] if op.epilogue.residual else []
    traits += [f"{len(op.sources)} inputs joined by {op.join}"] if len(op.sources) > 1 else []
    traits += [f"activation {op.epilogue.activation}"] if op.epilogue.activation != "none" else []
    engine = {"cpu": "CPU", "cuda": "GPU"}[hardware]
    return f"the {engine} engine has no kernel for {op.name} ({'; '.join(traits)}): it takes {_TAKES[hardware]}"


_TAKES = {
    "cpu": f"kernels up to {CPU_KERNEL}x{CPU_KERNEL} over up to {CPU_SOURCES} maps, transposed ones that enlarge maps "
    "exactly 2 times, tanh at the end alone, and neither a norm nor a residual there",
    "cuda": f"kernels up to {GPU_TAPS}x{GPU_TAPS}, transposed ones that enlarge maps exactly 2 times, tanh at "
    "the end alone, and neither a norm nor a residual there",
}
