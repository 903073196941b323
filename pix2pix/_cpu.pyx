"""Convolutions for the CPU. Compiled once per instruction set, as _cpu_avx512, _cpu_avx2 and _cpu_portable.

How a 4x4 stride-2 convolution, or its transpose, becomes matrix multiplication:

- The *base grid* has the output's size for a convolution, the input's for a transposed one. A transposed convolution
  is four sub-convolutions of 2x2 taps, one for each parity (r, s) of the output's row and column: no inserted zeros.
- Every base pixel reads a *patch* of its input: 4x4 pixels, or 3x3 of which each parity uses four.
- A *block* of the base grid is one thread's work: it reads the block's input once, normalised, activated, joined
  and padded (`read_row`), into its own scratch, where neighbouring patches overlap; then the micro-kernels of
  _simd.h run over it, *panel* (NR filters) by panel. Small maps are read patch by patch into one matrix instead, so
  that the rows of all images fill the micro-kernel and each weight is read once.
- Weights are packed as [parity][panel][tap][channel][NR].

Maps are NHWC float32 with channels padded to a multiple of VL by zeros. The value of a map is (raw - mean) * scale +
shift: norms are gathered when a layer is computed, and applied when the next one reads it. Mean and variance come
from partial results over tiles that are merged in a fixed order (Chan, Golub and LeVeque, 1983), so they don't
depend on how many threads there were, and don't cancel as sums of squares do.
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


# ---- feature maps ---------------------------------------------------------------------------------------------

cdef class Map:
    """The value of one layer for N images: raw (N,H,W,C padded), mean and scale (N,C padded), shift (C padded)."""
    cdef readonly float[:, :, :, ::1] raw
    cdef readonly float[:, ::1] mean
    cdef readonly float[:, ::1] scale
    cdef readonly float[::1] shift

    def __init__(self, float[:, :, :, ::1] raw, float[:, ::1] mean, float[:, ::1] scale, float[::1] shift):
        self.raw, self.mean, self.scale, self.shift = raw, mean, scale, shift


cdef struct Source:
    # one map that a layer reads, and the slope of the leaky ReLU that it applies
    const float* raw
    const float* mean
    const float* scale
    const float* shift
    long n, channels
    float slope


cdef struct Operand:
    # what a layer reads: some maps joined along the channels, or a picture (uint8 or float32)
    Source source[MAX_SOURCES]
    const unsigned char* bytes
    const float* floats
    const float* table      # the 256 values of an 8-bit picture
    long count, h, w
    long pixel              # floats from one pixel to the next where it is read to


cdef void normalise(const Source* s, long n, const float* x, float* out) noexcept nogil:
    """out[c] = leaky_relu((x[c] - mean[n,c]) * scale[n,c] + shift[c]): one pixel."""
    cdef const float* mean = s.mean + n * s.channels
    cdef const float* scale = s.scale + n * s.channels
    cdef const float* shift = s.shift
    cdef vec slope = splat(s.slope), v
    cdef long c, j
    for j in range(s.channels // VL):
        c = j * VL
        v = ((<const vec*>(x + c))[0] - (<const vec*>(mean + c))[0]) * (<const vec*>(scale + c))[0]
        v = v + (<const vec*>(shift + c))[0]
        (<vec*>(out + c))[0] = larger(v, v * slope)


cdef void read_row(const Operand* op, long n, long y, long x0, long x1, float* out) noexcept nogil:
    """out[(x - x0) * pixel + c] = the operand at (n, y, x) for x0 <= x < x1; zero outside the map."""
    cdef long lo = max(x0, 0), hi = min(x1, op.w), x, at, i, c
    cdef float* o
    cdef const Source* s
    if y < 0 or y >= op.h:
        memset(out, 0, (x1 - x0) * op.pixel * sizeof(float))
        return
    if lo > x0:
        memset(out, 0, (lo - x0) * op.pixel * sizeof(float))
    if x1 > hi:
        memset(out + (hi - x0) * op.pixel, 0, (x1 - hi) * op.pixel * sizeof(float))
    if op.count == 0:
        at = ((n * op.h + y) * op.w + lo) * op.pixel
        o = out + (lo - x0) * op.pixel
        if op.bytes != NULL:
            for i in range((hi - lo) * op.pixel):
                o[i] = op.table[op.bytes[at + i]]
        else:
            for i in range((hi - lo) * op.pixel):
                o[i] = op.floats[at + i]
        return
    for x in range(lo, hi):
        o = out + (x - x0) * op.pixel
        c = 0
        for i in range(op.count):
            s = &op.source[i]
            at = ((n if s.n > 1 else 0) * op.h + y) * op.w + x
            normalise(s, n if s.n > 1 else 0, s.raw + at * s.channels, o + c)
            c = c + s.channels


cdef int read_sources(sources, bint picture, Operand* op) except -1:
    """Describe a picture (uint8 or float32), or pairs (Map, slope), to the functions that read rows of it."""
    cdef Map m
    cdef const unsigned char[:, :, :, ::1] bytes
    cdef const float[:, :, :, ::1] floats
    cdef Source* s
    op.count, op.bytes, op.floats, op.table = 0, NULL, NULL, &BYTE_VALUES[0]
    if picture:
        op.h, op.w = sources.shape[1:3]
        if sources.dtype == np.uint8:
            bytes = sources
            op.bytes = &bytes[0, 0, 0, 0]
        else:
            floats = sources
            op.floats = &floats[0, 0, 0, 0]
        return 0
    for m, slope in sources:
        s = &op.source[op.count]
        s.raw, s.mean, s.scale, s.shift = &m.raw[0, 0, 0, 0], &m.mean[0, 0], &m.scale[0, 0], &m.shift[0]
        s.n, s.channels, s.slope = m.raw.shape[0], m.raw.shape[3], slope
        op.h, op.w, op.count = m.raw.shape[1], m.raw.shape[2], op.count + 1
    return 0


# ---- norm statistics ------------------------------------------------------------------------------------------

cdef void merge_tile(const float* c, long stride, long rows, long vectors, long before, float* mean,
                     float* m2) noexcept nogil:
    """Merge `rows` pixels of NR channels into the mean and the sum of squared deviations of `before` pixels."""
    cdef float weight = <float>rows / <float>(before + rows)
    cdef vec total, deviation, squares, tile_mean, delta, w = splat(weight), cross = splat(weight * <float>before)
    cdef long i, j
    for j in range(vectors):
        total = splat(0)
        for i in range(rows):
            total = total + (<const vec*>(c + i * stride + j * VL))[0]
        tile_mean = total * splat(1.0 / rows) if rows > 1 else total
        squares = splat(0)
        for i in range(rows):
            deviation = (<const vec*>(c + i * stride + j * VL))[0] - tile_mean
            squares = squares + deviation * deviation
        delta = tile_mean - (<vec*>(mean + j * VL))[0]
        (<vec*>(mean + j * VL))[0] = (<vec*>(mean + j * VL))[0] + delta * w
        (<vec*>(m2 + j * VL))[0] = (<vec*>(m2 + j * VL))[0] + squares + delta * delta * cross


# ---- geometry -------------------------------------------------------------------------------------------------

cdef struct Geometry:
    # one layer at one size; lengths in floats, the rest in pixels
    long n, h, w                # input
    long grid_h, grid_w         # base grid
    long out_h, out_w
    long stride, patch          # of the base grid over the input: 2 and 4, or 1 and 3 for a transposed convolution
    long parities
    long pixel, line            # from one pixel, and one row, to the next where the input is read to
    long rows, columns          # of a block
    long down, across           # blocks of an image
    long count                  # taps that meet the map at all
    long depth, per_pass        # channels of a tap; taps that are used before the next ones are begun
    long taps[4][2 * MAX_TAPS]  # for each parity, pairs: offset in the input, offset in the panel


cdef inline long block_pixels(const Geometry* g, long block) noexcept nogil:
    """Base pixels of a block: those at the lower and right edges may be smaller."""
    cdef long y = block // g.across * g.rows, x = block % g.across * g.columns
    return (min(y + g.rows, g.grid_h) - y) * (min(x + g.columns, g.grid_w) - x)


cdef inline bint meets(long offset, long stride, long grid, long size) noexcept nogil:
    """Whether a tap at that offset is inside a map of `size` for any of `grid` positions."""
    cdef long i
    for i in range(grid):
        if 0 <= i * stride + offset < size:
            return True
    return False


cdef void set_taps(Geometry* g, long depth, bint picture) noexcept nogil:
    """Fill the tables of taps for the line length of `g`. A picture's four taps of a row are one, 4 * C deep."""
    cdef long parity, r, s, u, v, across = 1 if picture else (4 if g.patch == 4 else 2), down = 4 if g.patch == 4 else 2
    g.depth = depth
    for parity in range(g.parities):
        r, s = parity // 2, parity % 2
        g.count = 0
        for u in range(down):
            for v in range(across):
                if meets(r + u - 1, g.stride, g.grid_h, g.h) and (picture or meets(s + v - 1, g.stride, g.grid_w, g.w)):
                    g.taps[parity][2 * g.count] = (r + u) * g.line + (s + v) * g.pixel
                    g.taps[parity][2 * g.count + 1] = (u * across + v) * depth * NR
                    g.count = g.count + 1
    g.per_pass = max(1, PANEL_BYTES // (4 * NR * depth))


# ---- matrix multiplication ------------------------------------------------------------------------------------

cdef void multiply_rows(const Geometry* g, const float* a, long a_stride, const long* taps, long first, long last,
                        const float* b, const float* init, long init_stride, float* c, long c_stride, long rows,
                        long vectors, long before, float* mean, float* m2) noexcept nogil:
    """Rows of C in pieces of at most MR_MAX, over the taps first..last; statistics too, if `mean` is given."""
    cdef long pieces = (rows + MR_MAX - 1) // MR_MAX, p, at, height
    for p in range(pieces):
        at = rows * p // pieces
        height = rows * (p + 1) // pieces - at
        kernel_for(height, vectors)(a + at * a_stride, a_stride, taps + 2 * first, last - first, g.depth, b,
                                    init + at * init_stride, init_stride, c + at * c_stride, c_stride)
        if mean != NULL:
            merge_tile(c + at * c_stride, c_stride, height, vectors, before + at, mean, m2)


cdef void multiply_block(const Geometry* g, const float* a, long block, long parity, long panel, long first, long last,
                         const float* weights, const float* bias, float* out, long filters,
                         float* partial) noexcept nogil:
    """One panel of one block of one image: out += patches @ weights over the taps first..last.

    a: the block's input; weights: the panel's; out: the image's (out_h, out_w, filters), begun with the bias and, with
    the last tap, summed up in partial (mean and m2, each of `filters`).
    """
    cdef long y0 = block // g.across * g.rows, y1 = min(y0 + g.rows, g.grid_h), y
    cdef long x0 = block % g.across * g.columns, x1 = min(x0 + g.columns, g.grid_w)
    cdef long up = g.out_h // g.grid_h, r = parity // 2, s = parity % 2
    cdef long vectors = min(2, (filters - panel * NR) // VL)
    cdef float* c
    cdef float* mean = partial + panel * NR if last == g.count else NULL
    cdef float* m2 = partial + filters + panel * NR
    if mean != NULL:
        memset(mean, 0, vectors * VL * sizeof(float))
        memset(m2, 0, vectors * VL * sizeof(float))
    for y in range(y0, y1):
        c = out + ((y * up + r) * g.out_w + x0 * up + s) * filters + panel * NR
        multiply_rows(g, a + (y - y0) * g.stride * g.line, g.stride * g.pixel, g.taps[parity], first, last, weights,
                      c if first else bias + panel * NR, up * filters if first else 0, c, up * filters, x1 - x0,
                      vectors, (y - y0) * (x1 - x0), mean, m2)


cdef void finish_norm(const float* partial, const Geometry* g, long parts, const float* gamma, float eps, long filters,
                      long n, float* mean, float* scale) noexcept nogil:
    """Image n's mean and gamma / sqrt(variance + eps) from `parts` partial results [part][mean, m2][filters]."""
    cdef long c, p, block
    cdef double pixels, total, mu, m2, delta
    cdef const float* part
    for c in range(filters):
        total, mu, m2 = 0.0, 0.0, 0.0
        for p in range(parts):
            part = partial + (n * parts + p) * 2 * filters
            pixels = g.out_h * g.out_w if parts == 1 else block_pixels(g, p // g.parities)
            delta = part[c] - mu
            mu = mu + delta * (pixels / (total + pixels))
            m2 = m2 + part[filters + c] + delta * delta * (total * pixels / (total + pixels))
            total = total + pixels
        mean[n * filters + c] = <float>mu
        scale[n * filters + c] = <float>(gamma[c] / sqrt(m2 / total + eps))


# ---- weights --------------------------------------------------------------------------------------------------

def joined_channels(channels, bint picture):
    """Which channel of the joined input each float of a pixel holds; -1 where it is padding."""
    where = []
    for count in channels:
        first = sum(c >= 0 for c in where)
        where += range(first, first + count)
        where += [-1] * (0 if picture else padded(count) - count)
    return np.array(where, np.int_)


def widened(values, long size, float fill):
    """values (or nothing) as float32, followed by zeros, or only `fill` where there are none."""
    wide = aligned(size)
    if values is None:
        wide[:] = fill
    else:
        wide[: len(values)] = values
    return wide


cdef void pack_tap(const float[:, :, :, ::1] kernel, bint transposed, long a, long b, const long[::1] where, long panel,
                   float* out) noexcept nogil:
    """out[k][j] = the weight from channel where[k] to filter panel * NR + j at (a, b); the rest stays zero."""
    cdef long filters = kernel.shape[2] if transposed else kernel.shape[3]
    cdef long width = min(<long>NR, filters - panel * NR), k, j
    for k in range(where.shape[0]):
        if where[k] < 0:
            continue
        for j in range(width):
            if transposed:
                out[k * NR + j] = kernel[a, b, panel * NR + j, where[k]]
            else:
                out[k * NR + j] = kernel[a, b, where[k], panel * NR + j]


cdef void pack(const float[:, :, :, ::1] kernel, bint transposed, const long[::1] where, long panels,
               float[::1] out, long threads):
    """Pack a kernel as [parity][panel][tap][channel][NR]; parity (r,s) uses (3-r-2u, 3-s-2v) as its tap (u,v)."""
    cdef long parities = 4 if transposed else 1, taps = 4 if transposed else 16, item, parity, tap, a, b
    cdef long size = where.shape[0] * NR
    for item in prange(parities * panels * taps, nogil=True, num_threads=threads, schedule="static"):
        tap = item % taps
        parity = item // taps // panels
        if transposed:
            a = 3 - parity // 2 - 2 * (tap // 2)
            b = 3 - parity % 2 - 2 * (tap % 2)
        else:
            a = tap // 4
            b = tap % 4
        pack_tap(kernel, transposed, a, b, where, item // taps % panels, &out[item * size])


def pack_columns(const float[:, :, :, ::1] kernel, const long[::1] where, long panels, float[::1] out):
    """Pack a (1,1,out,in) kernel as [panel][channel][NR]."""
    cdef long panel
    for panel in range(panels):
        pack_tap(kernel, True, 0, 0, where, panel, &out[panel * where.shape[0] * NR])


# ---- one layer ------------------------------------------------------------------------------------------------

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
                          c if first else &self.bias[panel * NR], self.filters if first else 0, c, self.filters,
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


# ---- the last layer -------------------------------------------------------------------------------------------

cdef inline float tanh_of(float x) noexcept nogil:
    """x P(x^2) / Q(x^2), fitted to tanh on [-9, 9] by weighted least squares to 2.1e-8 (4e-7 in float32)."""
    cdef float limit = 9.0, z, u, p, q, y
    z = x if x < limit else limit
    z = z if z > -limit else -limit
    u = z * z
    p = (((<float>1.3354655e-8 * u + <float>2.060909e-5) * u + <float>3.4955891e-3) * u + <float>0.13381027) * u
    q = (((<float>7.7765594e-7 * u + <float>3.2856362e-4) * u + <float>2.5876988e-2) * u + <float>0.46714342) * u
    y = z * (p + <float>1.0) / (q + <float>1.0)
    y = y if y < <float>1.0 else <float>1.0
    return y if y > <float>-1.0 else <float>-1.0


cdef class OutputConvolution:
    """The last layer: a transposed convolution to few channels, tanh, and the conversion to 8 bits.

    Too few filters to fill a panel, so all 16 taps of all filters are the columns of one product Y = X @ W, pixel by
    pixel, and every output pixel gathers its 2x2 taps from there. kernel (4,4,out,in), bias (out) or None.
    """
    cdef readonly long depth, channels, columns, panels
    cdef float[::1] weights, bias

    def __init__(self, const float[:, :, :, ::1] kernel, channels, bias):
        self.channels = kernel.shape[2]
        self.columns = padded(16 * self.channels)
        self.panels = (self.columns + NR - 1) // NR
        where = joined_channels(channels, False)
        self.depth = len(where)
        self.weights = aligned(self.panels * self.depth * NR)
        self.bias = widened(bias, self.channels, 0.0)
        flat = np.asarray(kernel).reshape(1, 1, 16 * self.channels, kernel.shape[3])
        pack_columns(flat, where, self.panels, self.weights)

    cdef long rows_of(self, long h) noexcept nogil:
        """Input rows of a strip."""
        cdef long rows = BLOCK_ROWS
        while rows > 1 and 4 * rows > h:
            rows = rows // 2
        return rows

    cdef long strip_floats(self, long w) noexcept nogil:
        return BLOCK_COLUMNS * (self.depth + SKEW) + 2 * w * self.columns + (2 * w + 2) * self.channels + 2 * VL

    def scratch(self, long n, long h, long w, long threads) -> int:
        """Floats of scratch that `run` needs for n inputs of h x w."""
        return threads * self.strip_floats(w)

    def run(self, sources, target, float output_scale, float[::1] scratch, long threads):
        """Compute the picture into `target` (N,2H,2W,C), float32 in [-1,1] or uint8, without holding the GIL."""
        cdef Operand operand
        cdef float[:, :, :, ::1] floats = target if target.dtype == np.float32 else None
        cdef unsigned char[:, :, :, ::1] bytes = target if target.dtype == np.uint8 else None
        cdef float* to_floats = &floats[0, 0, 0, 0] if floats is not None else NULL
        cdef unsigned char* to_bytes = &bytes[0, 0, 0, 0] if bytes is not None else NULL
        cdef long n = target.shape[0], item, rows, strips
        read_sources(sources, False, &operand)
        operand.pixel = self.depth + SKEW
        rows = self.rows_of(operand.h)
        strips = (operand.h + rows - 1) // rows
        with nogil:
            for item in prange(n * strips, num_threads=threads, schedule="dynamic"):
                self.run_strip(&operand, item // strips, item % strips * rows, rows,
                               &scratch[threadid() * self.strip_floats(operand.w)], to_floats, to_bytes, output_scale)

    cdef void run_strip(self, const Operand* operand, long image, long begin, long rows, float* work, float* to_floats,
                        unsigned char* to_bytes, float output_scale) noexcept nogil:
        """The output rows 2 * begin .. 2 * (begin + rows) of one image."""
        cdef long end = min(begin + rows, operand.h), width = operand.w * self.columns, i, r, y
        cdef float* products = work + BLOCK_COLUMNS * operand.pixel     # of two input rows, by turns
        cdef float* line = products + 2 * width
        cdef long size = 2 * operand.w * self.channels, at
        for i in range(begin - 1, end + 1):
            self.multiply_row(operand, image, i, work, products + (i & 1) * width)
            for r in range(1, -1, -1):  # rows 2i-1 and 2i are complete with input row i
                y = 2 * i - r
                if y < 2 * begin or y >= 2 * end:
                    continue
                self.gather(operand.w, products + ((i - 1) & 1) * width + (3 - r) * 4 * self.channels,
                            products + (i & 1) * width + (1 - r) * 4 * self.channels, line)
                at = (image * 2 * operand.h + y) * size
                if to_bytes != NULL:
                    tanh_to_bytes(line + self.channels, size, output_scale, to_bytes + at)
                else:
                    tanh_to_floats(line + self.channels, size, to_floats + at)

    cdef void multiply_row(self, const Operand* operand, long image, long y, float* a, float* out) noexcept nogil:
        """out[x][tap, channel] = input row y @ weights; zero outside the map."""
        cdef long x = 0, width, panel
        cdef Geometry g
        cdef long tap[2]
        if y < 0 or y >= operand.h:
            memset(out, 0, operand.w * self.columns * sizeof(float))
            return
        tap[0] = tap[1] = 0
        g.depth = self.depth
        while x < operand.w:
            width = min(<long>BLOCK_COLUMNS, operand.w - x)
            read_row(operand, image, y, x, x + width, a)
            for panel in range(self.panels):
                multiply_rows(&g, a, operand.pixel, tap, 0, 1, &self.weights[panel * self.depth * NR], ZEROS, 0,
                              out + x * self.columns + panel * NR, self.columns, width,
                              min(2, (self.columns - panel * NR) // VL), 0, NULL, NULL)
            x = x + width

    cdef void gather(self, long w, const float* above, const float* below, float* line) noexcept nogil:
        """line[2x + b] = bias + sum of above[x][b] and below[x][b], b < 4: an output row and a pixel at either end."""
        cdef long x, i, run = 4 * self.channels
        cdef float* to
        for x in range(2 * w + 2):
            for i in range(self.channels):
                line[x * self.channels + i] = self.bias[i]
        for x in range(w):
            to = line + 2 * x * self.channels
            for i in range(run):
                to[i] = to[i] + (above[x * self.columns + i] + below[x * self.columns + i])


cdef void tanh_to_floats(const float* x, long size, float* out) noexcept nogil:
    cdef long i
    for i in range(size):
        out[i] = tanh_of(x[i])


cdef void tanh_to_bytes(const float* x, long size, float scale, unsigned char* out) noexcept nogil:
    """trunc(clip((tanh(x) + 1) / 2 * scale, 0, 255))"""
    cdef long i
    cdef float y
    for i in range(size):
        y = (tanh_of(x[i]) + <float>1.0) * <float>0.5 * scale
        out[i] = <unsigned char><int>(y if y < <float>255.0 else <float>255.0)


# ---- what the machine can do ----------------------------------------------------------------------------------

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
