"""Matrix multiplication over taps: where the input lies (Geometry), the loops around the micro-kernels, and the norm
statistics gathered from each tile of the product while it is in the first-level cache.

Mean and variance come from partial results over tiles, merged in a fixed order (Chan, Golub and LeVeque, "Algorithms
for Computing the Sample Variance", 1983): they don't depend on how many threads there were, and don't cancel as sums
of squares do.
"""

cdef struct Geometry:
    # one layer at one size; lengths in memory in words, of one float or one pair of bfloat16; the rest in pixels
    bint half
    long n, h, w                # input
    long grid_h, grid_w         # base grid
    long out_h, out_w
    long stride, patch          # of the base grid over the input: 2 and 4, or 1 and 3 for a transposed convolution
    long parities
    long pixel, line            # from one pixel, and one row, to the next where the input is read to
    long rows, columns          # of a block
    long down, across           # blocks of an image
    long count                  # taps that meet the map at all
    long depth, per_pass        # words of a tap; taps that are used before the next ones are begun
    long taps[4][2 * MAX_TAPS]  # for each parity, pairs: offset in the input, offset in the panel


cdef inline long partial_size(long filters) noexcept nogil:
    """Floats of one partial result: mean and m2 of each filter, and the number of pixels."""
    return 2 * filters + VL


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


cdef void multiply_rows(const Geometry* g, const float* a, long a_stride, const long* taps, long first, long last,
                        const float* b, const float* init, long init_stride, float* c, long c_stride, long rows,
                        long vectors, long before, float* mean, float* m2) noexcept nogil:
    """Rows of C in pieces of at most MR_MAX, over the taps first..last; statistics too, if `mean` is given."""
    cdef long pieces = (rows + MR_MAX - 1) // MR_MAX, p, at, height
    for p in range(pieces):
        at = rows * p // pieces
        height = rows * (p + 1) // pieces - at
        kernel_for(height, vectors, g.half)(a + at * a_stride, a_stride, taps + 2 * first, last - first, g.depth, b,
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
        partial[2 * filters] = (y1 - y0) * (x1 - x0)
        memset(mean, 0, vectors * VL * sizeof(float))
        memset(m2, 0, vectors * VL * sizeof(float))
    for y in range(y0, y1):
        c = out + ((y * up + r) * g.out_w + x0 * up + s) * filters + panel * NR
        multiply_rows(g, a + (y - y0) * g.stride * g.line, g.stride * g.pixel, g.taps[parity], first, last, weights,
                      <const float*>c if first else bias + panel * NR, up * filters if first else 0, c, up * filters,
                      x1 - x0, vectors, (y - y0) * (x1 - x0), mean, m2)


cdef void finish_norm(const float* partial, long parts, const float* gamma, float eps, long filters, long n,
                      float* mean, float* scale) noexcept nogil:
    """Image n's mean and gamma / sqrt(variance + eps) from its `parts` partial results."""
    cdef long c, p
    cdef double pixels, total, mu, m2, delta
    cdef const float* part
    for c in range(filters):
        total, mu, m2 = 0.0, 0.0, 0.0
        for p in range(parts):
            part = partial + (n * parts + p) * partial_size(filters)
            pixels = part[2 * filters]
            delta = part[c] - mu
            mu = mu + delta * (pixels / (total + pixels))
            m2 = m2 + part[filters + c] + delta * delta * (total * pixels / (total + pixels))
            total = total + pixels
        mean[n * filters + c] = <float>mu
        scale[n * filters + c] = <float>(gamma[c] / sqrt(m2 / total + eps))


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
