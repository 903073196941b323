"""Feature maps and images, and how a layer reads them: row by row, normalised, activated, joined and padded.

Maps are NHWC float32; channels are padded with zeros to a multiple of VL. A map holds raw sums, and its value is
(raw - mean) * scale + shift. That form stays exact where the variance is 0; raw * scale - mean * scale does not.
"""

cdef enum:
    MAX_SOURCES = 4

cdef const float[::1] BYTE_VALUES = np.arange(256, dtype=np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


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
        """out (N,H,W,C) = the value. A map of one image is written N times."""
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
    # one map that a layer reads, and the slope of the leaky ReLU that the layer applies to it
    const float* raw            # (n, h, w, channels)
    const float* mean           # (n, channels)
    const float* scale          # (n, channels)
    const float* shift          # (channels)
    long n, channels            # n = 1: every image reads the same map
    float slope


cdef struct LayerInput:
    # maps joined along their channels, or an image of uint8 or float32
    Source sources[MAX_SOURCES]
    long count                  # of sources; 0 for an image
    const unsigned char* bytes  # the image, if it is uint8
    const float* floats         # the image, if it is float32
    const float* byte_values    # the 256 values of an 8-bit image
    long h, w
    long pixel                  # words from one pixel to the next in the rows that are read
    bint bfloat16               # whether maps are read as bfloat16


cdef inline void store(float* row, long c, vec value, const bint bfloat16) noexcept nogil:
    """row[c : c + VL] = value, as float32 or as bfloat16."""
    if bfloat16:
        store_bfloat16(<unsigned short*>row + c, value)
    else:
        (<vec*>(row + c))[0] = value


cdef inline void normalise(const Source* s, long n, const float* x, float* out, long first,
                           const bint bfloat16) noexcept nogil:
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
        store(out, first + c, larger(v, v * slope), bfloat16)


cdef inline void join_pixel(const LayerInput* from_, long n, long y, long x, float* out) noexcept nogil:
    """out = the sources' channels at (n, y, x), one source after the other."""
    cdef const Source* s
    cdef long c = 0, i, image, at
    for i in range(from_.count):
        s = &from_.sources[i]
        image = n if s.n > 1 else 0
        at = ((image * from_.h + y) * from_.w + x) * s.channels
        if from_.bfloat16:  # a constant argument makes the compiler specialise `normalise`
            normalise(s, image, s.raw + at, out, c, True)
        else:
            normalise(s, image, s.raw + at, out, c, False)
        c = c + s.channels


cdef void read_row(const LayerInput* from_, long n, long y, long x0, long x1, float* out) noexcept nogil:
    """out[(x - x0) * pixel + c] = the input at (n, y, x) for x0 <= x < x1; zero outside the map."""
    cdef long pixel = from_.pixel, lo = max(x0, 0), hi = min(x1, from_.w), x, at, i
    cdef float* inside = out + (lo - x0) * pixel
    if y < 0 or y >= from_.h:
        memset(out, 0, (x1 - x0) * pixel * sizeof(float))
        return
    if lo > x0:
        memset(out, 0, (lo - x0) * pixel * sizeof(float))
    if x1 > hi:
        memset(out + (hi - x0) * pixel, 0, (x1 - hi) * pixel * sizeof(float))
    if from_.count:
        for x in range(lo, hi):
            join_pixel(from_, n, y, x, out + (x - x0) * pixel)
        return
    at = ((n * from_.h + y) * from_.w + lo) * pixel
    for i in range((hi - lo) * pixel):
        inside[i] = from_.byte_values[from_.bytes[at + i]] if from_.bytes != NULL else from_.floats[at + i]


cdef int read_sources(sources, bint reads_image, LayerInput* result) except -1:
    """Describe what a layer reads. sources: an image (uint8 or float32), or pairs (Map, slope)."""
    cdef Map m
    cdef const unsigned char[:, :, :, ::1] bytes
    cdef const float[:, :, :, ::1] floats
    cdef Source* s
    result.count, result.bytes, result.floats, result.byte_values = 0, NULL, NULL, &BYTE_VALUES[0]
    if reads_image:
        result.h, result.w = sources.shape[1:3]
        if sources.dtype == np.uint8:
            bytes = sources
            result.bytes = &bytes[0, 0, 0, 0]
        else:
            floats = sources
            result.floats = &floats[0, 0, 0, 0]
        return 0
    for m, slope in sources:
        s = &result.sources[result.count]
        s.raw, s.mean, s.scale, s.shift = &m.raw[0, 0, 0, 0], &m.mean[0, 0], &m.scale[0, 0], &m.shift[0]
        s.n, s.channels, s.slope = m.raw.shape[0], m.raw.shape[3], slope
        result.h, result.w, result.count = m.raw.shape[1], m.raw.shape[2], result.count + 1
    return 0
