"""Mean and variance of a layer's output, gathered while each tile of it is in the first-level cache.

Tiles of rows are merged into the moments of a part of an image, and the parts of an image in a fixed order (Chan, Golub
and LeVeque, "Algorithms for Computing the Sample Variance", 1983). So the result doesn't depend on the number of
threads, and large means don't cancel as they do in sums of squares.

A part's moments are stored as mean[filters], m2[filters], low[filters], high[filters], the number of its pixels, and
padding to `moments_size`. The least and the largest number of each channel are found only for those who need them.
"""

cdef struct Moments:
    # of neighbouring channels: the mean, and the sum of squared deviations from it, over `pixels` pixels
    float* mean
    float* m2
    float* low                  # the least of each channel,
    float* high                 # and the largest,
    bint finds_range            # if they are found
    long pixels


cdef Moments NONE                # where no moments are asked for


cdef inline long moments_size(long filters) noexcept nogil:
    """Floats that the moments of a part of an image take."""
    return 4 * filters + VL


cdef inline long panel_vectors(long filters, long panel) noexcept nogil:
    """Vectors of VL filters in a panel: 2, or 1 in a last panel that is half full."""
    return min(2, (filters - panel * NR) // VL)


cdef inline Moments begin_moments(float* part, long filters, long first, long vectors, long pixels,
                                  bint finds_range) noexcept nogil:
    """The moments of `vectors` * VL filters from `first` on of a part that will have so many pixels, none of which is
    merged yet."""
    cdef Moments moments
    moments.mean, moments.m2 = part + first, part + filters + first
    moments.low, moments.high = moments.m2 + filters, moments.m2 + 2 * filters
    moments.finds_range, moments.pixels = finds_range, 0
    part[4 * filters] = pixels
    memset(moments.mean, 0, vectors * VL * sizeof(float))
    memset(moments.m2, 0, vectors * VL * sizeof(float))
    return moments


cdef inline Moments moments_of(const Moments* moments, long first) noexcept nogil:
    """Those of the channels from `first` on."""
    cdef Moments rest = moments[0]
    rest.mean, rest.m2, rest.low, rest.high = rest.mean + first, rest.m2 + first, rest.low + first, rest.high + first
    return rest


cdef void merge_rows(const float* c, long stride, long rows, long vectors, Moments* moments) noexcept nogil:
    """Merge `rows` pixels, `stride` floats apart, of `vectors` * VL channels into the moments."""
    cdef Moments rest
    cdef long j
    for j in range(vectors):
        rest = moments_of(moments, j * VL)
        merge_vector(c + j * VL, stride, rows, sum_rows(c + j * VL, stride, rows), &rest)
    moments.pixels += rows


cdef inline void merge_vector(const float* c, long stride, long rows, vec total, const Moments* moments) noexcept nogil:
    """Merge so many pixels of VL channels, whose sum is known, into the moments of the first channels."""
    cdef float weight = <float>rows / <float>(moments.pixels + rows)
    cdef vec* mean = <vec*>moments.mean
    cdef vec* m2 = <vec*>moments.m2
    cdef vec tile_mean = total * splat(1.0 / rows) if rows > 1 else total
    cdef vec delta = tile_mean - mean[0]
    m2[0] = m2[0] + sum_squares(c, stride, rows, tile_mean) + delta * delta * splat(weight * <float>moments.pixels)
    mean[0] = mean[0] + delta * splat(weight)
    if moments.finds_range:
        merge_range(c, stride, rows, moments.low, moments.high, moments.pixels == 0)


# Sums are found in four parts, extremes in two: each step waits for the one before it.


cdef inline vec sum_rows(const float* c, long stride, long rows) noexcept nogil:
    """The sum of VL channels of so many pixels."""
    cdef vec t0 = splat(0), t1 = t0, t2 = t0, t3 = t0
    cdef long i = 0
    while i + 4 <= rows:
        t0, t1 = t0 + (<const vec*>(c + i * stride))[0], t1 + (<const vec*>(c + (i + 1) * stride))[0]
        t2, t3 = t2 + (<const vec*>(c + (i + 2) * stride))[0], t3 + (<const vec*>(c + (i + 3) * stride))[0]
        i = i + 4
    for i in range(i, rows):
        t0 = t0 + (<const vec*>(c + i * stride))[0]
    return (t0 + t1) + (t2 + t3)


cdef inline vec sum_squares(const float* c, long stride, long rows, vec mean) noexcept nogil:
    """The sum of the squared deviations from a mean of VL channels of so many pixels."""
    cdef vec t0 = splat(0), t1 = t0, t2 = t0, t3 = t0, d0, d1, d2, d3
    cdef long i = 0
    while i + 4 <= rows:
        d0, d1 = (<const vec*>(c + i * stride))[0] - mean, (<const vec*>(c + (i + 1) * stride))[0] - mean
        d2, d3 = (<const vec*>(c + (i + 2) * stride))[0] - mean, (<const vec*>(c + (i + 3) * stride))[0] - mean
        t0, t1, t2, t3 = t0 + d0 * d0, t1 + d1 * d1, t2 + d2 * d2, t3 + d3 * d3
        i = i + 4
    for i in range(i, rows):
        d0 = (<const vec*>(c + i * stride))[0] - mean
        t0 = t0 + d0 * d0
    return (t0 + t1) + (t2 + t3)


cdef inline void merge_range(const float* c, long stride, long rows, float* low, float* high,
                             bint first) noexcept nogil:
    """Merge the least and the largest of VL channels of so many pixels, which may be the first ones."""
    cdef vec x = (<const vec*>c)[0], least = -x, most = x, other_least = -x, other_most = x  # of -x the largest
    cdef long i = 0
    if not first:
        least, most = -(<vec*>low)[0], (<vec*>high)[0]
    while i + 2 <= rows:
        x = (<const vec*>(c + i * stride))[0]
        least, most = larger(least, -x), larger(most, x)
        x = (<const vec*>(c + (i + 1) * stride))[0]
        other_least, other_most = larger(other_least, -x), larger(other_most, x)
        i = i + 2
    if i < rows:
        x = (<const vec*>(c + i * stride))[0]
        least, most = larger(least, -x), larger(most, x)
    (<vec*>low)[0], (<vec*>high)[0] = -larger(least, other_least), larger(most, other_most)


cdef void finish_range(float* parts, long count, long filters) noexcept nogil:
    """One image's least and largest numbers, in its first part, from all its `count` parts.

    NaN if there is one, for then the mean is, too.
    """
    cdef long p, c
    cdef float* low = parts + 2 * filters
    cdef float* high = parts + 3 * filters
    cdef const float* part
    for p in range(count):
        part = parts + p * moments_size(filters)
        for c in range(filters):
            low[c] = min(low[c], part[2 * filters + c]) + (part[c] - part[c])
            high[c] = max(high[c], part[3 * filters + c])


cdef void finish_norm(const float* parts, long count, long filters, long group, const float* gamma, const float* eps,
                      float* mean, float* scale) noexcept nogil:
    """One image's mean and scale = gamma / sqrt(variance + eps), each of `filters`, from its `count` parts.

    Mean and variance are those of `group` neighbouring channels together; the last channels may be fewer.
    """
    cdef long first = 0, last, c, p
    cdef double pixels, total, mu, m2, delta
    cdef const float* part
    while first < filters:
        last = min(first + group, filters)
        total, mu, m2 = 0.0, 0.0, 0.0
        for c in range(first, last):
            for p in range(count):
                part = parts + p * moments_size(filters)
                pixels = part[4 * filters]
                delta = part[c] - mu
                mu = mu + delta * (pixels / (total + pixels))
                m2 = m2 + part[filters + c] + delta * delta * (total * pixels / (total + pixels))
                total = total + pixels
        for c in range(first, last):
            mean[c] = <float>mu
            scale[c] = <float>(gamma[c] / sqrt(m2 / total + eps[c]))
        first = last
