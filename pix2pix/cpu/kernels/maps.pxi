"""Feature maps.

They are NHWC, float32, or float16 where AMX computes them; channels are padded with zeros to a multiple of VL. A map
holds raw sums, and its value is (raw - mean) * scale + shift. That form stays exact where the variance is 0;
raw * scale - mean * scale does not. Means and variances are those of the numbers that the map holds, after rounding.
"""

cdef enum:
    MAX_VL = 16
    READ_AHEAD = 2048           # words; what the processor fetches by itself ends at a page of 1024


cdef inline long words_of(long channels, bint half) noexcept nogil:
    """Words that so many channels take, as float16 or as float32."""
    return channels // 2 if half else channels


cdef inline vec load_channels(const float* pixel, long c, bint half) noexcept nogil:
    """VL channels of a pixel of a map, from c on."""
    if half:
        return load_half(<const unsigned short*>pixel + c)
    return (<const vec*>(pixel + c))[0]


cdef inline void store_channels(float* pixel, long c, vec value, bint half) noexcept nogil:
    """VL channels of a pixel of a map, from c on."""
    if half:
        store_half(<unsigned short*>pixel + c, value)
    else:
        (<vec*>(pixel + c))[0] = value


cdef inline vec value_of(vec raw, const float* mean, const float* scale, const float* shift) noexcept nogil:
    """(raw - mean) * scale + shift for VL channels."""
    return (raw - (<const vec*>mean)[0]) * (<const vec*>scale)[0] + (<const vec*>shift)[0]


cdef class Map:
    """The value of one layer for N images: raw (N,H,W,C padded), mean and scale (N,C padded), shift (C padded).

    raw: float32 or float16; the others are float32. low, high (N,C padded): the least and the largest value, where a
    layer that reads the map needs them.
    """
    cdef readonly object raw
    cdef readonly float[:, ::1] mean
    cdef readonly float[:, ::1] scale
    cdef readonly float[::1] shift
    cdef readonly float[:, ::1] low
    cdef readonly float[:, ::1] high
    cdef readonly bint half             # whether raw is float16
    cdef long n, h, w, channels
    cdef float* words                   # of raw

    def __init__(self, raw, float[:, ::1] mean, float[:, ::1] scale, float[::1] shift):
        if raw.dtype not in (np.float32, np.float16) or not raw.flags.c_contiguous:
            raise ValueError(f"got a map of {raw.dtype}, strides {raw.strides}, expected float32 or float16 in order")
        cdef float[::1] words = raw.reshape(-1).view(np.float32)
        self.raw, self.mean, self.scale, self.shift = raw, mean, scale, shift
        self.n, self.h, self.w, self.channels = raw.shape
        self.half, self.words = raw.dtype == np.float16, &words[0]
        self.low, self.high = np.zeros((2, self.n, self.channels), np.float32)

    cdef inline float* at(self, long n, long y, long x) noexcept nogil:
        """The words of a pixel."""
        return self.words + ((n * self.h + y) * self.w + x) * words_of(self.channels, self.half)

    def set_raw(self, const float[:, :, :, ::1] values, long threads, bint finds_range):
        """raw[..., :C] = values (N,H,W,C), of a map of float32."""
        cdef long h = values.shape[1], rows = values.shape[0] * h, row, x
        cdef size_t size = values.shape[3] * sizeof(float)
        for row in prange(rows, nogil=True, num_threads=threads, schedule="static"):
            for x in range(values.shape[2]):
                memcpy(self.at(row // h, row % h, x), &values[row // h, row % h, x, 0], size)
        if finds_range:
            self.find_range(threads)

    cdef find_range(self, long threads):
        """The least and the largest of a map whose values are raw * scale."""
        cdef long vectors = self.channels // VL, item
        for item in prange(self.n * vectors, nogil=True, num_threads=threads, schedule="static"):
            self.find_channels(item // vectors, item % vectors * VL)

    cdef void find_channels(self, long n, long c) noexcept nogil:
        """The least and the largest of VL channels of an image; NaN if there is one."""
        cdef const float* raw = self.at(n, 0, 0)
        cdef vec x = load_channels(raw, c, self.half), scale = (<vec*>&self.scale[n, c])[0]
        cdef vec low = -x, high = x, undefined = splat(0)   # the largest of -x is minus the least
        cdef long i
        for i in range(self.h * self.w):
            x = load_channels(raw + i * words_of(self.channels, self.half), c, self.half)
            low, high, undefined = larger(low, -x), larger(high, x), undefined + (x - x)
        (<vec*>&self.low[n, c])[0], (<vec*>&self.high[n, c])[0] = (undefined - low) * scale, high * scale

    cdef void set_range(self, long n, const float* low, const float* high) noexcept nogil:
        """The least and the largest value of image n, from those of its raw numbers."""
        cdef long c
        cdef float a, b
        for c in range(self.channels):
            a = (low[c] - self.mean[n, c]) * self.scale[n, c] + self.shift[c]
            b = (high[c] - self.mean[n, c]) * self.scale[n, c] + self.shift[c]
            self.low[n, c], self.high[n, c] = min(a, b), max(a, b)

    def write_value(self, float[:, :, :, ::1] out, long threads):
        """out (N,H,W,C) = the value. A map of one image is written N times."""
        cdef long h = out.shape[1], rows = out.shape[0] * h, one = self.n == 1, row
        for row in prange(rows, nogil=True, num_threads=threads, schedule="static"):
            self.write_row(0 if one else row // h, row % h, &out[row // h, row % h, 0, 0], out.shape[3])

    cdef void write_row(self, long n, long y, float* out, long channels) noexcept nogil:
        """out[x * channels + c] = the value at (n, y, x), c."""
        cdef float[MAX_VL] values
        cdef long x, j, c
        for x in range(self.w):
            for j in range((channels + VL - 1) // VL):
                c = j * VL
                (<vec*>values)[0] = value_of(load_channels(self.at(n, y, x), c, self.half), &self.mean[n, c],
                                             &self.scale[n, c], &self.shift[c])
                memcpy(out + x * channels + c, values, min(<long>VL, channels - c) * sizeof(float))

    def add_residual(self, const float[::1] shift, Map residual, float slope, const float[::1] units, long threads,
                     bint finds_range=False):
        """raw * units = (raw - mean) * scale + shift + leaky_relu(residual's value), by channel: the new value."""
        cdef long h = self.h, rows = self.n * h, one = residual.n == 1, row
        for row in prange(rows, nogil=True, num_threads=threads, schedule="static"):
            self.add_row(row // h, row % h, shift, residual, 0 if one else row // h, slope, units)
        self.mean[:, :], self.scale[:, :] = 0, units
        if finds_range:
            self.find_range(threads)

    cdef void add_row(self, long n, long y, const float[::1] shift, Map residual, long other, float slope,
                      const float[::1] units) noexcept nogil:
        cdef float* out
        cdef const float* add
        cdef vec v, r
        cdef long x, j, c
        for x in range(self.w):
            out, add = self.at(n, y, x), residual.at(other, y, x)
            for j in range(self.channels // VL):
                c = j * VL
                prefetch(out + words_of(c, self.half) + READ_AHEAD)
                prefetch(add + words_of(c, residual.half) + READ_AHEAD)
                v = (load_channels(out, c, self.half) - (<vec*>&self.mean[n, c])[0]) * (<vec*>&self.scale[n, c])[0]
                r = value_of(load_channels(add, c, residual.half), &residual.mean[other, c], &residual.scale[other, c],
                             &residual.shift[c])
                v = (v + (<const vec*>&shift[c])[0] + larger(r, r * splat(slope))) / (<const vec*>&units[c])[0]
                store_channels(out, c, v, self.half)
