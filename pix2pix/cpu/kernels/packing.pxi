"""Packing of weights: kernels in their canonical layout become panels of NR filters.

Canonical kernels are (kh, kw, in, out), those of transposed convolutions (kh, kw, out, in), float32. A panel is
[word][NR], with zeros for channels and filters that are padding. Packing works on VL filters and PACK_CHANNELS channels
at a time, so that what it gathers stays in the first-level cache.
"""

cdef enum:
    MAX_KERNEL = 9              # taps along one axis
    MAX_TAPS = MAX_KERNEL * MAX_KERNEL
    PACK_CHANNELS = 16

cdef long[4] ELEMENTS = [1, 2, 4, 2]    # of a word, by Operand


cdef Operand operand_of(spec):
    """What a layer multiplies."""
    if spec.quantised is not None:
        return INT8 if spec.vnni else INT16
    return BFLOAT16 if spec.bfloat16 else FLOAT32


def joined_channels(channels, long multiple, bint adds):
    """Which channel of the joined input each number of a pixel holds; -1 where it is padding.

    channels: those of the image, or of each map that is joined, in order; of maps that are added, any one. Each is
    padded to a multiple of `multiple`.
    """
    where = []
    for count in channels[:1] if adds else channels:
        first = sum(c >= 0 for c in where)
        where += range(first, first + count)
        where += [-1] * (-count % multiple)
    return np.array(where, np.int_)


def widened(values, long size, float fill, float rest=0):
    """values as float32, followed by `rest`; `size` times `fill` if values is None."""
    wide = aligned(size)
    wide[:] = fill if values is None else rest
    if values is not None:
        wide[: len(values)] = values
    return wide


def repeated(where, long count, long phases):
    """`where`, for several phases one behind the other: what it points to lies `count` further on in each. -1 stays."""
    return np.concatenate([np.where(where >= 0, where + phase * count, -1) for phase in range(phases)])


def spread(values, where):
    """values[:, where], C-contiguous; 0 where `where` is -1."""
    return np.ascontiguousarray(np.where(where >= 0, values[:, where], 0))


cdef inline void set_weight(float* panel, long k, long j, float value, Operand operand) noexcept nogil:
    """Set the weight from channel k to filter j: panel[k][j] in float32, panel[k // 2][j][k % 2] in bfloat16 and for
    integers of 16 bits, panel[k // 4][j][k % 4] for those of 8."""
    if operand == INT8:
        (<signed char*>panel)[(k // 4 * NR + j) * 4 + k % 4] = <signed char><int>value
    elif operand == INT16:
        (<short*>panel)[(k // 2 * NR + j) * 2 + k % 2] = <short><int>value
    elif operand == BFLOAT16:
        (<unsigned short*>panel)[(k // 2 * NR + j) * 2 + k % 2] = to_bfloat16(value)
    else:
        panel[k * NR + j] = value


cdef void gather_taps(const float[:, :, :, ::1] kernel, bint transposed, const long[::1] where, long first, long count,
                      long filter, float* taps) noexcept nogil:
    """taps[kw * a + b][k][j] = the weight at (a, b) from channel where[first + k] to `filter` + j.

    k < count, j < VL; zero where there is no such channel or filter. taps: (kh * kw, PACK_CHANNELS, VL).
    """
    cdef long width = min(<long>VL, (kernel.shape[2] if transposed else kernel.shape[3]) - filter), a, b, k, j
    cdef float* tap
    memset(taps, 0, kernel.shape[0] * kernel.shape[1] * PACK_CHANNELS * VL * sizeof(float))
    for a in range(kernel.shape[0]):
        for b in range(kernel.shape[1]):
            tap = taps + (kernel.shape[1] * a + b) * PACK_CHANNELS * VL
            if transposed:
                for j in range(width):
                    for k in range(count):
                        if where[first + k] >= 0:
                            tap[k * VL + j] = kernel[a, b, filter + j, where[first + k]]
            else:
                for k in range(count):
                    if where[first + k] >= 0:
                        for j in range(width):
                            tap[k * VL + j] = kernel[a, b, where[first + k], filter + j]
