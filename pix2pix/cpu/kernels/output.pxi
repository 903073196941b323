"""The last layer: a transposed convolution to few channels, tanh, and the conversion to 8 bits.

Supports a kernel of 4 x 4 taps, stride 2, padding 1. There are too few filters to fill a panel, so all taps of all
filters are the columns of one product Y = X @ W, pixel by pixel. Each output pixel then adds up the PHASE_SIZE x
PHASE_SIZE columns that are its own (col2im), row by row.
"""

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


cdef struct OutputCall:
    # one call of the last layer: what it reads, and where its results lie, of which one is NULL
    LayerInput input
    float* floats
    unsigned char* bytes
    float scale                 # of 8-bit results


cdef class OutputConvolution:
    """The last layer's packed weights. spec: a ConvolutionSpec; W: [panel][word][NR].

    A column of Y is (tap, filter). bfloat16: X and W are bfloat16.
    """
    cdef readonly bint bfloat16
    cdef readonly long depth, words, channels, columns, panels
    cdef float[::1] weights, bias

    def __init__(self, spec):
        cdef const float[:, :, :, ::1] kernel = spec.kernel
        cdef long k, tap, c, column
        cdef const long[::1] where = joined_channels(spec.channels, False)
        self.channels = kernel.shape[2]
        self.columns = padded(TAPS * self.channels)
        self.panels = (self.columns + NR - 1) // NR
        self.bfloat16, self.depth = spec.bfloat16, where.shape[0]
        self.words = self.depth // 2 if self.bfloat16 else self.depth
        self.weights = aligned(self.panels * self.words * NR)
        bias = None if spec.bias is None else np.tile(spec.bias, STRIDE)
        self.bias = widened(bias, padded(STRIDE * self.channels), 0.0)
        for k in range(self.depth):
            for tap in range(TAPS if where[k] >= 0 else 0):
                for c in range(self.channels):
                    column = tap * self.channels + c
                    set_weight(&self.weights[column // NR * self.words * NR], k, column % NR,
                               kernel[tap // KERNEL_SIZE, tap % KERNEL_SIZE, c, where[k]], self.bfloat16)

    cdef long rows_of(self, long n, long h, long threads) noexcept nogil:
        """Input rows of a strip: few enough to leave each thread four strips. A strip computes a neighbour's row again
        at either end."""
        cdef long strips = (4 * threads + n - 1) // n
        return (h + strips - 1) // strips

    cdef long strip_floats(self, long w) noexcept nogil:
        return (BLOCK_COLUMNS * (self.words + SKEW) + STRIDE * w * self.columns
                + (STRIDE * w + 2 * PADDING) * self.channels + 2 * VL)

    def scratch(self, long n, long h, long w, long threads) -> int:
        """Floats of scratch that `run` needs for n inputs of h x w."""
        return threads * self.strip_floats(w)

    def run(self, sources, target, float output_scale, float[::1] scratch, long threads):
        """Compute the image into `target` (N,2H,2W,C), float32 in [-1,1] or uint8, without holding the GIL."""
        cdef OutputCall call
        cdef float[:, :, :, ::1] floats = target if target.dtype == np.float32 else None
        cdef unsigned char[:, :, :, ::1] bytes = target if target.dtype == np.uint8 else None
        cdef long n = target.shape[0], item, rows, strips
        call.floats = &floats[0, 0, 0, 0] if floats is not None else NULL
        call.bytes = &bytes[0, 0, 0, 0] if bytes is not None else NULL
        call.scale = output_scale
        read_sources(sources, False, &call.input)
        call.input.bfloat16, call.input.pixel = self.bfloat16, self.words + SKEW
        rows = self.rows_of(n, call.input.h, threads)
        strips = (call.input.h + rows - 1) // rows
        with nogil:
            for item in prange(n * strips, num_threads=threads, schedule="dynamic"):
                self.run_strip(&call, item // strips, item % strips * rows, rows,
                               &scratch[threadid() * self.strip_floats(call.input.w)])

    cdef void run_strip(self, const OutputCall* call, long image, long begin, long rows, float* work) noexcept nogil:
        """The output of the input rows begin .. begin + rows of one image."""
        cdef long h = call.input.h, w = call.input.w, end = min(begin + rows, h), width = w * self.columns, i, r, y
        cdef float* products = work + BLOCK_COLUMNS * call.input.pixel     # of two input rows, by turns
        cdef float* line = products + 2 * width
        cdef long size = STRIDE * w * self.channels, taps = KERNEL_SIZE * self.channels, at
        for i in range(begin - 1, end + 1):
            self.multiply_row(&call.input, image, i, work, products + (i & 1) * width)
            for r in range(PADDING, -1, -1):  # the output rows that input row i completes
                y = STRIDE * i - r
                if y < STRIDE * begin or y >= STRIDE * end:
                    continue
                self.gather(w, products + ((i - 1) & 1) * width + (PADDING - r + STRIDE) * taps,
                            products + (i & 1) * width + (PADDING - r) * taps, line)
                at = (image * STRIDE * h + y) * size
                if call.bytes != NULL:
                    tanh_to_bytes(line + PADDING * self.channels, size, call.scale, call.bytes + at)
                else:
                    tanh_to_floats(line + PADDING * self.channels, size, call.floats + at)

    cdef void multiply_row(self, const LayerInput* layer_input, long image, long y, float* a,
                           float* out) noexcept nogil:
        """out[x][tap, filter] = input row y @ W; zero outside the map."""
        cdef long w = layer_input.w, x = 0, panel
        cdef Product p
        if y < 0 or y >= layer_input.h:
            memset(out, 0, w * self.columns * sizeof(float))
            return
        p.bfloat16, p.taps, p.tap_count, p.depth = self.bfloat16, ONE_TAP, 1, self.words
        p.a, p.a_stride = a, layer_input.pixel
        p.init, p.init_stride, p.c_stride = ZEROS, 0, self.columns
        while x < w:
            p.rows = min(<long>BLOCK_COLUMNS, w - x)
            read_row(layer_input, image, y, x, x + p.rows, a)
            for panel in range(self.panels):
                p.vectors = panel_vectors(self.columns, panel)
                p.b, p.c = &self.weights[panel * self.words * NR], out + x * self.columns + panel * NR
                multiply_rows(&p, NULL)
            x = x + p.rows

    cdef void gather(self, long w, const float* above, const float* below, float* line) noexcept nogil:
        """line[2x + b] = bias + sum of above[x][b] and below[x][b], b < 4: an output row with a pixel of padding at
        either end.

        above, below: the columns of Y, for the kernel's row that applies, of the two input rows that the output row
        reads. Two pixels of the line are written at a time; pixel x - 1 adds its last two columns to them, and pixel x
        its first two. A vector that is wider than two pixels also writes rubbish, which the next two pixels replace.
        """
        cdef long x, c, i, pair = STRIDE * self.channels
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
    """out = trunc(clip((tanh(x) + 1) / 2 * scale, 0, 255))"""
    cdef long i
    cdef float y
    for i in range(size):
        y = (tanh_of(x[i]) + <float>1.0) * <float>0.5 * scale
        out[i] = <unsigned char><int>(y if y < <float>255.0 else <float>255.0)
