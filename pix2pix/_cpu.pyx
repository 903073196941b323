"""Convolutions for the CPU. Compiled once per instruction set, as _cpu_avx512, _cpu_avx2 and _cpu_portable.

How a 4x4 stride-2 convolution, or its transpose, becomes matrix multiplication:

- The *base grid* has the output's size for a convolution, the input's for a transposed one. A transposed convolution
  is four sub-convolutions of 2x2 taps, one for each parity (r, s) of the output's row and column: no inserted zeros.
- Every base pixel reads a *patch* of its input: 4x4 pixels, or 3x3 of which each parity uses four.
- A *block* of the base grid is one thread's work: it reads the block's input once, normalised, activated, joined
  and padded (`read_row`), into its own scratch, where neighbouring patches overlap; then the micro-kernels of
  cpu/kernels/simd.h run over it, *panel* (NR filters) by panel. Small maps are read patch by patch into one matrix instead, so
  that the rows of all images fill the micro-kernel and each weight is read once.

Norms are gathered when a layer is computed, and applied when the next one reads it.
"""

from cython.parallel cimport prange, threadid
from libc.math cimport sqrt
from libc.string cimport memcpy, memset

import numpy as np

cdef extern from "cpu/kernels/simd.h" nogil:
    ctypedef float vec  # VL floats; to Cython a float, on which it emits only + - *
    ctypedef void (*micro_kernel)(const float*, long, const long*, long, long, const float*, const float*, long,
                                  float*, long) noexcept nogil
    const int VL, NR, MR_MAX
    const long OPENMP_VERSION
    const char* ISA_NAME
    const char* COMPILER
    vec splat(float x)
    vec larger(vec a, vec b)
    micro_kernel kernel_for(long rows, long vectors, bint bfloat16)
    unsigned short to_bfloat16(float x)
    void store_bfloat16(unsigned short* to, vec x)
    bint can_bfloat16()
    const char* processor_isa()
    float multiply_add(long rounds, bint bfloat16)
    float first_lane(vec v)
    const float* ZEROS

cdef enum:
    MAX_SOURCES = 4
    MAX_TAPS = 16
    PACK_CHANNELS = 16          # that are packed at a time
    PANEL_BYTES = 256 * 1024    # of a panel's weights that are used before the next taps are begun
    BLOCK_BYTES = 512 * 1024    # of a block's input, so that it stays in the second-level cache
    BLOCK_ROWS = 16             # at most, of the base grid
    BLOCK_COLUMNS = 64          # at most
    BLOCK_PIXELS = 64           # blocks smaller than this don't use their weights often enough
    PATCHES_BELOW = 8           # base grids narrower than this are read as patches
    BLOCK_TILES = 16            # at most, of a row of a block
    TILES_BYTES = 768 * 1024    # of a block's transformed tiles and products, so that they stay there too
    ALONE_BYTES = 8 * 1024 * 1024   # of weights, at most, that each thread reads for every block
    ROUND_BYTES = 12 * 1024 * 1024  # of transformed tiles and products, at least, so that they stay in the third level
    SKEW = 16                   # floats added to a pixel, so that rows of A don't compete for one cache set

cdef const float[::1] BYTE_VALUES = np.arange(256, dtype=np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


def build_facts() -> dict:
    """What this extension was built with, and the best instruction set of the processor that it runs on."""
    return {
        "isa": ISA_NAME.decode(),
        "processor": processor_isa().decode(),
        "compiler": COMPILER.decode(),
        "bfloat16": "yes" if can_bfloat16() else "no",
        "openmp": str(OPENMP_VERSION) if OPENMP_VERSION else "no",
    }


def aligned(long size):
    """A float32 array of `size` zeros, aligned to 64 bytes."""
    buffer = np.zeros(size + 16, np.float32)
    start = -buffer.ctypes.data % 64 // 4
    return buffer[start : start + size]


def padded(long channels) -> int:
    """Floats that a map spends on a pixel of that many channels."""
    return (channels + VL - 1) // VL * VL


include "cpu/kernels/operands.pxi"
include "cpu/kernels/gemm.pxi"


cdef class Convolution:
    """A 4x4 stride-2 convolution or transposed convolution; subclasses pack its weights and compute it in their way.

    kernel is (4,4,in,out), or (4,4,out,in) if transposed; `channels` are those of each map that the layer reads, in
    order. bias (out) or None; gamma and beta (out) or None; eps None for a layer without a norm. `picture`: the layer
    reads the picture itself. `half`: its input is read as bfloat16, in pairs, each of which takes the place of a float;
    a pixel has `words` of one float or one pair.
    """
    cdef readonly bint transposed, picture, norm, half
    cdef readonly long depth, words, filters, parities
    cdef readonly float[::1] shift
    cdef float[::1] weights, bias, gamma
    cdef float eps
    cdef object where

    def __init__(self, const float[:, :, :, ::1] kernel, bint transposed, channels, bias, gamma, beta, eps,
                 bint half, bint picture):
        cdef long filters = kernel.shape[2] if transposed else kernel.shape[3]
        self.transposed, self.picture, self.norm, self.eps = transposed, picture, eps is not None, eps or 0.0
        self.filters, self.parities = padded(filters), 4 if transposed else 1
        self.where = joined_channels(channels, picture)
        self.depth = len(self.where)
        self.half = half
        self.words = self.depth // 2 if half else self.depth
        self.bias = widened(bias, self.filters + VL, 0.0)
        self.gamma = widened(gamma, self.filters, 1.0)
        self.shift = widened(beta, self.filters, 0.0)

    def run(self, sources, Map target, float[::1] scratch, long threads):
        """Compute the layer into `target` without holding the GIL. sources: a picture, or pairs (Map, slope)."""
        cdef Operand operand
        cdef Geometry g
        cdef float* work
        cdef long image, parts
        read_sources(sources, self.picture, &operand)
        operand.half = self.half
        operand.pixel = self.words + (0 if self.picture else SKEW)
        g = self.lay_out(target.raw.shape[0], operand.h, operand.w)
        work = &scratch[0] + self.partial_floats(&g)
        with nogil:
            parts = self.compute(&g, &operand, &target.raw[0, 0, 0, 0], work, &scratch[0], threads)
            if self.norm:
                for image in prange(g.n, num_threads=threads, schedule="static"):
                    finish_norm(&scratch[0], parts, &self.gamma[0], self.eps, self.filters, image,
                                &target.mean[0, 0], &target.scale[0, 0])

    cdef long compute(self, Geometry* g, const Operand* operand, float* out, float* work, float* partial,
                      long threads) noexcept nogil:
        """Fill `out` and the partial statistics; returns how many of the latter there are for an image."""
        return 0

    cdef Geometry lay_out(self, long n, long h, long w) noexcept nogil:
        """The layer at one size, in blocks whose input fits the second-level cache."""
        cdef Geometry g
        g.n, g.h, g.w, g.parities = n, h, w, self.parities
        if self.transposed:
            g.stride, g.patch, g.grid_h, g.grid_w, g.out_h, g.out_w = 1, 3, h, w, 2 * h, 2 * w
        else:
            g.stride, g.patch, g.grid_h, g.grid_w, g.out_h, g.out_w = 2, 4, h // 2, w // 2, h // 2, w // 2
        g.half = self.half
        g.pixel = self.words + (0 if self.picture else SKEW)
        g.across = (g.grid_w + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
        g.columns = (g.grid_w + g.across - 1) // g.across
        g.rows = BLOCK_ROWS
        while g.rows > 1 and (4 * g.rows > g.grid_h or 4 * self.input_floats(&g, g.rows, g.columns) > BLOCK_BYTES):
            g.rows = g.rows // 2
        g.down = (g.grid_h + g.rows - 1) // g.rows
        return g

    cdef long input_floats(self, const Geometry* g, long rows, long columns) noexcept nogil:
        """Floats of the input that rows x columns of the base grid read."""
        cdef long margin = g.patch - g.stride
        return (g.stride * rows + margin) * (g.stride * columns + margin) * g.pixel

    cdef long partial_floats(self, const Geometry* g) noexcept nogil:
        return g.n * g.down * g.across * g.parities * partial_size(self.filters)


include "cpu/kernels/direct.pxi"
include "cpu/kernels/winograd.pxi"
include "cpu/kernels/output.pxi"


def run_multiply_adds(long rounds, long threads, bint half=False) -> tuple[int, float]:
    """Keep all threads busy with multiply-adds on registers: (floating-point operations, something that needs them)."""
    cdef long _thread
    cdef float total = 0
    if half and not can_bfloat16():
        raise RuntimeError("this processor has no AVX512_BF16")
    for _thread in prange(threads, nogil=True, num_threads=threads, schedule="static"):
        total += multiply_add(rounds, half)
    return threads * rounds * 12 * 2 * VL * (2 if half else 1), total


def run_sum(const float[::1] x, long threads):
    """Sum of x, read once by all threads."""
    cdef long part, parts = 64 * threads
    cdef float total = 0
    for part in prange(parts, nogil=True, num_threads=threads, schedule="static"):
        total += sum_of(&x[0] + x.shape[0] * part // parts, x.shape[0] // parts)
    return total


cdef float sum_of(const float* x, long size) noexcept nogil:
    cdef vec a = splat(0), b = splat(0)
    cdef long i
    for i in range(size // (2 * VL)):
        a = a + (<const vec*>(x + 2 * i * VL))[0]
        b = b + (<const vec*>(x + (2 * i + 1) * VL))[0]
    return first_lane(a + b)
