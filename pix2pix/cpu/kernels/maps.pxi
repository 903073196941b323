"""Feature maps and images, and how a layer reads them: row by row, normalised, activated, joined, enlarged and padded.

Maps are NHWC, float32, or float16 where AMX computes them; channels are padded with zeros to a multiple of VL. A map holds
raw sums, and its value is (raw - mean) * scale + shift. That form stays exact where the variance is 0;
raw * scale - mean * scale does not.
"""

cdef enum:
    MAX_SOURCES = 4
    MAX_VL = 16
    READ_AHEAD = 2048           # words; what the processor fetches by itself ends at a page of 1024

cdef const float[::1] BYTE_VALUES = np.arange(256, dtype=np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


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


cdef class Map:
    """The value of one layer for N images: raw (N,H,W,C padded), mean and scale (N,C padded), shift (C padded).

    raw: float32 or float16; the others are float32. low, high (N,C padded): the least and the largest value, where a layer
    that reads the map needs them.
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
        cdef float[::1] words = raw.reshape(-1).view(np.float32)
        self.raw, self.mean, self.scale, self.shift = raw, mean, scale, shift
        self.n, self.h, self.w, self.channels = raw.shape
        self.half, self.words = raw.dtype == np.float16, &words[0]
        self.low, self.high = np.zeros((2, self.n, self.channels), np.float32)

    cdef inline float* at(self, long n, long y, long x) noexcept nogil:
        """The words of a pixel."""
        return self.words + ((n * self.h + y) * self.w + x) * words_of(self.channels, self.half)

    cdef inline vec value(self, long n, const float* pixel, long c) noexcept nogil:
        """The values of VL channels of a pixel of image n."""
        cdef vec v = (load_channels(pixel, c, self.half) - (<vec*>&self.mean[n, c])[0]) * (<vec*>&self.scale[n, c])[0]
        return v + (<vec*>&self.shift[c])[0]

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
                (<vec*>values)[0] = self.value(n, self.at(n, y, x), c)
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
                r = residual.value(other, add, c)
                v = (v + (<const vec*>&shift[c])[0] + larger(r, r * splat(slope))) / (<const vec*>&units[c])[0]
                store_channels(out, c, v, self.half)


cdef enum PaddingMode:
    PAD_ZEROS
    PAD_REFLECT
    PAD_REPLICATE

PADDING_MODES = {"zeros": PAD_ZEROS, "uncounted": PAD_ZEROS, "reflect": PAD_REFLECT, "replicate": PAD_REPLICATE}

cdef enum Upsampling:
    NEAREST
    BILINEAR
    BILINEAR_CORNERS    # with align_corners

UPSAMPLINGS = {"nearest": NEAREST, "bilinear": BILINEAR, "bilinear-corners": BILINEAR_CORNERS}


cdef struct Source:
    # one map that a layer reads, and the slope of the leaky ReLU that the layer applies to it
    const float* raw            # (n, h, w, channels)
    bint half                   # whether that is float16
    const float* mean           # (n, channels)
    const float* scale          # (n, channels)
    const float* shift          # (channels)
    const float* low            # (n, channels): the least value,
    const float* high           # and the largest
    long n, channels            # n = 1: every image reads the same map
    float slope


cdef struct Reading:
    # how a layer reads its input
    int padding                 # a PaddingMode
    long upsample               # the factor by which it is enlarged before it is padded
    int upsampling              # the Upsampling by which
    bint adds                   # whether maps are added up, not joined along their channels


cdef struct LayerInput:
    # maps joined along their channels or added up, or an image of uint8 or float32
    Source sources[MAX_SOURCES]
    long count                  # of sources; 0 for an image
    const unsigned char* bytes  # the image, if it is uint8
    const float* floats         # the image, if it is float32
    const float* byte_values    # the 256 values of an 8-bit image
    Reading how
    long channels               # of the image
    long map_h, map_w           # of the maps or the image
    long h, w                   # when enlarged
    long pixel                  # words from one pixel to the next in the rows that are read
    Operand operand             # as what maps are read
    long depth                  # channels of a pixel, for 8-bit integers,
    const float* factors        # (n, depth) by which its values are multiplied,
    const float* zeros          # and what is added then, which stands for 0


cdef inline void store(float* row, long c, vec value, const bint bfloat16) noexcept nogil:
    """row[c : c + VL] = value, as float32 or as bfloat16."""
    if bfloat16:
        store_bfloat16(<unsigned short*>row + c, value)
    else:
        (<vec*>(row + c))[0] = value


cdef inline void store_input(const LayerInput* from_, long n, float* row, long c, vec value,
                             const Operand operand) noexcept nogil:
    """row[c : c + VL] = value of image n, as the layer's operand."""
    if operand == INT8:
        value = fused(value, (<const vec*>(from_.factors + n * from_.depth + c))[0], (<const vec*>(from_.zeros + c))[0])
        store_bytes(<unsigned char*>row + c, value)
    else:
        store(row, c, value, operand == BFLOAT16)


cdef inline void store_zeros(const LayerInput* from_, float* row, long pixels) noexcept nogil:
    """That many pixels of zeros."""
    cdef long x, c
    if from_.operand != INT8:
        memset(row, 0, pixels * from_.pixel * sizeof(float))
        return
    for x in range(pixels):
        for c in range(from_.depth // VL):
            store_bytes(<unsigned char*>(row + x * from_.pixel) + c * VL, (<const vec*>(from_.zeros + c * VL))[0])


cdef inline vec value_at(const Source* s, long n, const float* pixel, long c, const bint half) noexcept nogil:
    """leaky_relu((raw[c] - mean[n,c]) * scale[n,c] + shift[c]) for VL channels of a pixel."""
    cdef long at = n * s.channels + c
    cdef vec v = (load_channels(pixel, c, half) - (<const vec*>(s.mean + at))[0]) * (<const vec*>(s.scale + at))[0]
    v = v + (<const vec*>(s.shift + c))[0]
    return larger(v, v * splat(s.slope))


cdef inline const float* pixel_of(const LayerInput* from_, const Source* s, long n, long pixel) noexcept nogil:
    """The words of a pixel of a source's image n, of which each of its images has map_h * map_w."""
    return s.raw + (n * from_.map_h * from_.map_w + pixel) * words_of(s.channels, s.half)


cdef inline void read_source(const LayerInput* from_, const Source* s, long n, long pixel, float* out, long first,
                             const Operand operand, const bint half) noexcept nogil:
    """out[first + c] = the value of one pixel in all channels."""
    cdef long j, image = n if s.n > 1 else 0
    cdef const float* x = pixel_of(from_, s, image, pixel)
    for j in range(s.channels // VL):
        prefetch(x + words_of(j * VL, half) + READ_AHEAD)
        store_input(from_, n, out, first + j * VL, value_at(s, image, x, j * VL, half), operand)


cdef inline void read_as(const LayerInput* from_, const Source* s, long n, long pixel, float* out, long first,
                         const Operand operand) noexcept nogil:
    if s.half:  # a constant argument makes the compiler specialise `read_source`
        read_source(from_, s, n, pixel, out, first, operand, True)
    else:
        read_source(from_, s, n, pixel, out, first, operand, False)


cdef inline void join_pixel(const LayerInput* from_, long n, long y, long x, float* out) noexcept nogil:
    """out = the sources' channels at (n, y, x), one source after the other."""
    cdef const Source* s
    cdef long c = 0, i, pixel = y * from_.map_w + x
    for i in range(from_.count):
        s = &from_.sources[i]
        if from_.operand == INT8:  # as above
            read_as(from_, s, n, pixel, out, c, INT8)
        elif from_.operand == BFLOAT16:
            read_as(from_, s, n, pixel, out, c, BFLOAT16)
        else:
            read_as(from_, s, n, pixel, out, c, FLOAT32)
        c = c + s.channels


cdef struct Blend:
    # along one axis: an enlarged map's pixel is (1 - share) of the pixel at `at`, and `share` of the one at `next`
    long at, next
    float share


cdef inline Blend blend_at(const Reading* how, long i, long size) noexcept nogil:
    """What pixel i is made of, when `size` pixels are enlarged."""
    cdef Blend b
    cdef double position
    b.at, b.share = i // how.upsample, 0
    if how.upsampling == BILINEAR:
        position = min(max((i + 0.5) / how.upsample - 0.5, 0.0), size - 1.0)
        b.at = <long>position
        b.share = <float>(position - b.at)
    elif how.upsampling == BILINEAR_CORNERS:
        position = <double>i * (size - 1) / max(1, size * how.upsample - 1)
        b.at = <long>position
        b.share = <float>(position - b.at)
    b.next = min(b.at + 1, size - 1)
    return b


cdef void blend_pixel(const LayerInput* from_, long n, long y, long x, float* out) noexcept nogil:
    """out = the channels at (n, y, x) of the maps, enlarged, joined or added up."""
    cdef Blend row = blend_at(&from_.how, y, from_.map_h), column = blend_at(&from_.how, x, from_.map_w)
    cdef long[4] at = [row.at * from_.map_w + column.at, row.at * from_.map_w + column.next,
                       row.next * from_.map_w + column.at, row.next * from_.map_w + column.next]
    cdef float[4] share = [(1 - row.share) * (1 - column.share), (1 - row.share) * column.share,
                           row.share * (1 - column.share), row.share * column.share]
    cdef long corners = 1 if row.share == 0 and column.share == 0 else 4
    cdef long members = from_.count if from_.how.adds else 1, first = 0, channels, image, c = 0, i, j, k
    cdef const Source* s
    cdef vec total
    while first < from_.count:
        channels = from_.sources[first].channels
        for j in range(channels // VL):
            total = splat(0)
            for i in range(first, first + members):
                s = &from_.sources[i]
                image = n if s.n > 1 else 0
                for k in range(corners):
                    total = total + splat(share[k]) * value_at(
                        s, image, pixel_of(from_, s, image, at[k]), j * VL, s.half)
            store_input(from_, n, out, c + j * VL, total, from_.operand)
        c, first = c + channels, first + members


cdef inline long place_in(long i, long size, int padding) noexcept nogil:
    """Which pixel of `size` is at index i when they are padded: -1 for none."""
    if 0 <= i < size:
        return i
    if padding == PAD_ZEROS:
        return -1
    if padding == PAD_REFLECT:  # further out than it can reflect, nobody uses what is read
        i = -i if i < 0 else 2 * (size - 1) - i
    return min(max(i, 0), size - 1)


cdef void read_image(const LayerInput* from_, long n, long y, long x, long count, float* out) noexcept nogil:
    """`count` neighbouring pixels of the image; in bfloat16, those of an odd number of channels have one more, 0."""
    cdef long at = ((n * from_.h + y) * from_.w + x) * from_.channels, c = from_.channels, i, j, k
    cdef const float* values = from_.byte_values
    cdef const unsigned char* bytes = from_.bytes
    cdef unsigned short* numbers
    if from_.operand == BFLOAT16:
        memset(out, 0, count * from_.pixel * sizeof(float))
        for i in range(count):
            numbers = <unsigned short*>(out + i * from_.pixel)
            for j in range(c):
                k = at + i * c + j
                numbers[j] = to_bfloat16(values[bytes[k]] if bytes != NULL else from_.floats[k])
    elif bytes != NULL:
        for i in range(count * c):
            out[i] = values[bytes[at + i]]
    else:
        memcpy(out, from_.floats + at, count * c * sizeof(float))


cdef void read_pixel(const LayerInput* from_, long n, long y, long x, float* out) noexcept nogil:
    """out = all channels at (n, y, x) of the enlarged input."""
    if from_.count == 0:
        read_image(from_, n, y, x, 1, out)
    elif from_.how.upsample > 1 or from_.how.adds:
        blend_pixel(from_, n, y, x, out)
    else:
        join_pixel(from_, n, y, x, out)


cdef void read_row(const LayerInput* from_, long n, long y, long x0, long x1, float* out) noexcept nogil:
    """out[(x - x0) * pixel + c] = the padded input at (n, y, x) for x0 <= x < x1."""
    cdef long pixel = from_.pixel, lo = min(max(x0, 0), from_.w), hi = max(min(x1, from_.w), lo), x
    y = place_in(y, from_.h, from_.how.padding)
    if y < 0:
        store_zeros(from_, out, x1 - x0)
        return
    for x in range(x0, min(lo, x1)):
        read_padding(from_, n, y, x, out + (x - x0) * pixel)
    for x in range(max(hi, x0), x1):
        read_padding(from_, n, y, x, out + (x - x0) * pixel)
    if from_.count == 0:
        read_image(from_, n, y, lo, hi - lo, out + (lo - x0) * pixel)
    elif from_.how.upsample > 1 or from_.how.adds:
        for x in range(lo, hi):
            blend_pixel(from_, n, y, x, out + (x - x0) * pixel)
    else:
        for x in range(lo, hi):
            join_pixel(from_, n, y, x, out + (x - x0) * pixel)


cdef void read_padding(const LayerInput* from_, long n, long y, long x, float* out) noexcept nogil:
    """out = the padded input at (n, y, x), where x is outside the map."""
    x = place_in(x, from_.w, from_.how.padding)
    if x < 0:
        store_zeros(from_, out, 1)
    else:
        read_pixel(from_, n, y, x, out)


cdef int read_sources(sources, bint reads_image, const Reading* how, LayerInput* result) except -1:
    """Describe what a layer reads. sources: an image (uint8 or float32), or pairs (Map, slope)."""
    cdef Map m
    cdef const unsigned char[:, :, :, ::1] bytes
    cdef const float[:, :, :, ::1] floats
    cdef Source* s
    result.count, result.bytes, result.floats, result.byte_values = 0, NULL, NULL, &BYTE_VALUES[0]
    result.operand, result.how = FLOAT32, how[0]
    if reads_image:
        result.map_h, result.map_w, result.channels = sources.shape[1:]
        if sources.dtype == np.uint8:
            bytes = sources
            result.bytes = &bytes[0, 0, 0, 0]
        else:
            floats = sources
            result.floats = &floats[0, 0, 0, 0]
    else:
        for m, slope in sources:
            s = &result.sources[result.count]
            s.raw, s.half, s.mean, s.scale, s.shift = m.words, m.half, &m.mean[0, 0], &m.scale[0, 0], &m.shift[0]
            s.low, s.high = &m.low[0, 0], &m.high[0, 0]
            s.n, s.channels, s.slope = m.n, m.channels, slope
            result.map_h, result.map_w, result.count = m.h, m.w, result.count + 1
    result.h, result.w = result.map_h * how.upsample, result.map_w * how.upsample
    return 0
