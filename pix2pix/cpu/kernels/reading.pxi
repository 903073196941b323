"""How a layer reads maps or an image: row by row, normalised, activated, joined, enlarged and padded."""

cdef enum:
    MAX_SOURCES = 4

cdef const float[::1] BYTE_VALUES = np.arange(256, dtype=np.float32) / np.float32(255) * np.float32(2) - np.float32(1)


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


cdef inline bint in_integers(const Operand operand) noexcept nogil:
    return operand == INT8 or operand == INT16


cdef inline void store_integers(float* row, long c, vec value, const Operand operand) noexcept nogil:
    """row[c : c + VL] = value, rounded to 8-bit integers."""
    if operand == INT8:
        store_bytes(<unsigned char*>row + c, value)
    else:
        store_shorts(<unsigned short*>row + c, value)


cdef inline void store_input(const LayerInput* from_, long n, float* row, long c, vec value,
                             const Operand operand) noexcept nogil:
    """row[c : c + VL] = value of image n, as the layer's operand."""
    if in_integers(operand):
        value = fused(value, (<const vec*>(from_.factors + n * from_.depth + c))[0], (<const vec*>(from_.zeros + c))[0])
        store_integers(row, c, value, operand)
    else:
        store(row, c, value, operand == BFLOAT16)


cdef inline void store_zeros(const LayerInput* from_, float* row, long pixels) noexcept nogil:
    """That many pixels of zeros."""
    cdef long x, c
    if not in_integers(from_.operand):
        memset(row, 0, pixels * from_.pixel * sizeof(float))
        return
    for x in range(pixels):
        for c in range(from_.depth // VL):
            store_integers(row + x * from_.pixel, c * VL, (<const vec*>(from_.zeros + c * VL))[0], from_.operand)


cdef inline vec value_at(const Source* s, long n, const float* pixel, long c, const bint half) noexcept nogil:
    """leaky_relu((raw[c] - mean[n,c]) * scale[n,c] + shift[c]) for VL channels of a pixel."""
    cdef long at = n * s.channels + c
    cdef vec v = value_of(load_channels(pixel, c, half), s.mean + at, s.scale + at, s.shift + c)
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
        elif from_.operand == INT16:
            read_as(from_, s, n, pixel, out, c, INT16)
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
    if padding == PAD_REFLECT:  # further out than it can reflect, no output needs what is read
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
