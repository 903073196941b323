"""The transforms of Winograd's minimal filtering F(m x m, 2 x 2), m = 2, 3, 4 (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", arXiv:1509.09308).

A tile of m x m outputs y of a convolution of d with 2 x 2 taps k takes (m + 1)^2 multiplications instead of 4 m^2:

    y = A^T [(G k G^T) * (B^T d B)] A        * element by element

The polynomials are evaluated at 0, 1 and infinity for m = 2; at -1 too for m = 3; for m = 4 at OUTER and INNER with
either sign, and at infinity. Among multiples of 1/8, these have the least rounding errors: less than half of those of
0, 1, -1 and 2, and 1.4 times those of m = 2.

Transforms of maps work on VL channels at a time, and are called with constants for m, so that they lie in registers.
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


cdef struct Window:
    # the input of a tile: (m + 1) x (m + 1) pixels, `down` and `across` floats apart
    const float* x
    long down, across


cdef struct OutputTile:
    # where a tile's outputs lie: (y + step * i, x + step * j), i, j < m, as far as they are inside h x w
    long y, x, step
    long h, w, filters


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


cdef inline void transform_output(const long m, const bint first, vec* d, const long s) noexcept nogil:
    """d[i * s], i <= m, becomes A^T d, i < m. first: of the two passes, over rows and over columns.

    A sum of two products has two fused forms, which round differently. The compiler may choose either, so each pass
    states its own.
    """
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
        if first:
            d[2 * s] = fused(splat(OUTER * OUTER), p, splat(INNER * INNER) * t)
        else:
            d[2 * s] = fused(splat(INNER * INNER), t, splat(OUTER * OUTER) * p)
        d[3 * s] = splat(OUTER * OUTER) * q + (splat(INNER * INNER) * u + d[4 * s])


cdef inline void read_tile(const long m, const bint bfloat16, const Window* window, long channels, float* v,
                           long point) noexcept nogil:
    """v[xi * point + c] = B^T d B for all channels c of one window. v: the tile's row of V."""
    cdef vec[MAX_POINTS * MAX_POINTS] d
    cdef long i, j, k
    for k in range(channels // VL):
        for i in range(m + 1):
            for j in range(m + 1):
                d[i * (m + 1) + j] = (<const vec*>(window.x + i * window.down + j * window.across + k * VL))[0]
            transform_input(m, d + i * (m + 1), 1)
        for j in range(m + 1):
            transform_input(m, d + j, m + 1)
        for i in range((m + 1) * (m + 1)):
            store(v + i * point, k * VL, d[i], bfloat16)


cdef inline void read_phases(const long m, const bint bfloat16, const Window* window, long channels, float* v,
                             long point) noexcept nogil:
    """The same for the four phases (r, s) of a transposed convolution, whose windows begin (r, s) pixels further on.

    Their columns are transformed once for both s. Phase (r, s) has the points from (STRIDE * r + s) * (m + 1)^2 on.
    """
    cdef vec[(MAX_POINTS + 1) * (MAX_POINTS + 1)] e
    cdef vec[MAX_POINTS * (MAX_POINTS + 1)] f
    cdef vec[MAX_POINTS] d
    cdef long i, j, r, s, k
    for k in range(channels // VL):
        for i in range(m + 2):
            for j in range(m + 2):
                e[i * (m + 2) + j] = (<const vec*>(window.x + i * window.down + j * window.across + k * VL))[0]
        for r in range(STRIDE):
            for i in range((m + 1) * (m + 2)):
                f[i] = e[r * (m + 2) + i]
            for j in range(m + 2):
                transform_input(m, f + j, m + 2)
            for i in range(m + 1):
                for s in range(STRIDE):
                    for j in range(m + 1):
                        d[j] = f[i * (m + 2) + s + j]
                    transform_input(m, d, 1)
                    for j in range(m + 1):
                        store(v + (((STRIDE * r + s) * (m + 1) + i) * (m + 1) + j) * point, k * VL, d[j], bfloat16)


cdef inline void write_tile(const long m, const float* products, long point, const float* bias, float* image,
                            const OutputTile* tile) noexcept nogil:
    """A^T products A + bias for VL filters, in their places in the image. products[xi * point]: VL columns of M."""
    cdef vec[MAX_POINTS * MAX_POINTS] d
    cdef vec b = (<const vec*>bias)[0]
    cdef long i, j, y, x
    for i in range((m + 1) * (m + 1)):
        d[i] = (<const vec*>(products + i * point))[0]
    for i in range(m + 1):
        transform_output(m, True, d + i * (m + 1), 1)
    for j in range(m):
        transform_output(m, False, d + j, m + 1)
    for i in range(m):
        y = tile.y + tile.step * i
        if not 0 <= y < tile.h:
            continue
        for j in range(m):
            x = tile.x + tile.step * j
            if 0 <= x < tile.w:
                (<vec*>(image + (y * tile.w + x) * tile.filters))[0] = d[i * (m + 1) + j] + b


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
