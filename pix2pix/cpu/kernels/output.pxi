"""The last layer: a transposed convolution to few channels, tanh, and the conversion to 8 bits."""

cdef inline float tanh_of(float x) noexcept nogil:
    """x P(x^2) / Q(x^2), fitted to tanh on [-9, 9] by weighted least squares to 2.1e-8 (4e-7 in float32).

    Comparisons are such that NaN stays NaN.
    """
    cdef float limit = 9.0, z, u, p, q, y
    z = limit if x > limit else x
    z = -limit if z < -limit else z
    u = z * z
    p = (((<float>1.3354655e-8 * u + <float>2.060909e-5) * u + <float>3.4955891e-3) * u + <float>0.13381027) * u
    q = (((<float>7.7765594e-7 * u + <float>3.2856362e-4) * u + <float>2.5876988e-2) * u + <float>0.46714342) * u
    y = z * (p + <float>1.0) / (q + <float>1.0)
    y = <float>1.0 if y > <float>1.0 else y
    return <float>-1.0 if y < <float>-1.0 else y


cdef class OutputConvolution:
    """The last layer: a transposed convolution to few channels, tanh, and the conversion to 8 bits.

    Too few filters to fill a panel, so all 16 taps of all filters are the columns of one product Y = X @ W, pixel by
    pixel, and every output pixel gathers its 2x2 taps from there. kernel (4,4,out,in), bias (out) or None. `half`: X
    and W are bfloat16, in pairs, each of which takes the place of a float (a word).
    """
    cdef readonly bint half
    cdef readonly long depth, words, channels, columns, panels
    cdef float[::1] weights, bias

    def __init__(self, const float[:, :, :, ::1] kernel, channels, bias, bint half):
        cdef long k, tap, c, column
        cdef const long[::1] where = joined_channels(channels, False)
        self.channels = kernel.shape[2]
        self.columns = padded(16 * self.channels)
        self.panels = (self.columns + NR - 1) // NR
        self.half, self.depth = half, where.shape[0]
        self.words = self.depth // 2 if half else self.depth
        self.weights = aligned(self.panels * self.words * NR)
        self.bias = widened(None if bias is None else np.tile(bias, 2), padded(2 * self.channels), 0.0)  # of a pair
        for k in range(self.depth):
            for tap in range(16 if where[k] >= 0 else 0):
                for c in range(self.channels):
                    column = tap * self.channels + c
                    set_weight(&self.weights[column // NR * self.words * NR], k, column % NR,
                               kernel[tap // 4, tap % 4, c, where[k]], half)

    cdef long rows_of(self, long n, long h, long threads) noexcept nogil:
        """Input rows of a strip, which repeats a row of either neighbour: as many as leave each thread four strips."""
        cdef long strips = (4 * threads + n - 1) // n
        return (h + strips - 1) // strips

    cdef long strip_floats(self, long w) noexcept nogil:
        return BLOCK_COLUMNS * (self.words + SKEW) + 2 * w * self.columns + (2 * w + 2) * self.channels + 2 * VL

    def scratch(self, long n, long h, long w, long threads) -> int:
        """Floats of scratch that `run` needs for n inputs of h x w."""
        return threads * self.strip_floats(w)

    def run(self, sources, target, float output_scale, float[::1] scratch, long threads):
        """Compute the picture into `target` (N,2H,2W,C), float32 in [-1,1] or uint8, without holding the GIL."""
        cdef Operand operand
        cdef float[:, :, :, ::1] floats = target if target.dtype == np.float32 else None
        cdef unsigned char[:, :, :, ::1] bytes = target if target.dtype == np.uint8 else None
        cdef float* to_floats = &floats[0, 0, 0, 0] if floats is not None else NULL
        cdef unsigned char* to_bytes = &bytes[0, 0, 0, 0] if bytes is not None else NULL
        cdef long n = target.shape[0], item, rows, strips
        read_sources(sources, False, &operand)
        operand.half, operand.pixel = self.half, self.words + SKEW
        rows = self.rows_of(n, operand.h, threads)
        strips = (operand.h + rows - 1) // rows
        with nogil:
            for item in prange(n * strips, num_threads=threads, schedule="dynamic"):
                self.run_strip(&operand, item // strips, item % strips * rows, rows,
                               &scratch[threadid() * self.strip_floats(operand.w)], to_floats, to_bytes, output_scale)

    cdef void run_strip(self, const Operand* operand, long image, long begin, long rows, float* work, float* to_floats,
                        unsigned char* to_bytes, float output_scale) noexcept nogil:
        """The output rows 2 * begin .. 2 * (begin + rows) of one image."""
        cdef long end = min(begin + rows, operand.h), width = operand.w * self.columns, i, r, y
        cdef float* products = work + BLOCK_COLUMNS * operand.pixel     # of two input rows, by turns
        cdef float* line = products + 2 * width
        cdef long size = 2 * operand.w * self.channels, at
        for i in range(begin - 1, end + 1):
            self.multiply_row(operand, image, i, work, products + (i & 1) * width)
            for r in range(1, -1, -1):  # rows 2i-1 and 2i are complete with input row i
                y = 2 * i - r
                if y < 2 * begin or y >= 2 * end:
                    continue
                self.gather(operand.w, products + ((i - 1) & 1) * width + (3 - r) * 4 * self.channels,
                            products + (i & 1) * width + (1 - r) * 4 * self.channels, line)
                at = (image * 2 * operand.h + y) * size
                if to_bytes != NULL:
                    tanh_to_bytes(line + self.channels, size, output_scale, to_bytes + at)
                else:
                    tanh_to_floats(line + self.channels, size, to_floats + at)

    cdef void multiply_row(self, const Operand* operand, long image, long y, float* a, float* out) noexcept nogil:
        """out[x][tap, channel] = input row y @ weights; zero outside the map."""
        cdef long x = 0, width, panel
        cdef Geometry g
        cdef long tap[2]
        if y < 0 or y >= operand.h:
            memset(out, 0, operand.w * self.columns * sizeof(float))
            return
        tap[0] = tap[1] = 0
        g.half, g.depth = self.half, self.words
        while x < operand.w:
            width = min(<long>BLOCK_COLUMNS, operand.w - x)
            read_row(operand, image, y, x, x + width, a)
            for panel in range(self.panels):
                multiply_rows(&g, a, operand.pixel, tap, 0, 1, &self.weights[panel * self.words * NR], ZEROS, 0,
                              out + x * self.columns + panel * NR, self.columns, width,
                              min(2, (self.columns - panel * NR) // VL), 0, NULL, NULL)
            x = x + width

    cdef void gather(self, long w, const float* above, const float* below, float* line) noexcept nogil:
        """line[2x + b] = bias + sum of above[x][b] and below[x][b], b < 4: an output row and a pixel at either end.

        Two pixels of the line at a time, to which x - 1 adds its second half and x its first. What a vector has beyond
        them means nothing, and is written over.
        """
        cdef long x, c, i, pair = 2 * self.channels
        cdef const float* a = above
        cdef const float* b = below
        cdef vec sum
        for c in range(pair):
            line[c] = self.bias[c] + (a[c] + b[c])
        for x in range(1, w):
            for i in range((pair + VL - 1) // VL):
                c = pair + i * VL
                sum = (<const vec*>&self.bias[i * VL])[0] + ((<const vec*>(a + c))[0] + (<const vec*>(b + c))[0])
                c = self.columns + i * VL
                sum = sum + ((<const vec*>(a + c))[0] + (<const vec*>(b + c))[0])
                (<vec*>(line + x * pair + i * VL))[0] = sum
            a, b = a + self.columns, b + self.columns
        for c in range(pair):
            line[w * pair + c] = self.bias[c] + (a[pair + c] + b[pair + c])


cdef void tanh_to_floats(const float* x, long size, float* out) noexcept nogil:
    cdef long i
    for i in range(size):
        out[i] = tanh_of(x[i])


cdef void tanh_to_bytes(const float* x, long size, float scale, unsigned char* out) noexcept nogil:
    """trunc(clip((tanh(x) + 1) / 2 * scale, 0, 255))"""
    cdef long i
    cdef float y
    for i in range(size):
        y = (tanh_of(x[i]) + <float>1.0) * <float>0.5 * scale
        out[i] = <unsigned char><int>(y if y < <float>255.0 else <float>255.0)
