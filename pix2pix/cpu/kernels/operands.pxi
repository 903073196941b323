"""What a layer reads and multiplies by: feature maps and pictures, read row by row; kernels, packed.

Maps are NHWC float32 with channels padded to a multiple of VL by zeros. The value of a map is (raw - mean) * scale +
shift, applied with the activation when a layer reads it. Packed weights are [parity][panel][tap][channel][NR].
"""

cdef class Map:
    """The value of one layer for N images: raw (N,H,W,C padded), mean and scale (N,C padded), shift (C padded)."""
    cdef readonly float[:, :, :, ::1] raw
    cdef readonly float[:, ::1] mean
    cdef readonly float[:, ::1] scale
    cdef readonly float[::1] shift

    def __init__(self, float[:, :, :, ::1] raw, float[:, ::1] mean, float[:, ::1] scale, float[::1] shift):
        self.raw, self.mean, self.scale, self.shift = raw, mean, scale, shift

    def set_raw(self, const float[:, :, :, ::1] values, long threads):
        """raw[..., :C] = values (N,H,W,C)."""
        cdef long h = values.shape[1], rows = values.shape[0] * h, row, x
        cdef size_t size = values.shape[3] * sizeof(float)
        for row in prange(rows, nogil=True, num_threads=threads, schedule="static"):
            for x in range(values.shape[2]):
                memcpy(&self.raw[row // h, row % h, x, 0], &values[row // h, row % h, x, 0], size)

    def write_value(self, float[:, :, :, ::1] out, long threads):
        """out (N,H,W,C) = the value; the same one N times if this map has one image."""
        cdef long h = out.shape[1], rows = out.shape[0] * h, one = self.raw.shape[0] == 1, row
        for row in prange(rows, nogil=True, num_threads=threads, schedule="static"):
            self.write_row(0 if one else row // h, row % h, &out[row // h, row % h, 0, 0], out.shape[2], out.shape[3])

    cdef void write_row(self, long n, long y, float* out, long width, long channels) noexcept nogil:
        """out[x * channels + c] = the value at (n, y, x), c."""
        cdef const float* raw
        cdef const float* mean = &self.mean[n, 0]
        cdef const float* scale = &self.scale[n, 0]
        cdef const float* shift = &self.shift[0]
        cdef long x, c
        for x in range(width):
            raw = &self.raw[n, y, x, 0]
            for c in range(channels):
                out[x * channels + c] = (raw[c] - mean[c]) * scale[c] + shift[c]


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
    long pixel              # words from one pixel to the next where it is read to
    bint half               # whether it is read as bfloat16


cdef inline void store(float* row, long c, vec value, const bint half) noexcept nogil:
    """row[c : c + VL] = value, as floats or as bfloat16."""
    if half:
        store_bfloat16(<unsigned short*>row + c, value)
    else:
        (<vec*>(row + c))[0] = value


cdef inline void normalise(const Source* s, long n, const float* x, float* out, long first,
                           const bint half) noexcept nogil:
    """out[first + c] = leaky_relu((x[c] - mean[n,c]) * scale[n,c] + shift[c]): one pixel."""
    cdef const float* mean = s.mean + n * s.channels
    cdef const float* scale = s.scale + n * s.channels
    cdef const float* shift = s.shift
    cdef vec slope = splat(s.slope), v
    cdef long c, j
    for j in range(s.channels // VL):
        c = j * VL
        v = ((<const vec*>(x + c))[0] - (<const vec*>(mean + c))[0]) * (<const vec*>(scale + c))[0]
        v = v + (<const vec*>(shift + c))[0]
        store(out, first + c, larger(v, v * slope), half)


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
            if op.half:
                normalise(s, n if s.n > 1 else 0, s.raw + at * s.channels, o, c, True)
            else:
                normalise(s, n if s.n > 1 else 0, s.raw + at * s.channels, o, c, False)
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


cdef inline void set_weight(float* out, long k, long j, float value, bint half) noexcept nogil:
    """out[k][j] of rows of NR floats, or out[k // 2][j][k % 2] of rows of NR pairs of bfloat16."""
    if half:
        (<unsigned short*>out)[(k // 2 * NR + j) * 2 + k % 2] = to_bfloat16(value)
    else:
        out[k * NR + j] = value


cdef void gather_taps(const float[:, :, :, ::1] kernel, bint transposed, const long[::1] where, long first, long count,
                      long filter, float* taps) noexcept nogil:
    """taps[4 * a + b][k][j] = the weight at (a, b) from channel where[first + k] to `filter` + j; k < count, j < VL.

    Zero where there is no such channel or filter. taps: 16 * PACK_CHANNELS * VL floats.
    """
    cdef long width = min(<long>VL, (kernel.shape[2] if transposed else kernel.shape[3]) - filter), a, b, k, j
    cdef float* tap
    memset(taps, 0, 16 * PACK_CHANNELS * VL * sizeof(float))
    for a in range(4):
        for b in range(4):
            tap = taps + (4 * a + b) * PACK_CHANNELS * VL
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
