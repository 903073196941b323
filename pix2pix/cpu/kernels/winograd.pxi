"""Winograd's minimal filtering with 2x2 taps, F(m x m, 2 x 2) for m = 2, 3, 4: m x m outputs of a 2x2 convolution with
(m + 1)^2 multiplications instead of 4 m^2 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
arXiv:1509.09308).

- A 4x4 stride-2 convolution is a 2x2 convolution of the four phases (p, q) of its input's rows and columns: K = 4 C.
- Each parity (r, s) of a transposed one is a 2x2 convolution of the input itself: K = C.
- *Shared*: with the tiles of the even parities shifted by a pixel, all four parities read the same window, so one
  transformed input serves them all, and their filters stand side by side: N = 4 filters.

y = A^T [(G k G^T) * (B^T d B)] A. Kernels are transformed when they are packed, in float64. For every one of the
products' positions xi, the tiles are the rows of one matrix V, and the product is M = V @ U:

    V [xi][tile][K]     U [xi][panel][K][NR]     M [xi][tile][N]

The polynomials' points are 0, 1 and infinity for m = 2; -1 too for m = 3; for m = 4, OUTER and INNER with either sign,
and infinity: the multiples of 1/8 with the least rounding errors, less than half of those of 0, 1, -1 and 2, and 1.4
times those of m = 2.
"""

cdef extern from *:
    """
    #define OUTER 1.25f
    #define INNER 0.375f
    """
    const float OUTER, INNER

cdef enum:
    MAX_POINTS = 5      # m + 1


def weighted(double p, double q):
    """Rows of G for the points p and -p, where the others are q, -q and infinity."""
    weight = 0.5 / (p * (p * p - q * q))
    return [weight, weight * p], [-weight, weight * p]


cdef double[3][5][2] KERNEL_TRANSFORM = [
    [[1, 0], [1, 1], [0, 1], [0, 0], [0, 0]],
    [[1, 0], [0.5, 0.5], [0.5, -0.5], [0, 1], [0, 0]],
    [*weighted(OUTER, INNER), *weighted(INNER, OUTER), [0, 1]],
]


cdef inline void transform_input(const long m, vec* d, const long s) noexcept nogil:
    """d[i * s], i <= m, becomes B^T d."""
    cdef vec a, b, c, e
    if m == 2:
        d[0] = d[0] - d[s]
        d[2 * s] = d[2 * s] - d[s]
    elif m == 3:
        a = d[0] - d[2 * s]
        b = d[s] + d[2 * s]
        c = d[2 * s] - d[s]
        e = d[3 * s] - d[s]
        d[0], d[s], d[2 * s], d[3 * s] = a, b, c, e
    else:
        a = d[3 * s] - splat(INNER * INNER) * d[s]
        b = splat(OUTER) * (d[2 * s] - splat(INNER * INNER) * d[0])
        c = d[3 * s] - splat(OUTER * OUTER) * d[s]
        e = splat(INNER) * (d[2 * s] - splat(OUTER * OUTER) * d[0])
        d[4 * s] = (d[4 * s] - splat(OUTER * OUTER + INNER * INNER) * d[2 * s]
                    + splat(OUTER * OUTER * INNER * INNER) * d[0])
        d[0], d[s], d[2 * s], d[3 * s] = a + b, a - b, c + e, c - e


cdef inline void transform_output(const long m, vec* d, const long s) noexcept nogil:
    """d[i * s], i <= m, becomes A^T d, i < m."""
    cdef vec p, q, t, u
    if m == 2:
        d[0] = d[0] + d[s]
        d[s] = d[s] + d[2 * s]
    elif m == 3:
        p = d[s] + d[2 * s]
        q = d[s] - d[2 * s]
        d[0] = d[0] + p
        d[s] = q
        d[2 * s] = p + d[3 * s]
    else:
        p = d[0] + d[s]
        q = splat(OUTER) * (d[0] - d[s])
        t = d[2 * s] + d[3 * s]
        u = splat(INNER) * (d[2 * s] - d[3 * s])
        d[0] = p + t
        d[s] = q + u
        d[2 * s] = splat(OUTER * OUTER) * p + splat(INNER * INNER) * t
        d[3 * s] = splat(OUTER * OUTER) * q + (splat(INNER * INNER) * u + d[4 * s])


cdef struct Tiling:
    # how one layer at one size is cut into tiles, and those into blocks
    long m                      # outputs of a tile, in each direction, of each parity
    long down, across           # tiles of an image
    long rows, columns          # tiles of a block
    long blocks_down, blocks_across
    long margin                 # input pixels of a block beyond stride * m * its tiles
    long line                   # floats of a row of a block's input
    long points                 # xi: products that are computed
    long k, n                   # columns of V and of M
    long k_stride               # floats from one tile to the next in V


cdef struct Block:
    long image, y0, y1, x0, x1  # the tiles y0 <= y < y1, x0 <= x < x1 of that image


cdef inline Block block_at(const Tiling* t, long index) noexcept nogil:
    cdef Block b
    cdef long within = index % (t.blocks_down * t.blocks_across)
    b.image = index // (t.blocks_down * t.blocks_across)
    b.y0 = within // t.blocks_across * t.rows
    b.x0 = within % t.blocks_across * t.columns
    b.y1, b.x1 = min(b.y0 + t.rows, t.down), min(b.x0 + t.columns, t.across)
    return b


cdef inline long first_tile(const Tiling* t, const Block* b) noexcept nogil:
    """How many tiles the blocks before this one have, over all images."""
    return b.image * t.down * t.across + b.y0 * t.across + (b.y1 - b.y0) * b.x0


cdef inline long v_point(const Tiling* t, long count) noexcept nogil:
    """Floats from one point to the next in the V of `count` tiles. SKEW: no two points in the same cache set."""
    return count * t.k_stride + SKEW


cdef inline long m_point(const Tiling* t, long count) noexcept nogil:
    """The same for M."""
    return count * t.n + SKEW


cdef inline long both_floats(const Tiling* t, long count) noexcept nogil:
    """Floats of V and M together."""
    return t.points * (v_point(t, count) + m_point(t, count))


cdef inline void read_tile(const Geometry* g, const Tiling* t, const long m, const float* x, long c, float* v,
                           long first, long point, const bint half) noexcept nogil:
    """V[:][one tile][first + c : first + c + VL] of one phase, or of a shared window: B^T d B.

    x: the window's first pixel; its others are `g.stride` pixels and rows apart. point: floats from xi to xi + 1.
    """
    cdef vec[MAX_POINTS * MAX_POINTS] d
    cdef long i, j
    for i in range(m + 1):
        for j in range(m + 1):
            d[i * (m + 1) + j] = (<const vec*>(x + i * g.stride * t.line + j * g.stride * g.pixel + c))[0]
        transform_input(m, d + i * (m + 1), 1)
    for j in range(m + 1):
        transform_input(m, d + j, m + 1)
    for i in range((m + 1) * (m + 1)):
        store(v + i * point, first + c, d[i], half)


cdef inline void read_parities(const Geometry* g, const Tiling* t, const long m, const float* x, long c, float* v,
                               long point, const bint half) noexcept nogil:
    """The same for the four parities of a transposed convolution: windows (r, s) pixels apart, from one reading."""
    cdef vec[(MAX_POINTS + 1) * (MAX_POINTS + 1)] e
    cdef vec[MAX_POINTS * (MAX_POINTS + 1)] f
    cdef vec[MAX_POINTS] d
    cdef long i, j, r, s
    for i in range(m + 2):
        for j in range(m + 2):
            e[i * (m + 2) + j] = (<const vec*>(x + i * t.line + j * g.pixel + c))[0]
    for r in range(2):
        for i in range((m + 1) * (m + 2)):
            f[i] = e[r * (m + 2) + i]
        for j in range(m + 2):
            transform_input(m, f + j, m + 2)
        for i in range(m + 1):
            for s in range(2):
                for j in range(m + 1):
                    d[j] = f[i * (m + 2) + s + j]
                transform_input(m, d, 1)
                for j in range(m + 1):
                    store(v + (((2 * r + s) * (m + 1) + i) * (m + 1) + j) * point, c, d[j], half)


cdef inline void write_tile(const Tiling* t, const long m, const float* products, long point, const float* bias,
                            float* out, long y, long x, long step, long h, long w, long filters) noexcept nogil:
    """out[y + step * i, x + step * j] = A^T products A + bias for VL filters, where that is inside h x w."""
    cdef vec[MAX_POINTS * MAX_POINTS] d
    cdef vec b = (<const vec*>bias)[0]
    cdef long i, j
    for i in range((m + 1) * (m + 1)):
        d[i] = (<const vec*>(products + i * point))[0]
    for i in range(m + 1):
        transform_output(m, d + i * (m + 1), 1)
    for j in range(m):
        transform_output(m, d + j, m + 1)
    for i in range(m):
        if not 0 <= y + step * i < h:
            continue
        for j in range(m):
            if 0 <= x + step * j < w:
                (<vec*>(out + ((y + step * i) * w + x + step * j) * filters))[0] = d[i * (m + 1) + j] + b


cdef void transform_kernel(const long m, const float* k, long down, long across, double* u) noexcept nogil:
    """u[x][y][j] = (G k G^T)[x,y], x, y <= m, of the 2x2 taps k, k + across, k + down, k + down + across; j < VL."""
    cdef double[2][2] g
    cdef double t0, t1
    cdef long x, y, j
    for x in range(m + 1):
        for y in range(m + 1):
            g[0] = KERNEL_TRANSFORM[m - 2][x]
            g[1] = KERNEL_TRANSFORM[m - 2][y]
            for j in range(VL):
                t0 = g[0][0] * k[j] + g[0][1] * k[down + j]
                t1 = g[0][0] * k[across + j] + g[0][1] * k[down + across + j]
                u[(x * (m + 1) + y) * VL + j] = g[1][0] * t0 + g[1][1] * t1


cdef class WinogradConvolution(Convolution):
    """A Convolution by F(m x m, 2 x 2). `shared`: see above, of transposed ones only. Weights: U.

    `half`: U and V are bfloat16, in pairs along K; the input and the transforms stay float32.
    """
    cdef long m, points, k, n, panels   # k: words of a row of V
    cdef bint shared, products_half

    def __init__(self, const float[:, :, :, ::1] kernel, bint transposed, channels, bias, gamma, beta, eps, bint half,
                 long m, bint shared, long threads):
        Convolution.__init__(self, kernel, transposed, channels, bias, gamma, beta, eps, False, False)
        self.m, self.shared, self.products_half = m, shared, half
        self.points = (m + 1) * (m + 1) * (1 if shared else self.parities)
        self.k = self.depth * (1 if transposed else 4) // (2 if half else 1)
        self.n = self.filters * (4 if shared else 1)
        self.panels = (self.n + NR - 1) // NR
        self.weights = aligned(self.points * self.panels * self.k * NR)
        self.pack(kernel, threads)

    cdef pack(self, const float[:, :, :, ::1] kernel, long threads):
        """Transform and pack the weights, VL columns and a few channels at a time."""
        cdef const long[::1] where = self.where
        cdef long groups = self.n // VL, steps = (self.depth + PACK_CHANNELS - 1) // PACK_CHANNELS, item
        for item in prange(groups * steps, nogil=True, num_threads=threads, schedule="static"):
            self.pack_part(kernel, where, item // steps * VL, item % steps * PACK_CHANNELS)

    cdef void pack_part(self, const float[:, :, :, ::1] kernel, const long[::1] where, long column,
                        long first) noexcept nogil:
        """VL columns of U, which are filters of one parity, and the rows of a few channels of all phases."""
        cdef float[16 * PACK_CHANNELS * VL] taps
        cdef long count = min(<long>PACK_CHANNELS, self.depth - first), k, r, s, point, tap = PACK_CHANNELS * VL
        gather_taps(kernel, self.transposed, where, first, count, column % self.filters, taps)
        for k in range(count):
            for r in range(2):
                for s in range(2):
                    if not self.transposed:     # (r, s): the phase, that is, the taps (r + 2u, s + 2v)
                        self.pack_row(taps + (4 * r + s) * tap + k * VL, 8 * tap, 2 * tap, 0,
                                      (2 * r + s) * self.depth + first + k, column)
                    elif not self.shared or column // self.filters == 2 * r + s:    # the parity: (3-r-2u, 3-s-2v)
                        point = 0 if self.shared else (2 * r + s) * (self.m + 1) * (self.m + 1)
                        self.pack_row(taps + (4 * (3 - r) + 3 - s) * tap + k * VL, -8 * tap, -2 * tap, point, first + k,
                                      column)

    cdef void pack_row(self, const float* k, long down, long across, long point, long row, long column) noexcept nogil:
        """VL columns of one row of U, at `point` and those that follow."""
        cdef double[MAX_POINTS * MAX_POINTS * VL] u
        cdef long i, j
        cdef float* out
        transform_kernel(self.m, k, down, across, u)
        for i in range((self.m + 1) * (self.m + 1)):
            out = &self.weights[((point + i) * self.panels + column // NR) * self.k * NR]
            for j in range(VL):
                set_weight(out, row, column % NR + j, <float>u[i * VL + j], self.products_half)

    cdef Tiling tile(self, const Geometry* g) noexcept nogil:
        """The tiles of one layer, in blocks whose V and M together fit the second-level cache."""
        cdef Tiling t
        cdef long bytes
        t.m, t.points, t.k, t.n, t.k_stride = self.m, self.points, self.k, self.n, self.k + SKEW
        t.down, t.across = (g.grid_h + t.m - 1) // t.m, (g.grid_w + t.m - 1) // t.m
        t.margin = g.patch - g.stride
        if self.shared:
            t.down, t.across = (2 * g.grid_h + 2 * t.m) // (2 * t.m), (2 * g.grid_w + 2 * t.m) // (2 * t.m)
            t.margin = 1
        bytes = 4 * t.points * (t.k_stride + t.n)
        t.columns = min(<long>BLOCK_TILES, t.across)
        t.blocks_across = (t.across + t.columns - 1) // t.columns
        t.columns = (t.across + t.blocks_across - 1) // t.blocks_across
        t.rows = min(max(1, TILES_BYTES // (bytes * t.columns)), t.down)
        t.blocks_down = (t.down + t.rows - 1) // t.rows
        t.line = (g.stride * t.m * t.columns + t.margin) * g.pixel
        return t

    cdef long input_of_block(self, const Geometry* g, const Tiling* t) noexcept nogil:
        return (g.stride * t.m * t.rows + t.margin) * t.line

    cdef bint alone(self, const Geometry* g, const Tiling* t, long threads) noexcept nogil:
        """Whether each thread takes blocks through all steps by itself, in its own cache, reading all weights anew."""
        return g.n * t.blocks_down * t.blocks_across >= 2 * threads and 4 * self.weights.shape[0] <= ALONE_BYTES

    cdef long tiles_at_once(self, const Geometry* g, const Tiling* t, long threads) noexcept nogil:
        """Tiles that threads take through the steps together: enough to make it worth reading all weights once."""
        cdef long enough = max(ROUND_BYTES // 4, self.weights.shape[0]) // (t.points * (t.k_stride + t.n))
        cdef long blocks = max(2 * threads, enough // (t.rows * t.columns))
        return t.rows * t.columns * min(blocks, g.n * t.blocks_down * t.blocks_across)

    def scratch(self, long n, long h, long w, long threads) -> int:
        """Floats of scratch that `run` needs for n inputs of h x w."""
        cdef Geometry g = self.lay_out(n, h, w)
        cdef Tiling t = self.tile(&g)
        if self.alone(&g, &t, threads):
            work = threads * both_floats(&t, t.rows * t.columns)
        else:
            work = both_floats(&t, self.tiles_at_once(&g, &t, threads))
        return self.partials(&g, &t) + work + threads * self.input_of_block(&g, &t)

    cdef long partials(self, const Geometry* g, const Tiling* t) noexcept nogil:
        return g.n * t.blocks_down * t.blocks_across * partial_size(self.filters)

    cdef long partial_floats(self, const Geometry* g) noexcept nogil:
        cdef Tiling t = self.tile(g)
        return self.partials(g, &t)

    cdef long compute(self, Geometry* g, const Operand* operand, float* out, float* work, float* partial,
                      long threads) noexcept nogil:
        cdef Tiling t = self.tile(g)
        cdef float* v = work + threads * self.input_of_block(g, &t)
        cdef long item
        if self.alone(g, &t, threads):
            for item in prange(g.n * t.blocks_down * t.blocks_across, num_threads=threads, schedule="dynamic"):
                self.run_block(g, &t, operand, item, work + threadid() * self.input_of_block(g, &t),
                               v + threadid() * both_floats(&t, t.rows * t.columns), out, partial)
        else:
            self.run_rounds(g, &t, operand, work, v, out, partial, threads)
        return t.blocks_down * t.blocks_across

    cdef void run_block(self, const Geometry* g, const Tiling* t, const Operand* operand, long index, float* a,
                        float* v, float* out, float* partial) noexcept nogil:
        """One block by one thread."""
        cdef Block b = block_at(t, index)
        cdef long begin = first_tile(t, &b), count = (b.y1 - b.y0) * (b.x1 - b.x0), item
        cdef float* products = v + t.points * v_point(t, count)
        self.read_block(g, t, operand, index, begin, count, a, v)
        for item in range(t.points * self.panels):
            self.multiply(t, item // self.panels, item % self.panels, count, v, products)
        self.write_block(g, t, index, begin, count, products, out, partial)

    cdef void run_rounds(self, const Geometry* g, const Tiling* t, const Operand* operand, float* a, float* v,
                         float* out, float* partial, long threads) noexcept nogil:
        """All threads together: read some blocks, multiply them, write them."""
        cdef long blocks = g.n * t.blocks_down * t.blocks_across, first = 0, last, item, count, begin
        cdef long step = self.tiles_at_once(g, t, threads) // (t.rows * t.columns)
        cdef float* products
        cdef Block b
        while first < blocks:
            last = min(first + step, blocks)
            b = block_at(t, first)
            begin = first_tile(t, &b)
            b = block_at(t, last - 1)
            count = first_tile(t, &b) + (b.y1 - b.y0) * (b.x1 - b.x0) - begin
            products = v + t.points * v_point(t, count)
            for item in prange(first, last, num_threads=threads, schedule="dynamic"):
                self.read_block(g, t, operand, item, begin, count, a + threadid() * self.input_of_block(g, t), v)
            for item in prange(t.points * self.panels, num_threads=threads, schedule="dynamic", chunksize=4):
                self.multiply(t, item // self.panels, item % self.panels, count, v, products)
            for item in prange(first, last, num_threads=threads, schedule="dynamic"):
                self.write_block(g, t, item, begin, count, products, out, partial)
            first = last

    cdef void read_block(self, const Geometry* g, const Tiling* t, const Operand* operand, long index, long begin,
                         long count, float* a, float* v) noexcept nogil:
        """The input of a block, then its tiles' rows of V."""
        cdef Block b = block_at(t, index)
        cdef long scale = g.stride * t.m, y, tile = first_tile(t, &b) - begin, point = v_point(t, count)
        for y in range(scale * (b.y1 - b.y0) + t.margin):
            read_row(operand, b.image, scale * b.y0 - 1 + y, scale * b.x0 - 1,
                     scale * b.x1 - 1 + t.margin, a + y * t.line)
        if t.m == 2:
            if self.products_half:
                self.read_tiles(g, t, &b, 2, True, a, v + tile * t.k_stride, point)
            else:
                self.read_tiles(g, t, &b, 2, False, a, v + tile * t.k_stride, point)
        elif t.m == 3:
            if self.products_half:
                self.read_tiles(g, t, &b, 3, True, a, v + tile * t.k_stride, point)
            else:
                self.read_tiles(g, t, &b, 3, False, a, v + tile * t.k_stride, point)
        elif self.products_half:
            self.read_tiles(g, t, &b, 4, True, a, v + tile * t.k_stride, point)
        else:
            self.read_tiles(g, t, &b, 4, False, a, v + tile * t.k_stride, point)

    cdef inline void read_tiles(self, const Geometry* g, const Tiling* t, const Block* b, const long m, const bint half,
                                const float* a, float* row, long point) noexcept nogil:
        """The rows of V of a block. Called with constants for m and half, so that the transforms lie in registers."""
        cdef long scale = g.stride * m, y, x, phase, c
        cdef const float* window
        for y in range(b.y1 - b.y0):
            for x in range(b.x1 - b.x0):
                window = a + scale * (y * t.line + x * g.pixel)
                if self.transposed and not self.shared:
                    for c in range(self.depth // VL):
                        read_parities(g, t, m, window, c * VL, row, point, half)
                else:
                    for phase in range(g.stride * g.stride):
                        for c in range(self.depth // VL):
                            read_tile(g, t, m, window + phase // 2 * t.line + phase % 2 * g.pixel, c * VL, row,
                                      phase * self.depth, point, half)
                row = row + t.k_stride

    cdef void multiply(self, const Tiling* t, long point, long panel, long count, const float* v,
                       float* products) noexcept nogil:
        """One panel of M[point] = V[point] @ U[point] for all tiles."""
        cdef Geometry g
        cdef long taps[2]
        cdef long per_pass = max(256, PANEL_BYTES // (4 * NR)), k = 0
        cdef const float* a = v + point * v_point(t, count)
        cdef const float* b = &self.weights[(point * self.panels + panel) * t.k * NR]
        cdef float* c = products + point * m_point(t, count) + panel * NR
        taps[0] = taps[1] = 0
        g.half = self.products_half
        while k < t.k:
            g.depth = min(per_pass, t.k - k)
            multiply_rows(&g, a + k, t.k_stride, taps, 0, 1, b + k * NR, <const float*>c if k else ZEROS,
                          t.n if k else 0, c, t.n, count, min(2, (t.n - panel * NR) // VL), 0, NULL, NULL)
            k = k + per_pass

    cdef void write_block(self, const Geometry* g, const Tiling* t, long index, long begin, long count,
                          const float* products, float* out, float* partial) noexcept nogil:
        """The outputs of a block's tiles, and its partial statistics."""
        cdef Block b = block_at(t, index)
        cdef long up = g.out_h // g.grid_h, y, x, parity, r, s, c, tile = first_tile(t, &b) - begin
        cdef long square = (t.m + 1) * (t.m + 1), point = m_point(t, count), panel
        cdef long top = up * t.m * b.y0 - self.shared, bottom = min(up * t.m * b.y1 - self.shared, g.out_h)
        cdef long left = up * t.m * b.x0 - self.shared, right = min(up * t.m * b.x1 - self.shared, g.out_w)
        cdef float* part = partial + index * partial_size(self.filters)
        cdef float* image = out + b.image * g.out_h * g.out_w * self.filters
        cdef const float* p
        for y in range(b.y0, b.y1):
            for x in range(b.x0, b.x1):
                for parity in range(g.parities):
                    r, s = parity // 2, parity % 2
                    if self.shared:
                        p = products + tile * t.n + parity * self.filters
                        r, s = -r, -s
                    else:
                        p = products + parity * square * point + tile * t.n
                    for c in range(self.filters // VL):
                        if t.m == 2:
                            write_tile(t, 2, p + c * VL, point, &self.bias[c * VL], image + c * VL, up * t.m * y + r,
                                       up * t.m * x + s, up, g.out_h, g.out_w, self.filters)
                        elif t.m == 3:
                            write_tile(t, 3, p + c * VL, point, &self.bias[c * VL], image + c * VL, up * t.m * y + r,
                                       up * t.m * x + s, up, g.out_h, g.out_w, self.filters)
                        else:
                            write_tile(t, 4, p + c * VL, point, &self.bias[c * VL], image + c * VL, up * t.m * y + r,
                                       up * t.m * x + s, up, g.out_h, g.out_w, self.filters)
                tile = tile + 1
        top, left = max(top, 0), max(left, 0)
        memset(part, 0, partial_size(self.filters) * sizeof(float))
        part[2 * self.filters] = (bottom - top) * (right - left)
        for y in range(top, bottom):
            for panel in range((self.filters + NR - 1) // NR):
                merge_tile(image + (y * g.out_w + left) * self.filters + panel * NR, self.filters, right - left,
                           min(2, (self.filters - panel * NR) // VL), (y - top) * (right - left),
                           part + panel * NR, part + self.filters + panel * NR)
