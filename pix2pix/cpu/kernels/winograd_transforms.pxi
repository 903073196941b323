"""The transforms of Winograd's minimal filtering F(m x m, r x r), r = 2 or 3 taps, m = 2, 3, 4 outputs.

pix2pix/model/winograd.py explains them, and has them as matrices.

Transforms of maps work on VL channels at a time, and are called with constants for m and t, so that they lie in
registers. The points that are not 0, 1 or infinity are OUTER and INNER with either sign for t = 5, FAR and NEAR with
either sign for t = 6.
"""

cdef extern from *:
    """
    #define OUTER 1.25f
    #define INNER 0.375f
    #define FAR 1.5f
    #define NEAR 0.625f
    """
    const float OUTER, INNER, FAR, NEAR

cdef enum:
    MAX_POINTS = 6      # t
    MAX_FILTER = 3      # r


cdef struct Window:
    # the input of a tile: t x t pixels, `down` and `across` floats apart
    const float* x
    long down, across


cdef struct OutputTile:
    # where a tile's outputs lie: (y + step * i, x + step * j), i, j < m, as far as they are inside h x w
    long y, x, step
    long h, w, filters


cdef inline void transform_input(const long t, vec* d, const long s) noexcept nogil:
    """d[i * s], i < t, becomes B^T d."""
    cdef vec a, b, c, e
    if t == 3:
        d[0] = d[0] - d[s]
        d[2 * s] = d[2 * s] - d[s]
    elif t == 4:
        a = d[0] - d[2 * s]
        b = d[s] + d[2 * s]
        c = d[2 * s] - d[s]
        e = d[3 * s] - d[s]
        d[0], d[s], d[2 * s], d[3 * s] = a, b, c, e
    elif t == 5:
        a = d[3 * s] - splat(INNER * INNER) * d[s]
        b = splat(OUTER) * (d[2 * s] - splat(INNER * INNER) * d[0])
        c = d[3 * s] - splat(OUTER * OUTER) * d[s]
        e = splat(INNER) * (d[2 * s] - splat(OUTER * OUTER) * d[0])
        d[4 * s] = (d[4 * s] - splat(OUTER * OUTER + INNER * INNER) * d[2 * s]
                    + splat(OUTER * OUTER * INNER * INNER) * d[0])
        d[0], d[s], d[2 * s], d[3 * s] = a + b, a - b, c + e, c - e
    else:
        a = d[4 * s] - splat(NEAR * NEAR) * d[2 * s]
        b = splat(FAR) * (d[3 * s] - splat(NEAR * NEAR) * d[s])
        c = d[4 * s] - splat(FAR * FAR) * d[2 * s]
        e = splat(NEAR) * (d[3 * s] - splat(FAR * FAR) * d[s])
        d[0] = (d[4 * s] - splat(FAR * FAR + NEAR * NEAR) * d[2 * s]
                + splat(FAR * FAR * NEAR * NEAR) * d[0])
        d[5 * s] = (d[5 * s] - splat(FAR * FAR + NEAR * NEAR) * d[3 * s]
                    + splat(FAR * FAR * NEAR * NEAR) * d[s])
        d[s], d[2 * s], d[3 * s], d[4 * s] = a + b, a - b, c + e, c - e


cdef inline void transform_output(const long m, const long t, const bint first, vec* d, const long s) noexcept nogil:
    """d[i * s], i < t, becomes A^T d, i < m. first: of the two passes, over rows and over columns.

    A sum of two products has two fused forms, which round differently. The compiler may choose either, so each pass
    states its own.
    """
    cdef vec p, q, u, v
    if t == 3:
        d[0] = d[0] + d[s]
        d[s] = d[s] + d[2 * s]
    elif t == 4:
        p = d[s] + d[2 * s]
        q = d[s] - d[2 * s]
        d[0] = d[0] + p
        if m == 3:
            d[s] = q
            d[2 * s] = p + d[3 * s]
        else:
            d[s] = q + d[3 * s]
    elif t == 5:
        p = d[0] + d[s]
        q = splat(OUTER) * (d[0] - d[s])
        u = d[2 * s] + d[3 * s]
        v = splat(INNER) * (d[2 * s] - d[3 * s])
        d[0] = p + u
        d[s] = q + v
        d[2 * s] = sum_of_products(OUTER * OUTER, p, INNER * INNER, u, first)
        if m == 4:
            d[3 * s] = splat(OUTER * OUTER) * q + (splat(INNER * INNER) * v + d[4 * s])
        else:
            d[2 * s] = d[2 * s] + d[4 * s]
    else:
        p = d[s] + d[2 * s]
        q = splat(FAR) * (d[s] - d[2 * s])
        u = d[3 * s] + d[4 * s]
        v = splat(NEAR) * (d[3 * s] - d[4 * s])
        d[0] = d[0] + p + u
        d[s] = q + v
        d[2 * s] = sum_of_products(FAR * FAR, p, NEAR * NEAR, u, first)
        d[3 * s] = splat(FAR * FAR) * q + (splat(NEAR * NEAR) * v + d[5 * s])


cdef inline vec sum_of_products(float a, vec p, float b, vec q, const bint first) noexcept nogil:
    """a * p + b * q, of which the second product, or the first, is rounded by itself."""
    if first:
        return fused(splat(a), p, splat(b) * q)
    return fused(splat(b), q, splat(a) * p)


cdef inline void read_tile(const long t, const bint bfloat16, const Window* window, long channels, float* v,
                           long point) noexcept nogil:
    """v[xi * point + c] = B^T d B for all channels c of one window. v: the tile's row of V."""
    cdef vec[MAX_POINTS * MAX_POINTS] d
    cdef long i, j, k
    for k in range(channels // VL):
        for i in range(t):
            for j in range(t):
                d[i * t + j] = (<const vec*>(window.x + i * window.down + j * window.across + k * VL))[0]
            transform_input(t, d + i * t, 1)
        for j in range(t):
            transform_input(t, d + j, t)
        for i in range(t * t):
            store(v + i * point, k * VL, d[i], bfloat16)


cdef inline void read_phases(const long t, const bint bfloat16, const Window* window, long channels, float* v,
                             long point) noexcept nogil:
    """The same for the four phases (r, s) of a transposed convolution, whose windows begin (r, s) pixels further on.

    Their columns are transformed once for both s. Phase (r, s) has the points from (MAX_SCALE * r + s) * t^2 on.
    """
    cdef vec[(MAX_POINTS + 1) * (MAX_POINTS + 1)] e
    cdef vec[MAX_POINTS * (MAX_POINTS + 1)] f
    cdef vec[MAX_POINTS] d
    cdef long i, j, r, s, k
    for k in range(channels // VL):
        for i in range(t + 1):
            for j in range(t + 1):
                e[i * (t + 1) + j] = (<const vec*>(window.x + i * window.down + j * window.across + k * VL))[0]
        for r in range(MAX_SCALE):
            for i in range(t * (t + 1)):
                f[i] = e[r * (t + 1) + i]
            for j in range(t + 1):
                transform_input(t, f + j, t + 1)
            for i in range(t):
                for s in range(MAX_SCALE):
                    for j in range(t):
                        d[j] = f[i * (t + 1) + s + j]
                    transform_input(t, d, 1)
                    for j in range(t):
                        store(v + (((MAX_SCALE * r + s) * t + i) * t + j) * point, k * VL, d[j], bfloat16)


cdef inline void load_sums(const long t, const float* products, long point, vec* d) noexcept nogil:
    """d[xi] = products[xi * point]: VL columns of M."""
    cdef long i
    for i in range(t * t):
        d[i] = (<const vec*>(products + i * point))[0]


cdef inline void load_integers(const long t, const float* products, long point, const float* units, long units_point,
                               const float* steps, long steps_point, vec* d) noexcept nogil:
    """The same of sums of 8-bit integers, times their units, times the steps of the tile's rows of V."""
    cdef long i
    for i in range(t * t):
        d[i] = integers_to_floats((<const vec*>(products + i * point))[0])
        d[i] = d[i] * ((<const vec*>(units + i * units_point))[0] * splat(steps[i * steps_point]))


cdef inline void write_tile(const long m, const long t, vec* d, const float* bias, float* image,
                            const OutputTile* tile) noexcept nogil:
    """A^T d A + bias for VL filters, in their places in the image."""
    cdef vec b = (<const vec*>bias)[0]
    cdef long i, j, y, x
    for i in range(t):
        transform_output(m, t, True, d + i * t, 1)
    for j in range(m):
        transform_output(m, t, False, d + j, t)
    for i in range(m):
        y = tile.y + tile.step * i
        if not 0 <= y < tile.h:
            continue
        for j in range(m):
            x = tile.x + tile.step * j
            if 0 <= x < tile.w:
                (<vec*>(image + (y * tile.w + x) * tile.filters))[0] = d[i * t + j] + b


cdef inline void transform_kernel(const long r, const long t, const double* g, const float* k, long down, long across,
                                  double* u) noexcept nogil:
    """u[x][y][j] = (G k G^T)[x,y], x, y < t, of the r x r taps k + a * down + b * across; j < VL. g: G, (t, r)."""
    cdef double[MAX_FILTER * VL] rows
    cdef double total
    cdef long x, y, a, b, j
    for x in range(t):
        for b in range(r):
            for j in range(VL):
                total = 0
                for a in range(r):
                    total = total + g[x * r + a] * k[a * down + b * across + j]
                rows[b * VL + j] = total
        for y in range(t):
            for j in range(VL):
                total = 0
                for b in range(r):
                    total = total + g[y * r + b] * rows[b * VL + j]
                u[(x * t + y) * VL + j] = total
