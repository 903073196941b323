"""Convolutions for the CPU. Compiled once per instruction set, as _cpu_avx512, _cpu_avx2 and _cpu_portable.

How a 4x4 stride-2 convolution, or its transpose, becomes matrix multiplication:

- The *base grid* has the output's size for a convolution, the input's for a transposed one. A transposed convolution
  is four sub-convolutions of 2x2 taps, one for each parity (r, s) of the output's row and column: no inserted zeros.
- Every base pixel reads a *patch* of its input: 4x4 pixels, or 3x3 of which each parity uses four.
- A *block* of the base grid is one thread's work: it reads the block's input once, normalised, activated, joined
  and padded (`read_row`), into its own scratch, where neighbouring patches overlap; then the micro-kernels of
  _simd.h run over it, *panel* (NR filters) by panel. Small maps are read patch by patch into one matrix instead, so
  that the rows of all images fill the micro-kernel and each weight is read once.

Norms are gathered when a layer is computed, and applied when the next one reads it.
"""

from cython.parallel cimport prange, threadid
from libc.math cimport sqrt
from libc.string cimport memcpy, memset

import numpy as np

cdef extern from "_simd.h" nogil:
    ctypedef float vec  # VL floats; to Cython a float, on which it emits only + - *
    ctypedef void (*micro_kernel)(const float*, long, const long*, long, long, const float*, const float*, long,
                                  float*, long) noexcept nogil
    const int VL, NR, MR_MAX
    const long OPENMP_VERSION
    const char* ISA_NAME
    const char* COMPILER
    vec splat(float x)
    vec larger(vec a, vec b)
    micro_kernel kernel_for(long rows, long vectors)
    const char* processor_isa()
    float multiply_add(long rounds)
    float first_lane(vec v)
    const float* ZEROS

cdef enum:
    MAX_SOURCES = 4
    MAX_TAPS = 16
    PANEL_BYTES = 256 * 1024    # of a panel's weights that are used before the next taps are begun
    BLOCK_BYTES = 512 * 1024    # of a block's input, so that it stays in the second-level cache
    BLOCK_ROWS = 16             # at most, of the base grid
    BLOCK_COLUMNS = 64          # at most
    BLOCK_PIXELS = 64           # blocks smaller than this don't use their weights often enough
    PATCHES_BELOW = 8           # base grids narrower than this are read as patches
    SKEW = 16                   # floats added to a pixel, so that rows of A don't compete for one cache set

cdef const float[::1] BYTE_VALUES = np.arange(256, dtype=np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


def build_facts() -> dict:
    """What this extension was built with, and the best instruction set of the processor that it runs on."""
    return {
        "isa": ISA_NAME.decode(),
        "processor": processor_isa().decode(),
        "compiler": COMPILER.decode(),
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


include "_cpu_operands.pxi"
include "_cpu_gemm.pxi"


cdef enum Way:
    BY_BLOCK    # each thread reads a block and computes all of its filters
    BY_PANEL    # all read all images, then each thread computes some filters of many blocks
    BY_PATCH    # the same, with the patches of all images as one matrix


cdef class Convolution:
    """A 4x4 stride-2 convolution or transposed convolution with its weights packed; `run` computes it for a batch.

    kernel is (4,4,in,out), or (4,4,out,in) if transposed; `channels` are those of each map that the layer reads, in
    order. bias (out) or None; gamma and beta (out) or None; eps None for a layer without a norm. `picture`: the layer
    reads the picture itself.
    """
    cdef readonly bint transposed, picture, norm
    cdef readonly long depth, filters, parities, panels, taps
    cdef float[::1] weights, bias, gamma
    cdef readonly float[::1] shift
    cdef float eps

    def __init__(self, const float[:, :, :, ::1] kernel, bint transposed, channels, bias, gamma, beta, eps,
                 bint picture, long threads):
        cdef long filters = kernel.shape[2] if transposed else kernel.shape[3]
        self.transposed, self.picture, self.norm, self.eps = transposed, picture, eps is not None, eps or 0.0
        self.filters = padded(filters)
        self.parities, self.taps = (4, 4) if transposed else (1, 16)
        self.panels = (self.filters + NR - 1) // NR
        where = joined_channels(channels, picture)
        self.depth = len(where)
        self.weights = aligned(self.parities * self.panels * self.taps * self.depth * NR)
        self.bias = widened(bias, self.panels * NR, 0.0)
        self.gamma = widened(gamma, self.filters, 1.0)
        self.shift = widened(beta, self.filters, 0.0)
        pack(kernel, transposed, where, self.panels, self.weights, threads)

    def scratch(self, long n, long h, long w, long threads) -> int:
        """Floats of scratch that `run` needs for n inputs of h x w."""
        cdef Geometry g = self.lay_out(n, h, w)
        way = self.way(&g, threads)
        if way == BY_PATCH:
            work = n * g.grid_h * g.grid_w * (self.patch_floats(&g) + self.parities * self.filters)
        elif way == BY_PANEL:
            work = n * self.input_floats(&g, g.grid_h, g.grid_w)
        else:
            work = threads * self.input_floats(&g, g.rows, g.columns)
        return self.partial_floats(&g) + work

    def run(self, sources, Map target, float[::1] scratch, long threads):
        """Compute the layer into `target` without holding the GIL. sources: a picture, or pairs (Map, slope)."""
        cdef Operand operand
        cdef Geometry g
        cdef float* work
        cdef float* out = &target.raw[0, 0, 0, 0]
        cdef long image, parts
        cdef int way
        read_sources(sources, self.picture, &operand)
        operand.pixel = self.depth + (0 if self.picture else SKEW)
        g = self.lay_out(target.raw.shape[0], operand.h, operand.w)
        work = &scratch[0] + self.partial_floats(&g)
        way = self.way(&g, threads)
        with nogil:
            if way == BY_PATCH:
                self.run_patches(&g, &operand, out, work, &scratch[0], threads)
                parts = 1
            else:
                if way == BY_PANEL:
                    self.run_panels(&g, &operand, out, work, &scratch[0], threads)
                else:
                    self.run_blocks(&g, &operand, out, work, &scratch[0], threads)
                parts = g.down * g.across * g.parities
            if self.norm:
                for image in prange(g.n, num_threads=threads, schedule="static"):
                    finish_norm(&scratch[0], &g, parts, &self.gamma[0], self.eps, self.filters, image,
                                &target.mean[0, 0], &target.scale[0, 0])

    cdef Geometry lay_out(self, long n, long h, long w) noexcept nogil:
        """The layer at one size; `line` and `taps` are left to whoever decides where the input is read to."""
        cdef Geometry g
        g.n, g.h, g.w, g.parities = n, h, w, self.parities
        if self.transposed:
            g.stride, g.patch, g.grid_h, g.grid_w, g.out_h, g.out_w = 1, 3, h, w, 2 * h, 2 * w
        else:
            g.stride, g.patch, g.grid_h, g.grid_w, g.out_h, g.out_w = 2, 4, h // 2, w // 2, h // 2, w // 2
        g.pixel = self.depth + (0 if self.picture else SKEW)
        g.across = (g.grid_w + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
        g.columns = (g.grid_w + g.across - 1) // g.across
        g.rows = BLOCK_ROWS
        while g.rows > 1 and (4 * g.rows > g.grid_h or 4 * self.input_floats(&g, g.rows, g.columns) > BLOCK_BYTES):
            g.rows = g.rows // 2
        g.down = (g.grid_h + g.rows - 1) // g.rows
        return g

    cdef int way(self, const Geometry* g, long threads) noexcept nogil:
        """How the work is divided among threads. No way changes a bit of the result."""
        if g.grid_w < PATCHES_BELOW:
            return BY_PATCH
        if g.n * g.down * g.across < 2 * threads or g.rows * g.columns < BLOCK_PIXELS:
            return BY_PANEL
        return BY_BLOCK

    cdef long input_floats(self, const Geometry* g, long rows, long columns) noexcept nogil:
        """Floats of the input that rows x columns of the base grid read."""
        cdef long margin = g.patch - g.stride
        return (g.stride * rows + margin) * (g.stride * columns + margin) * g.pixel

    cdef long patch_floats(self, const Geometry* g) noexcept nogil:
        return g.patch * g.patch * g.pixel + SKEW

    cdef long partial_floats(self, const Geometry* g) noexcept nogil:
        return g.n * g.down * g.across * g.parities * 2 * self.filters

    cdef void set_taps(self, Geometry* g) noexcept nogil:
        set_taps(g, self.depth * (4 if self.picture else 1), self.picture)

    cdef const float* panel_weights(self, long parity, long panel) noexcept nogil:
        return &self.weights[(parity * self.panels + panel) * self.taps * self.depth * NR]

    cdef void run_blocks(self, Geometry* g, const Operand* operand, float* out, float* work, float* partial,
                         long threads) noexcept nogil:
        cdef long margin = g.patch - g.stride, blocks = g.down * g.across, item
        g.line = (g.stride * g.columns + margin) * g.pixel
        self.set_taps(g)
        for item in prange(g.n * blocks, num_threads=threads, schedule="dynamic"):
            self.run_block(g, operand, item // blocks, item % blocks, out,
                           work + threadid() * self.input_floats(g, g.rows, g.columns),
                           partial + item * g.parities * 2 * self.filters)

    cdef void run_block(self, const Geometry* g, const Operand* operand, long image, long block, float* out, float* a,
                        float* partial) noexcept nogil:
        """All filters of one block of one image."""
        cdef long top = block // g.across * g.rows * g.stride - 1, left = block % g.across * g.columns * g.stride - 1
        cdef long height = g.stride * g.rows + g.patch - g.stride, y, parity, panel, first
        for y in range(height):
            read_row(operand, image, top + y, left, left + g.line // g.pixel, a + y * g.line)
        for parity in range(g.parities):
            for panel in range(self.panels):
                first = 0
                while first < g.count:
                    multiply_block(g, a, block, parity, panel, first, min(first + g.per_pass, g.count),
                                   self.panel_weights(parity, panel), &self.bias[0],
                                   out + image * g.out_h * g.out_w * self.filters, self.filters,
                                   partial + parity * 2 * self.filters)
                    first = first + g.per_pass

    cdef void run_panels(self, Geometry* g, const Operand* operand, float* out, float* work, float* partial,
                         long threads) noexcept nogil:
        cdef long margin = g.patch - g.stride, height = g.stride * g.grid_h + margin, items = g.n * g.down * g.across
        cdef long tasks = g.parities * self.panels, item, groups
        g.line = (g.stride * g.grid_w + margin) * g.pixel
        self.set_taps(g)
        for item in prange(g.n * height, num_threads=threads, schedule="static"):
            read_row(operand, item // height, item % height - 1, -1, g.line // g.pixel - 1, work + item * g.line)
        groups = min(items, (4 * threads + tasks - 1) // tasks)
        for item in prange(tasks * groups, num_threads=threads, schedule="dynamic"):
            self.run_panel(g, item // groups // self.panels, item // groups % self.panels, items * (item % groups) // groups,
                           items * (item % groups + 1) // groups, work, out, partial)

    cdef void run_panel(self, const Geometry* g, long parity, long panel, long begin, long end, const float* a,
                        float* out, float* partial) noexcept nogil:
        """One panel of filters of the blocks begin..end of all images."""
        cdef long blocks = g.down * g.across, first = 0, item, image, block, row
        while first < g.count:
            for item in range(begin, end):
                image = item // blocks
                block = item % blocks
                row = image * (g.stride * g.grid_h + g.patch - g.stride) + block // g.across * g.rows * g.stride
                multiply_block(g, a + row * g.line + block % g.across * g.columns * g.stride * g.pixel, block, parity,
                               panel, first, min(first + g.per_pass, g.count), self.panel_weights(parity, panel),
                               &self.bias[0], out + image * g.out_h * g.out_w * self.filters, self.filters,
                               partial + (item * g.parities + parity) * 2 * self.filters)
            first = first + g.per_pass

    cdef void run_patches(self, Geometry* g, const Operand* operand, float* out, float* work, float* partial,
                          long threads) noexcept nogil:
        cdef long patches = g.n * g.grid_h * g.grid_w, size = self.patch_floats(g), tasks = g.parities * self.panels
        cdef long groups = min((patches + MR_MAX - 1) // MR_MAX, (4 * threads + tasks - 1) // tasks), item
        cdef float* product = work + patches * size
        g.line = g.patch * g.pixel
        self.set_taps(g)
        for item in prange(patches, num_threads=threads, schedule="static"):
            self.read_patch(g, operand, item, work + item * size)
        for item in prange(tasks * groups, num_threads=threads, schedule="dynamic"):
            self.multiply_patches(g, work, item // groups // self.panels, item // groups % self.panels,
                                  patches * (item % groups) // groups, patches * (item % groups + 1) // groups, product)
        for item in prange(g.n, num_threads=threads, schedule="static"):
            self.place_patches(g, item, product, out + item * g.out_h * g.out_w * self.filters,
                               partial + item * 2 * self.filters)

    cdef void read_patch(self, const Geometry* g, const Operand* operand, long item, float* a) noexcept nogil:
        cdef long x = item % g.grid_w * g.stride - 1, y = item // g.grid_w % g.grid_h * g.stride - 1, u
        for u in range(g.patch):
            read_row(operand, item // g.grid_w // g.grid_h, y + u, x, x + g.patch, a + u * g.line)

    cdef void multiply_patches(self, const Geometry* g, const float* a, long parity, long panel, long begin, long end,
                               float* product) noexcept nogil:
        """product[parity][patch][filter] = bias + patches @ weights for the patches begin..end."""
        cdef long size = self.patch_floats(g), first = 0, last
        cdef float* c = product + (parity * g.n * g.grid_h * g.grid_w + begin) * self.filters + panel * NR
        while first < g.count:
            last = min(first + g.per_pass, g.count)
            multiply_rows(g, a + begin * size, size, g.taps[parity], first, last, self.panel_weights(parity, panel),
                          <const float*>c if first else &self.bias[panel * NR], self.filters if first else 0, c, self.filters,
                          end - begin, min(2, (self.filters - panel * NR) // VL), 0, NULL, NULL)
            first = last

    cdef void place_patches(self, const Geometry* g, long image, const float* product, float* out,
                            float* partial) noexcept nogil:
        """Interleave the parities of one image, and gather its statistics row by row."""
        cdef long up = g.out_h // g.grid_h, y, x, patch, panel, vectors
        memset(partial, 0, 2 * self.filters * sizeof(float))
        for y in range(g.out_h):
            for x in range(g.out_w):
                patch = (y % up * up + x % up) * g.n + image
                patch = (patch * g.grid_h + y // up) * g.grid_w + x // up
                memcpy(out + (y * g.out_w + x) * self.filters, product + patch * self.filters,
                       self.filters * sizeof(float))
            for panel in range(self.panels):
                vectors = min(2, (self.filters - panel * NR) // VL)
                merge_tile(out + y * g.out_w * self.filters + panel * NR, self.filters, g.out_w, vectors, y * g.out_w,
                           partial + panel * NR, partial + self.filters + panel * NR)


include "_cpu_output.pxi"


def run_multiply_adds(long rounds, long threads) -> int:
    """Keep every thread busy with multiply-adds on registers; return how many floating-point operations they were."""
    cdef long thread
    cdef float total = 0
    for thread in prange(threads, nogil=True, num_threads=threads, schedule="static"):
        total += multiply_add(rounds)
    return threads * rounds * 12 * 2 * VL


def run_sum(const float[::1] x, long threads):
    """Sum of x, read once by all threads."""
    cdef long part, parts = 64 * threads, i
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
