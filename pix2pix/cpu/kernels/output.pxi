"""The last layer: a convolution of stride 1, or a transposed one, to few channels; tanh, and the conversion to 8 bits.

A convolution of stride 1 is the transposed one with its kernel turned round, on the padded input. Along each axis, an
output has a position m and a phase r, output + lead = scale * m + r, and is the sum over t >= 0 of

    input[m - t] * kernel[r + scale * t]

There are too few filters to fill a panel, so the columns of the product are pairs (horizontal tap b, filter). For the
output row at position m and phase r, one product sums the vertical taps in every column j of the input:

    Y[j][b, filter] = sum over t of X[m - t, j] @ W[r + scale * t, b]

Then the horizontal taps are summed for each pixel of the row (col2im), with its position q and phase s among columns:

    out[filter] = bias[filter] + sum over t of Y[q - t][s + scale * t, filter]

The work is divided into strips: some output rows by some output columns. A ring buffer holds the input rows that a row
of the strip reads; it fits the second-level cache. How strips are cut changes no bit of the result.
"""

cdef enum:
    STRIP_BYTES = 512 * 1024    # of a strip's input and products, at most, if that leaves it STRIP_COLUMNS
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
    long[2] end                 # of the input's rows and columns, with padding
    long positions              # that output rows have
    long rows, columns          # of a strip; rows count positions
    long down, across           # strips of an image


cdef struct Strip:
    # of one image, the output rows at positions m0 <= m < m1 and columns x0 <= x < x1; it reads columns j0 <= j < j1
    long image, m0, m1, x0, x1, j0, j1


cdef class OutputConvolution(Sampled):
    """The last layer's packed weights. spec: a ConvolutionSpec; W: [group][panel][t][word][NR].

    operand: what X and W hold. tanh: whether the result goes through it. One product computes a *group* of phases of
    rows, its columns are (phase, b, filter). All phases are one group if they have equally many taps. Otherwise each is
    one by itself: a weight of 0 in place of a missing tap would make NaN of an infinite input.
    """
    cdef readonly bint tiles, tanh
    cdef readonly Operand operand
    cdef readonly long depth, words, channels, columns, panels
    cdef long kernel, group     # taps along each axis; phases of a group
    cdef long[MAX_SCALE] count  # taps of each phase along an axis, no more than those of phase 0
    cdef long[4] lead           # top, left, bottom, right: what the transposed convolution's output loses
    cdef long[2] outside        # rows and columns before the map's first that are read
    cdef float[::1] weights, bias, zeros

    def __init__(self, spec, bint tanh):
        Sampled.__init__(self, spec)
        cdef const float[:, :, :, ::1] kernel = spec.kernel
        cdef long a
        self.channels = kernel.shape[2] if self.transposed else kernel.shape[3]
        self.kernel, self.tanh = kernel.shape[0], tanh
        self.group = self.scale if self.kernel % self.scale == 0 else 1
        self.columns = padded(self.group * self.kernel * self.channels)
        self.panels = (self.columns + NR - 1) // NR
        self.operand, self.tiles = operand_of(spec), spec.tiles
        for a in range(self.scale):
            self.count[a] = (self.kernel - a + self.scale - 1) // self.scale
        for a in range(4):
            self.lead[a] = self.padding[a] if self.transposed else self.kernel - 1 - self.padding[a]
        for a in range(2):
            self.outside[a] = 0 if self.transposed else self.padding[a]
        self.bias, self.zeros = widened(spec.bias, padded(self.channels), 0.0), aligned(self.panels * NR)
        self.pack(kernel, joined_channels(spec.channels, VL, spec.adds))

    cdef pack(self, const float[:, :, :, ::1] kernel, const long[::1] where):
        """Pack the weights. where: which channel each number of a pixel holds, see `joined_channels`."""
        cdef long k, a, b, c, r, column
        cdef float* panel
        self.depth = where.shape[0]
        self.words = self.depth // ELEMENTS[<int>self.operand]
        self.weights = aligned(self.scale // self.group * self.panels * self.panel_words())
        for k in range(self.depth):
            for a in range(self.kernel if where[k] >= 0 else 0):
                r = a % self.scale
                for b in range(self.kernel):
                    for c in range(self.channels):
                        column = (r % self.group * self.kernel + b) * self.channels + c
                        panel = self.panel_weights(r // self.group, column // NR)
                        set_weight(panel + a // self.scale * self.words * NR, k, column % NR,
                                   self.weight(kernel, a, b, c, where[k]), self.operand)

    cdef inline long panel_words(self) noexcept nogil:
        """Words of a panel of W."""
        return self.count[0] * self.words * NR

    cdef inline float* panel_weights(self, long group, long panel) noexcept nogil:
        """The weights of one panel of a group."""
        return &self.weights[(group * self.panels + panel) * self.panel_words()]

    cdef float weight(self, const float[:, :, :, ::1] kernel, long a, long b, long filter, long channel) noexcept nogil:
        """The weight of tap (a, b), as a transposed convolution counts them."""
        if self.transposed:
            return kernel[a, b, filter, channel]
        return kernel[self.kernel - 1 - a, self.kernel - 1 - b, channel, filter]

    cdef void set_strips(self, OutputCall* call, long n, long h, long w, long threads) noexcept nogil:
        """Cut n images of h x w input pixels into strips, at least four for each thread."""
        cdef long least, column = self.count[0] * (self.words + SKEW) + self.columns
        call.end[0], call.end[1] = h, w
        call.h, call.w = self.scale * h, self.scale * w
        if not self.transposed:
            call.end[0], call.end[1] = h + self.padding[2], w + self.padding[3]
            call.h, call.w = call.end[0] - self.lead[0], call.end[1] - self.lead[1]
        call.positions = self.position(call.h - 1, 0) - self.position(0, 0) + 1
        call.columns = max(STRIP_BYTES // (4 * column) * self.scale, <long>STRIP_COLUMNS)
        call.across = (call.w + call.columns - 1) // call.columns
        call.columns = (call.w + call.across - 1) // call.across
        least = (4 * threads + n * call.across - 1) // (n * call.across)
        call.rows = (call.positions + least - 1) // least
        call.down = (call.positions + call.rows - 1) // call.rows

    cdef inline long position(self, long output, long axis) noexcept nogil:
        """The position of an output row (axis 0) or column (axis 1)."""
        return (output + self.lead[axis]) // self.scale

    cdef long ring_words(self, const OutputCall* call) noexcept nogil:
        """Words of a strip's input rows, at most."""
        return self.count[0] * self.most_inputs(call) * (self.words + SKEW)

    cdef long most_inputs(self, const OutputCall* call) noexcept nogil:
        """Input columns of a strip, at most."""
        return call.columns // self.scale + self.count[0]

    cdef long strip_floats(self, const OutputCall* call) noexcept nogil:
        """Floats of scratch of a strip. Vectors of products and of the output go on for up to VL beyond the last."""
        cdef long size = self.ring_words(call) + self.most_inputs(call) * self.columns + call.columns * self.channels
        return (size + 3 * VL - 1) // VL * VL

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

    cdef Strip strip_at(self, const OutputCall* call, long index) noexcept nogil:
        """The strip of that index over all images."""
        cdef Strip s
        s.image = index // (call.down * call.across)
        s.m0 = self.position(0, 0) + index // call.across % call.down * call.rows
        s.m1 = min(s.m0 + call.rows, self.position(0, 0) + call.positions)
        s.x0 = index % call.across * call.columns
        s.x1 = min(s.x0 + call.columns, call.w)
        s.j0 = max(self.position(s.x0, 1) - self.count[0] + 1, -self.outside[1])
        s.j1 = min(self.position(s.x1 - 1, 1) + 1, call.end[1])
        return s

    cdef void run_strip(self, const OutputCall* call, long index, float* ring) noexcept nogil:
        """One strip, row by row."""
        cdef Strip s = self.strip_at(call, index)
        cdef float* products = ring + self.ring_words(call)
        cdef float* line = products + self.most_inputs(call) * self.columns + VL
        cdef long next = max(s.m0 - self.count[0] + 1, -self.outside[0]), m, r, y
        for m in range(s.m0, s.m1):
            while next <= min(m, call.end[0] - 1):
                read_row(&call.input, s.image, next, s.j0, s.j1, self.row_at(call, &s, next, ring))
                next = next + 1
            for r in range(self.scale):
                if r % self.group == 0:
                    self.multiply(call, &s, m, r, ring, products)
                y = self.scale * m + r - self.lead[0]
                if 0 <= y < call.h:
                    self.gather(&s, products + r % self.group * self.kernel * self.channels, line)
                    self.write(call, (s.image * call.h + y) * call.w + s.x0, (s.x1 - s.x0) * self.channels, line)

    cdef inline float* row_at(self, const OutputCall* call, const Strip* s, long i, float* ring) noexcept nogil:
        """Where the ring holds row i of the input."""
        return ring + (i + self.outside[0]) % self.count[0] * (s.j1 - s.j0) * call.input.pixel

    cdef void multiply(self, const OutputCall* call, const Strip* s, long m, long phase, float* ring,
                       float* out) noexcept nogil:
        """out[j - j0][phase, b, filter] = Y of the output rows at position m, of the group that begins with `phase`.

        Taps that meet no row are left out. A transposed convolution with output padding may have a row without taps.
        """
        cdef long[2 * MAX_KERNEL] taps
        cdef long t
        cdef Product p
        p.operand, p.tiles, p.taps, p.tap_count, p.depth = self.operand, self.tiles, taps, 0, self.words
        for t in range(max(0, m - call.end[0] + 1), min(self.count[phase], m + self.outside[0] + 1)):
            taps[2 * p.tap_count] = self.row_at(call, s, m - t, ring) - ring
            taps[2 * p.tap_count + 1] = t * self.words * NR
            p.tap_count = p.tap_count + 1
        if p.tap_count == 0:
            memset(out, 0, (s.j1 - s.j0) * self.columns * sizeof(float))
            return
        p.a, p.a_stride, p.lines, p.rows, p.a_line, p.c_line = ring, call.input.pixel, 1, s.j1 - s.j0, 0, 0
        p.b, p.b_panel, p.vectors = self.panel_weights(phase // self.group, 0), self.panel_words(), self.columns // VL
        p.start, p.c, p.c_stride, p.fetch = &self.zeros[0], out, self.columns, False
        multiply_rows(&p, NULL)

    cdef void gather(self, const Strip* s, const float* products, float* line) noexcept nogil:
        """line[x - x0][filter] = the output before tanh, of the row whose Y is in `products`.

        What a vector holds beyond the last filter is written too; the next pixel overwrites it.
        """
        cdef long channels = self.channels, scale = self.scale, next = scale * channels - self.columns
        cdef long j0 = s.j0, j1 = s.j1, q = self.position(s.x0, 1), r = s.x0 + self.lead[1] - scale * q
        cdef long x, t, first, last, c
        cdef const float* bias = &self.bias[0]
        cdef const float* from_
        cdef vec sum
        for x in range(s.x1 - s.x0):
            first, last = max(0, q - j1 + 1), min(self.count[r], q - j0 + 1)
            c = 0
            while c < channels:
                from_ = products + (q - j0) * self.columns + r * channels + first * next + c
                sum = (<const vec*>(bias + c))[0]
                for t in range(first, last):
                    sum = sum + (<const vec*>from_)[0]
                    from_ = from_ + next
                (<vec*>(line + x * channels + c))[0] = sum
                c = c + VL
            r = r + 1
            if r == scale:
                q, r = q + 1, 0

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
