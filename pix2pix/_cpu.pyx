"""Convolutions for the CPU, compiled once per instruction set as _cpu_avx512, _cpu_avx2 and _cpu_portable.

Each kernel turns a convolution, or a transposed one, into matrix products for the micro-kernels of simd.h. Names are
those of BLIS: a *micro-kernel* computes MR rows x NR columns; a *panel* is NR columns of the weights, stored together.

    maps.pxi        feature maps
    reading.pxi     rows of maps and images as layers read them, normalised, activated, joined and padded
    packing.pxi     weights as the kernels read them
    statistics.pxi  mean and variance of a layer's output
    epilogue.pxi    what follows complete sums
    gemm.pxi        the loop around the micro-kernels
    convolution.pxi one layer at one size: phases, patches, blocks; the class all algorithms derive from
    taps.pxi, direct.pxi    direct convolution
    winograd_transforms.pxi, winograd.pxi   Winograd's minimal filtering
    depthwise.pxi   fixed filters
    output.pxi      the last layer: few channels, tanh, conversion to 8 bits
    peaks.pxi       what the machine can do at most, measured

A *word* is 32 bits of an operand of the product: one float32 channel, two neighbouring channels in bfloat16, four as
8-bit integers or, for processors without VNNI, two as 8-bit integers in 16 bits. A float* may point to words of any
kind; lengths in memory count words. Sums are float32, those of integers are integers of 32 bits until they are
complete.

A layer writes raw sums, with AMX as float16, and gathers their mean and variance. The layer that reads them applies the
norm, so no pass over memory is spent on it.
"""

from cython.parallel cimport prange, threadid
from libc.math cimport sqrt
from libc.string cimport memcpy, memset

import numpy as np

from pix2pix.model.winograd import kernel_transform

cdef extern from "cpu/kernels/simd.h" nogil:
    ctypedef float vec  # VL floats; to Cython a float, on which it emits only + - * /
    ctypedef enum Operand:
        FLOAT32
        BFLOAT16
        INT8
        INT16
    ctypedef void (*micro_kernel)(const float*, long, const long*, long, long, const float*, const float*, long,
                                  float*, long) noexcept nogil
    const int VL, NR, MR_MAX
    const long OPENMP_VERSION
    const char* ISA_NAME
    const char* COMPILER
    vec splat(float x)
    vec fused(vec a, vec b, vec c)
    vec larger(vec a, vec b)
    micro_kernel kernel_for(long rows, long vectors, Operand operand)
    unsigned short to_bfloat16(float x)
    void store_bfloat16(unsigned short* to, vec x)
    void store_bytes(unsigned char* to, vec x)
    void store_shorts(unsigned short* to, vec x)
    vec integers_to_floats(vec sums)
    bint can_bfloat16()
    bint can_vnni()
    const char* processor_isa()
    float multiply_add(long rounds, Operand operand)
    float first_lane(vec v)
    void prefetch(const float* p)
    void prefetch_to_write(const float* p)
    void fetch(const float* begin, const float* end)
    const float* ZEROS

cdef extern from "cpu/kernels/amx.h" nogil:
    ctypedef struct TileRows:
        long rows
        const float* a
        const float* init
        float* c
    ctypedef struct TileSums:
        float[1] sums           # 2 * TILE_ROWS * NR
    const int TILE_ROWS, TILE_MULTIPLY_ADDS
    bint can_tiles()
    void shape_tiles(long upper, long lower, long depth)
    void multiply_tiles(const TileRows* upper, const TileRows* lower, long vectors, Operand operand, long a_stride,
                        const long* taps, long count, long depth, const float* b, long init_stride, long c_stride)
    void release_tiles()
    vec store_half(unsigned short* to, vec x)
    vec load_half(const unsigned short* from_)
    float multiply_add_tiles(long rounds, Operand operand)


def build_facts() -> dict:
    """What this extension was built with, and the best instruction set of the processor that it runs on."""
    return {
        "isa": ISA_NAME.decode(),
        "processor": processor_isa().decode(),
        "compiler": COMPILER.decode(),
        "bfloat16": "yes" if can_bfloat16() else "no",
        "vnni": "yes" if can_vnni() else "no",
        "tiles": "yes" if can_tiles() else "no",
        "openmp": str(OPENMP_VERSION) if OPENMP_VERSION else "no",
    }


def aligned(long size):
    """A float32 array of `size` zeros, aligned to 64 bytes."""
    buffer = np.zeros(size + 16, np.float32)
    start = -buffer.ctypes.data % 64 // 4
    return buffer[start : start + size]


def padded(long channels) -> int:
    """Channels that a pixel of that many takes in a map: the next multiple of VL."""
    return (channels + VL - 1) // VL * VL


include "cpu/kernels/maps.pxi"
include "cpu/kernels/reading.pxi"
include "cpu/kernels/packing.pxi"
include "cpu/kernels/statistics.pxi"
include "cpu/kernels/epilogue.pxi"
include "cpu/kernels/gemm.pxi"
include "cpu/kernels/convolution.pxi"
include "cpu/kernels/taps.pxi"
include "cpu/kernels/direct.pxi"
include "cpu/kernels/winograd_transforms.pxi"
include "cpu/kernels/winograd.pxi"
include "cpu/kernels/depthwise.pxi"
include "cpu/kernels/output.pxi"
include "cpu/kernels/peaks.pxi"
