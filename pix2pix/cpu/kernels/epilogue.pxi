"""What follows complete sums before they are a map: integers become floats, a leaky ReLU, rounding to float16.

The norm is not part of it: the layer that reads the map applies it.
"""

cdef struct Epilogue:
    # how complete sums become the numbers of a map
    bint integers               # whether they are of 8-bit integers; those become sum * units * step + bias,
    const float* units          # one for each column,
    const float* bias
    float step
    float slope                 # of a leaky ReLU on them


cdef void finish_rows(const Epilogue* how, long first, float* c, long stride, long rows,
                      long vectors) noexcept nogil:
    """Complete `rows` pixels, `stride` floats apart, of the vectors of columns from `first` on."""
    cdef long i, j
    cdef vec unit, shift
    cdef vec* at
    for j in range(vectors if how.integers or how.slope != 1 else 0):
        unit, shift = unit_of(how, first + j), shift_of(how, first + j)
        for i in range(rows):
            at = <vec*>(c + i * stride + j * VL)
            at[0] = finished(how, at[0], unit, shift)


cdef inline vec finish_halves(const Epilogue* how, long vector, float* c, long stride, long rows,
                              unsigned short* out, long out_stride) noexcept nogil:
    """Complete so many pixels of one vector of columns. They go to `out` as float16, and c becomes what that holds.

    Returns their sum, found in two parts.
    """
    cdef vec unit = unit_of(how, vector), shift = shift_of(how, vector), sum = splat(0), other = splat(0), v
    cdef long i
    for i in range(rows):
        v = finished(how, (<vec*>(c + i * stride))[0], unit, shift)
        v = store_half(out + i * out_stride, v)
        (<vec*>(c + i * stride))[0] = v
        sum, other = other + v, sum
    return sum + other


cdef inline vec unit_of(const Epilogue* how, long vector) noexcept nogil:
    return (<const vec*>(how.units + vector * VL))[0] * splat(how.step) if how.integers else splat(0)


cdef inline vec shift_of(const Epilogue* how, long vector) noexcept nogil:
    return (<const vec*>(how.bias + vector * VL))[0] if how.integers else splat(0)


cdef inline vec finished(const Epilogue* how, vec sums, vec unit, vec shift) noexcept nogil:
    if how.integers:
        sums = fused(integers_to_floats(sums), unit, shift)
    return larger(sums, sums * splat(how.slope)) if how.slope != 1 else sums
