"""The last layer: a convolution of stride 1, or a transposed one, to few channels; tanh, and the conversion to 8 bits.

There are too few filters to fill a panel, so all taps of all filters are the columns of one product Y = X @ W, pixel by
pixel. Then each output row is gathered (col2im): with i the input's rows, j its columns, and taps (a, b) counted from
the one that meets the first output,

    line[scale * j + b - lead] += sum over the i with scale * i + a - lead == y of Y[i, j][a, b]

A convolution of stride 1 is the transposed one with its kernel turned round, on the padded input.

The work is divided into strips: some output rows by some output columns, whose products fit the second-level cache.
Strips compute their neighbours' pixels again at the edges. How they are cut changes no bit of the result.
"""

cdef enum:
    STRIP_BYTES = 512 * 1024    # of a strip's products, at most, if that leaves it STRIP_COLUMNS
    STRIP_COLUMNS = 32          # of the output


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
    long h, w                   # of the output
    long rows, columns          # of a strip
    long down, across           # strips of an image


cdef struct Strip:
    # the output y0 <= y < y1, x0 <= x < x1 of one image, and the input columns j0 <= j < j1 that it needs
    long image, y0, y1, x0, x1, j0, j1


cdef class OutputConvolution(Sampled):
    """The last layer's packed weights. spec: a ConvolutionSpec; W: [panel][word][NR].

    A column of Y is (tap, filter). operand: what X and W hold. tanh: whether the result goes through it.
    """
    cdef readonly bint tiles, tanh
    cdef readonly Operand operand
    cdef readonly long depth, words, channels, columns, panels
    cdef long kernel, ring      # taps along each axis; the rows of products that an output row needs at most
    cdef long[4] lead           # top, left, bottom, right: what the transposed convolution's output loses
    cdef long[2] outside        # rows and columns before the map's first that are read
    cdef float[::1] weights, bias

    def __init__(self, spec, bint tanh):
        Sampled.__init__(self, spec)
        cdef const float[:, :, :, ::1] kernel = spec.kernel
        cdef long k, a, b, c, column
        cdef const long[::1] where = joined_channels(spec.channels, VL, spec.adds)
        self.channels = kernel.shape[2] if self.transposed else kernel.shape[3]
        self.kernel, self.tanh = kernel.shape[0], tanh
        self.columns = padded(self.kernel * self.kernel * self.channels)
        self.panels = (self.columns + NR - 1) // NR
        self.operand, self.tiles = BFLOAT16 if spec.bfloat16 else FLOAT32, spec.tiles
        self.depth = where.shape[0]
        self.words = self.depth // ELEMENTS[<int>self.operand]
        self.ring = (self.kernel + self.scale - 1) // self.scale
        for a in range(4):
            self.lead[a] = self.padding[a] if self.transposed else self.kernel - 1 - self.padding[a]
        for a in range(2):
            self.outside[a] = 0 if self.transposed else self.padding[a]
        self.weights = aligned(self.panels * self.words * NR)
        self.bias = widened(spec.bias, padded(self.channels), 0.0)
        for k in range(self.depth):
            for a in range(self.kernel if where[k] >= 0 else 0):
                for b in range(self.kernel):
                    for c in range(self.channels):
                        column = (a * self.kernel + b) * self.channels + c
                        set_weight(&self.weights[column // NR * self.words * NR], k, column % NR,
                                   self.weight(kernel, a, b, c, where[k]), self.operand)

    cdef float weight(self, const float[:, :, :, ::1] kernel, long a, long b, long filter, long channel) noexcept nogil:
        """The weight of tap (a, b), as a transposed convolution counts them."""
        if self.transposed:
            return kernel[a, b, filter, channel]
        return kernel[self.kernel - 1 - a, self.kernel - 1 - b, channel, filter]

    cdef void set_strips(self, OutputCall* call, long n, long h, long w, long threads) noexcept nogil:
        """Cut n images of h x w input pixels into strips, at least four for each thread."""
        cdef long least
        call.h, call.w = self.scale * h, self.scale * w
        if not self.transposed:
            call.h = h + self.padding[0] + self.padding[2] - self.kernel + 1
            call.w = w + self.padding[1] + self.padding[3] - self.kernel + 1
        call.columns = max(STRIP_BYTES // (4 * self.ring * self.columns) * self.scale, <long>STRIP_COLUMNS)
        call.across = (call.w + call.columns - 1) // call.columns
        call.columns = (call.w + call.across - 1) // call.across
        least = (4 * threads + n * call.across - 1) // (n * call.across)
        call.rows = (call.h + least - 1) // least
        call.rows = (call.rows + self.scale - 1) // self.scale * self.scale
        call.down = (call.h + call.rows - 1) // call.rows

    cdef long most_inputs(self, const OutputCall* call) noexcept nogil:
        """Input columns of a strip, at most."""
        return call.columns // self.scale + self.ring + 1

    cdef long strip_floats(self, const OutputCall* call) noexcept nogil:
        return (BLOCK_COLUMNS * (self.words + SKEW) + self.ring * self.most_inputs(call) * self.columns
                + (self.scale * self.most_inputs(call) + self.kernel) * self.channels + 2 * VL)

    def scratch(self, long n, long h, long w, long threads) -> int:
        """Floats of scratch that `run` needs for n inputs of h x w."""
        cdef OutputCall call
        self.set_strips(&call, n, h * self.how.upsample, w * self.how.upsample, threads)
        return threads * self.strip_floats(&call)

    def run(self, sources, target, float output_scale, float[::1] scratch, long threads):
        """Compute the image into `target` (N,H,W,C), float32 in [-1,1] or uint8, without holding the GIL."""
        cdef OutputCall call
        cdef float[:, :, :, ::1] floats = target if target.dtype == np.float32 else None
        cdef unsigned char[:, :, :, ::1] bytes = target if target.dtype == np.uint8 else None
        cdef long n = target.shape[0], item
        call.floats = &floats[0, 0, 0, 0] if floats is not None else NULL
        call.bytes = &bytes[0, 0, 0, 0] if bytes is not None else NULL
        call.scale = output_scale
        read_sources(sources, False, &self.how, &call.input)
        call.input.operand, call.input.pixel = self.operand, self.words + SKEW
        self.set_strips(&call, n, call.input.h, call.input.w, threads)
        with nogil:
            for item in prange(n * call.down * call.across, num_threads=threads, schedule="dynamic"):
                self.run_strip(&call, item, &scratch[threadid() * self.strip_floats(&call)])

    cdef void run_strip(self, const OutputCall* call, long index, float* work) noexcept nogil:
        """One strip, row by row."""
        cdef Strip s
        cdef long y, i, first, next, last, width, size = self.channels
        cdef float* products = work + BLOCK_COLUMNS * call.input.pixel     # of `ring` input rows, by turns
        cdef float* line
        s.image = index // (call.down * call.across)
        s.y0, s.x0 = index // call.across % call.down * call.rows, index % call.across * call.columns
        s.y1, s.x1 = min(s.y0 + call.rows, call.h), min(s.x0 + call.columns, call.w)
        s.j0 = max(self.first_input(s.x0, 1), -self.outside[1])
        s.j1 = self.last_input(s.x1 - 1, 1, call.input.w) + 1
        width = (s.j1 - s.j0) * self.columns
        line = products + self.ring * width
        next = self.first_input(s.y0, 0)
        for y in range(s.y0, s.y1):
            first, last = self.first_input(y, 0), self.last_input(y, 0, call.input.h)
            next = max(next, max(first, -self.outside[0]))
            for i in range(next, last + 1):
                self.multiply_row(call, &s, i, work, products + (i + self.ring) % self.ring * width)
            next = max(next, last + 1)
            self.gather(&s, y, max(first, -self.outside[0]), last, products, width, line)
            self.write(call, (s.image * call.h + y) * call.w + s.x0, (s.x1 - s.x0) * size,
                       line + (s.x0 - self.scale * s.j0 + self.lead[1]) * size)

    cdef inline long first_input(self, long y, long axis) noexcept nogil:
        """The first input row, or column, that output y reads: the least i with scale * i + kernel - 1 - lead >= y."""
        cdef long reach = y + self.lead[axis] - self.kernel + 1
        return -(-reach // self.scale) if reach < 0 else (reach + self.scale - 1) // self.scale

    cdef inline long last_input(self, long y, long axis, long size) noexcept nogil:
        """The last one: the greatest i with scale * i - lead <= y, as far as there are any."""
        cdef long most = size - 1 + (0 if self.transposed else self.padding[axis + 2])
        return min((y + self.lead[axis]) // self.scale, most)

    cdef void multiply_row(self, const OutputCall* call, const Strip* s, long y, float* a, float* out) noexcept nogil:
        """out[j][tap, filter] = the strip's columns of input row y @ W."""
        cdef long x = s.j0, panel
        cdef Product p
        p.operand, p.tiles, p.taps, p.tap_count, p.depth = self.operand, self.tiles, ONE_TAP, 1, self.words
        p.a, p.a_stride = a, call.input.pixel
        p.lines, p.a_line, p.c_line = 1, 0, 0
        p.start, p.c_stride, p.b_panel, p.fetch = ZEROS, self.columns, 0, False
        while x < s.j1:
            p.rows = min(<long>BLOCK_COLUMNS, s.j1 - x)
            read_row(&call.input, s.image, y, x, x + p.rows, a)
            for panel in range(self.panels):
                p.vectors = panel_vectors(self.columns, panel)
                p.b, p.c = &self.weights[panel * self.words * NR], out + (x - s.j0) * self.columns + panel * NR
                multiply_rows(&p, NULL)
            x = x + p.rows

    cdef void gather(self, const Strip* s, long y, long first, long last, const float* products, long width,
                     float* line) noexcept nogil:
        """Output row y: line[scale * (j - j0) + b] = bias + the sums of all j, by j."""
        cdef long size = self.kernel * self.channels, vectors = (size + VL - 1) // VL, j, i, v, c
        cdef long tap = (y + self.lead[0] - self.scale * first) * size
        cdef const float* row
        cdef float* to
        cdef vec sum
        for j in range(self.scale * (s.j1 - s.j0) + self.kernel):
            for c in range(self.channels):
                line[j * self.channels + c] = self.bias[c]
        for j in range(s.j1 - s.j0):
            to = line + self.scale * j * self.channels
            for v in range(vectors):
                sum = splat(0)
                for i in range(first, last + 1):
                    row = products + (i + self.ring) % self.ring * width + j * self.columns
                    row = row + tap - self.scale * (i - first) * size + v * VL
                    sum = (<const vec*>row)[0] if i == first else sum + (<const vec*>row)[0]
                if v == vectors - 1:
                    sum = first_lanes(sum, size - v * VL)
                (<vec*>(to + v * VL))[0] = (<vec*>(to + v * VL))[0] + sum

    cdef void write(self, const OutputCall* call, long pixel, long size, const float* x) noexcept nogil:
        """`size` numbers of the output, from that pixel on, through tanh or as they are."""
        cdef long at = pixel * self.channels
        if call.bytes != NULL:
            if self.tanh:
                tanh_to_bytes(x, size, call.scale, call.bytes + at)
            else:
                plain_to_bytes(x, size, call.scale, call.bytes + at)
        elif self.tanh:
            tanh_to_floats(x, size, call.floats + at)
        else:
            memcpy(call.floats + at, x, size * sizeof(float))


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


cdef void plain_to_bytes(const float* x, long size, float scale, unsigned char* out) noexcept nogil:
    """out = trunc(clip((x + 1) / 2 * scale, 0, 255))"""
    cdef long i
    cdef float y
    for i in range(size):
        y = (x[i] + <float>1.0) * <float>0.5 * scale
        y = y if y < <float>255.0 else <float>255.0
        out[i] = <unsigned char><int>(y if y > 0 else <float>0.0)
