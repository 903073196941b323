"""Mean and variance of a layer's output, gathered while each tile of it is in the first-level cache.

Tiles of rows are merged into the moments of a part of an image, and the parts of an image in a fixed order (Chan, Golub
and LeVeque, "Algorithms for Computing the Sample Variance", 1983). So the result doesn't depend on the number of
threads, and large means don't cancel as they do in sums of squares.

A part's moments are stored as mean[filters], m2[filters], low[filters], high[filters], the number of its pixels, and
padding to `moments_size`. The least and the largest number of each channel are found only for those who need them.
"""

cdef struct Moments:
    # of up to NR channels: the mean, and the sum of squared deviations from it, over `pixels` pixels
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
    cdef float weight = <float>rows / <float>(moments.pixels + rows)
    cdef float* mean = moments.mean
    cdef float* m2 = moments.m2
    cdef vec tile_mean, squares, delta
    cdef vec w = splat(weight), cross = splat(weight * <float>moments.pixels)
    cdef long j
    for j in range(vectors):
        tile_mean = sum_rows(c + j * VL, stride, rows)
        tile_mean = tile_mean * splat(1.0 / rows) if rows > 1 else tile_mean
        squares = sum_squares(c + j * VL, stride, rows, tile_mean)
        delta = tile_mean - (<vec*>(mean + j * VL))[0]
        (<vec*>(mean + j * VL))[0] = (<vec*>(mean + j * VL))[0] + delta * w
        (<vec*>(m2 + j * VL))[0] = (<vec*>(m2 + j * VL))[0] + squares + delta * delta * cross
        if moments.finds_range:
            merge_range(c + j * VL, stride, rows, moments.low + j * VL, moments.high + j * VL, moments.pixels == 0)
    moments.pixels += rows


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


cdef struct Completion:
    # how complete sums become the numbers of a map
    bint integers               # whether they are of 8-bit integers; those become sum * units * step + bias,
    const float* units          # one for each column,
    const float* bias
    float step
    float slope                 # of a leaky ReLU on them


cdef void complete_rows(const Completion* how, long first, float* c, long stride, long rows, long vectors, float* out,
                        long out_stride) noexcept nogil:
    """Complete `rows` pixels, `stride` floats apart, of `vectors` * VL columns of which c is number `first`.

    Unless `out` is NULL, they go there as float16, pixels out_stride words apart, and c becomes what that holds.
    """
    if how.integers:    # constants as arguments make the compiler specialise it
        if out == NULL:
            complete_as(how, first, c, stride, rows, vectors, out, out_stride, True, False)
        else:
            complete_as(how, first, c, stride, rows, vectors, out, out_stride, True, True)
    elif out != NULL:
        complete_as(how, first, c, stride, rows, vectors, out, out_stride, False, True)
    elif how.slope != 1:
        complete_as(how, first, c, stride, rows, vectors, out, out_stride, False, False)


cdef inline void complete_as(const Completion* how, long first, float* c, long stride, long rows, long vectors,
                             float* out, long out_stride, const bint integers, const bint half) noexcept nogil:
    cdef long i, j
    cdef vec v, unit = splat(0), shift = splat(0), slope = splat(how.slope)
    for j in range(vectors):
        if integers:
            unit = (<const vec*>(how.units + first + j * VL))[0] * splat(how.step)
            shift = (<const vec*>(how.bias + first + j * VL))[0]
        for i in range(rows):
            v = (<vec*>(c + i * stride + j * VL))[0]
            if integers:
                v = fused(integers_to_floats(v), unit, shift)
            v = larger(v, v * slope)
            if half:
                v = store_half(<unsigned short*>(out + i * out_stride) + j * VL, v)
            (<vec*>(c + i * stride + j * VL))[0] = v


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


cdef void finish_norm(const float* parts, long count, long filters, const float* gamma, const float* eps, float* mean,
                      float* scale) noexcept nogil:
    """One image's mean and scale = gamma / sqrt(variance + eps), each of `filters`, from its `count` parts."""
    cdef long c, p
    cdef double pixels, total, mu, m2, delta
    cdef const float* part
    for c in range(filters):
        total, mu, m2 = 0.0, 0.0, 0.0
        for p in range(count):
            part = parts + p * moments_size(filters)
            pixels = part[4 * filters]
            delta = part[c] - mu
            mu = mu + delta * (pixels / (total + pixels))
            m2 = m2 + part[filters + c] + delta * delta * (total * pixels / (total + pixels))
            total = total + pixels
        mean[c] = <float>mu
        scale[c] = <float>(gamma[c] / sqrt(m2 / total + eps[c]))
