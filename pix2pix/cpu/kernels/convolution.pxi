"""A convolution at one size: which input pixels meet which weights, and how the work is cut into blocks.

All outputs are computed over a *grid*. For a convolution it is the output; every grid position reads a *patch* of as
many pixels as the kernel has taps, `step` pixels from the next. For a transposed convolution it is the input: the
output pixels (scale * y + r, scale * x + s) form the *phase* (r, s), and each phase is a convolution of stride 1 with
some of the taps, so no zeros are inserted. See pix2pix/model/sampling.py, from which the tables of taps come.

A *block* is a rectangle of the grid whose input fits the second-level cache.
"""

cdef enum:
    MAX_SCALE = 2               # of transposed convolutions
    MAX_PHASES = MAX_SCALE * MAX_SCALE
    BLOCK_BYTES = 512 * 1024    # of a block's input, at most
    BLOCK_ROWS = 16             # of a block, at most
    BLOCK_COLUMNS = 64          # of a block, at most


cdef struct Blocking:
    # a grid of h x w positions in each image, cut into down x across blocks of at most rows x columns
    long h, w, rows, columns, down, across


cdef struct Block:
    # the positions y0 <= y < y1, x0 <= x < x1 of one image
    long image, y0, y1, x0, x1


cdef inline Block block_at(const Blocking* grid, long index) noexcept nogil:
    """The block of that index over all images."""
    cdef Block b
    cdef long within = index % (grid.down * grid.across)
    b.image = index // (grid.down * grid.across)
    b.y0 = within // grid.across * grid.rows
    b.x0 = within % grid.across * grid.columns
    b.y1, b.x1 = min(b.y0 + grid.rows, grid.h), min(b.x0 + grid.columns, grid.w)
    return b


cdef struct Axis:
    # along rows or columns: the pixels that the patch of grid position i reads, and the taps that they meet
    long before                 # the patch begins at input pixel step * i - before
    long patch                  # pixels of the patch, for all phases together
    long start[MAX_SCALE]       # for each phase: the patch's pixel that its first tap meets,
    long count[MAX_SCALE]       # how many taps it has; they meet neighbouring pixels
    long tap[MAX_SCALE]         # where the first one is in the kernel,
    long next                   # and how far from each the next one is there


cdef Axis axis_of(phases):
    """The axis along which each phase has those pairs (offset from step * i, index in the kernel)."""
    cdef Axis axis
    cdef long r
    offsets = [offset for taps in phases for offset, _ in taps]
    axis.before, axis.patch = -min(offsets), max(offsets) - min(offsets) + 1
    axis.next = max([taps[1][1] - taps[0][1] for taps in phases if len(taps) > 1], default=1, key=abs)
    for r, taps in enumerate(phases):
        axis.start[r], axis.count[r], axis.tap[r] = taps[0][0] + axis.before, len(taps), taps[0][1]
    return axis


cdef struct Geometry:
    # one layer at one size; lengths in pixels unless stated
    long n, h, w                # input, enlarged
    long out_h, out_w, filters  # output
    Blocking grid
    long phases                 # of the output: scale^2
    long scale                  # output rows per row of the grid
    long step                   # input rows from one position of the grid to the next
    Axis down, across           # patches along rows and columns
    Operand operand             # as what the input is read
    bint tiles                  # whether AMX multiplies
    bint half                   # whether the output is float16
    bint finds_range            # whether the least and the largest sums are found
    long pixel, line            # words from one pixel, and one row, to the next where the input is read to
    # direct convolution only: the taps that meet the map at all, for each phase (see Product)
    long depth, per_pass        # words of a tap; taps that are used before the next are begun
    long tap_count[MAX_PHASES]
    long taps[MAX_PHASES][2 * MAX_TAPS]


cdef struct Call:
    # one call of a layer: what it reads, and where its results and its scratch lie
    const LayerInput* input
    float* out                  # (N, out_h, out_w, filters), float32 or float16
    float* moments              # of the parts of all images, in order
    const float* steps          # of the 8-bit integers of each image: see `set_factors`
    float* work
    long threads


cdef inline long covered(const Geometry* g, const Axis* axis, long count) noexcept nogil:
    """Input rows, or columns, that `count` neighbouring patches cover."""
    return g.step * (count - 1) + axis.patch


cdef inline long input_words(const Geometry* g, long rows, long columns) noexcept nogil:
    """Words of the input that rows x columns of the grid read."""
    return covered(g, &g.down, rows) * (covered(g, &g.across, columns) * g.pixel + SKEW)


cdef inline float* image_of(const Geometry* g, const Call* call, long image) noexcept nogil:
    """The output of one image."""
    return call.out + image * g.out_h * g.out_w * words_of(g.filters, g.half)


cdef class Sampled:
    """How any layer samples its input; from a :class:`pix2pix.cpu.convolution.ConvolutionSpec`."""
    cdef readonly bint transposed, reads_image
    cdef readonly long phases
    cdef long scale, step
    cdef Axis down, across
    cdef long[4] padding        # top, left, bottom, right
    cdef Reading how

    def __init__(self, spec):
        sampling = spec.sampling
        self.transposed, self.reads_image = sampling.transposed, spec.reads_image
        self.scale, self.step, self.padding = sampling.scale, sampling.step, sampling.padding
        phases = sampling.phases
        self.phases = len(phases)
        self.down = axis_of([sorted({(t.dy, t.ky) for t in p.taps}) for p in phases if p.column == 0])
        self.across = axis_of([sorted({(t.dx, t.kx) for t in p.taps}) for p in phases if p.row == 0])
        self.how.padding, self.how.adds = PADDING_MODES[sampling.padding_mode], spec.adds
        self.how.upsample, self.how.upsampling = sampling.upsample, UPSAMPLINGS[sampling.upsample_mode]

    cdef void set_grid(self, Geometry* g, long n, long h, long w) noexcept nogil:
        """The sizes of the layer for n inputs of h x w."""
        g.n, g.h, g.w, g.phases = n, h * self.how.upsample, w * self.how.upsample, self.phases
        g.step, g.scale, g.down, g.across = self.step, self.scale, self.down, self.across
        g.grid.h, g.grid.w = g.h, g.w
        if not self.transposed:
            g.grid.h = (g.h + self.padding[0] + self.padding[2] - g.down.patch) // g.step + 1
            g.grid.w = (g.w + self.padding[1] + self.padding[3] - g.across.patch) // g.step + 1
        g.out_h, g.out_w = g.scale * g.grid.h, g.scale * g.grid.w


cdef class Convolution(Sampled):
    """A layer's packed weights. Subclasses pack them, and compute the layer, by one algorithm each.

    operand: as what the layer's input is read. half: whether its output is float16. `shift`: what is added to a
    normalised map, its beta.
    """
    cdef readonly bint norm, tiles, half, finds_range
    cdef readonly long group                    # channels that are normalised together
    cdef readonly Operand operand
    cdef readonly long depth, words, filters    # depth: channels of a pixel with padding; words: of a pixel
    cdef readonly float[::1] shift
    cdef float[::1] weights, bias, gamma, eps
    # for each filter: by what its weights are multiplied when they are packed, one over the unit of its sums; the unit
    # of its values where a residual is added
    cdef float[::1] weight_factors, value_units
    # of 8-bit integers: the unit of each filter's sums; for each channel, its zero, one over the unit of the input, and
    # over the ends of the range that the integers cover
    cdef float[::1] units, zeros, inverses, least, most
    cdef float inner_slope
    cdef object where

    def __init__(self, spec, Operand operand, bint half):
        Sampled.__init__(self, spec)
        cdef const float[:, :, :, ::1] kernel = spec.kernel
        self.operand, self.tiles, self.half, self.inner_slope = operand, spec.tiles, half, spec.inner_slope
        self.finds_range = spec.finds_range
        self.norm, self.group = spec.eps is not None, spec.group
        self.filters = padded(kernel.shape[2] if self.transposed else kernel.shape[3])
        self.where = joined_channels(spec.channels, ELEMENTS[<int>operand] if self.reads_image else VL, spec.adds)
        self.depth = len(self.where)
        self.words = self.depth // ELEMENTS[<int>operand]
        self.set_epilogue(spec)
        self.shift = widened(spec.beta, self.filters, 0.0)
        if in_integers(operand):
            joined = [self.joined(values) for values in spec.quantised.input_values()]
            self.zeros, self.inverses, self.least, self.most = joined
            self.units = widened(spec.quantised.units, self.filters, 0.0) * np.asarray(self.weight_factors)
            self.weight_factors[:] = 1

    cdef set_epilogue(self, spec):
        """What follows the sums, which a map of float16 holds in units of their own."""
        own = spec.map_units if self.half else None
        units = widened(own and own.sums, self.filters, 1.0, 1.0)
        bias, gamma = widened(spec.bias, self.filters + VL, 0.0), widened(spec.gamma, self.filters, 1.0)
        bias[: self.filters] /= units
        self.bias, self.gamma = bias, gamma if self.norm else gamma * units
        self.eps = widened(None, self.filters, spec.eps or 0.0) / units**2
        self.weight_factors = 1 / units
        self.value_units = widened(own and own.values, self.filters, 1.0, 1.0)

    cdef joined(self, values):
        """One value for each channel of a pixel, 0 where it is padding."""
        wide = aligned(self.depth)
        wide[self.where >= 0] = values[self.where[self.where >= 0]]
        return wide

    def run(self, sources, Map target, float[::1] scratch, long threads, residual=None):
        """Compute the layer into `target` without holding the GIL.

        sources: an image, or pairs (Map, slope). residual: such a pair, which is added to the result.
        """
        cdef LayerInput layer_input
        cdef Geometry g
        cdef Call call
        cdef long image, parts, size
        cdef const float* low
        read_sources(sources, self.reads_image, &self.how, &layer_input)
        g = self.geometry(target.n, layer_input.map_h, layer_input.map_w)
        layer_input.operand, layer_input.pixel, layer_input.depth = g.operand, g.pixel, self.depth
        cdef float[::1] factors = aligned(g.n * (self.depth + 1) if in_integers(g.operand) else 1)
        if in_integers(g.operand):
            layer_input.zeros, layer_input.factors, call.steps = &self.zeros[0], &factors[0], &factors[g.n * self.depth]
        call.input, call.out, call.threads = &layer_input, target.words, threads
        call.moments, call.work = &scratch[0], &scratch[0] + g.n * self.parts(&g) * moments_size(g.filters)
        target.mean[:, :], target.scale[:, :] = 0, self.gamma
        with nogil:
            if in_integers(g.operand):
                for image in range(g.n):
                    self.set_factors(&layer_input, image, &factors[image * self.depth],
                                     &factors[g.n * self.depth + image])
            parts = self.compute(&g, &call)
            size = parts * moments_size(g.filters)
            if self.norm:
                for image in prange(g.n, num_threads=threads, schedule="static"):
                    finish_norm(call.moments + image * size, parts, g.filters, self.group, &self.gamma[0],
                                &self.eps[0], &target.mean[image, 0], &target.scale[image, 0])
            if g.finds_range:
                for image in prange(g.n, num_threads=threads, schedule="static"):
                    low = call.moments + image * size + 2 * g.filters
                    finish_range(call.moments + image * size, parts, g.filters)
                    target.set_range(image, low, low + g.filters)
        if residual is not None:
            target.add_residual(self.shift, *residual, self.value_units, threads, g.finds_range)

    cdef void set_factors(self, const LayerInput* from_, long image, float* factors, float* step) noexcept nogil:
        """How one image's input becomes 8-bit integers: by factors 1 / (step * unit) for each channel.

        The ends of each channel's range were guessed from the weights. `step` is the least number by which they must be
        multiplied to hold all values of this image. If one isn't finite, it is NaN, and so is the result.
        """
        cdef long channels, c, i, first = 0, at = 0, members
        cdef const Source* s
        cdef float low, high, most = 0, undefined = 0, x
        while first < from_.count:
            members = from_.count if from_.how.adds else 1
            channels = from_.sources[first].channels
            for c in range(channels):
                low = high = 0
                for i in range(first, first + members):
                    s = &from_.sources[i]
                    x = s.low[(image if s.n > 1 else 0) * channels + c]
                    low = low + (x if x > 0 else x * s.slope)
                    x = s.high[(image if s.n > 1 else 0) * channels + c]
                    high = high + (x if x > 0 else x * s.slope)
                undefined = undefined + (low - low) + (high - high)
                most = max(most, max(low * self.least[at + c], high * self.most[at + c]))
            first, at = first + members, at + channels
        step[0] = (most if most > 0 else <float>1.0) + undefined
        for c in range(self.depth):
            factors[c] = self.inverses[c] / step[0]

    cdef long compute(self, Geometry* g, const Call* call) noexcept nogil:
        """Fill the output and the moments; returns how many parts of an image have moments."""
        return 0

    cdef long parts(self, const Geometry* g) noexcept nogil:
        """How many parts of an image have moments, at most."""
        return g.grid.down * g.grid.across * g.phases

    cdef Geometry geometry(self, long n, long h, long w) noexcept nogil:
        """The layer for n inputs of h x w."""
        cdef Geometry g
        self.set_grid(&g, n, h, w)
        g.filters, g.operand, g.tiles, g.finds_range = self.filters, self.operand, self.tiles, self.finds_range
        g.half = self.half
        g.pixel = self.words + (0 if self.reads_image else SKEW)
        g.grid.across = (g.grid.w + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
        g.grid.columns = (g.grid.w + g.grid.across - 1) // g.grid.across
        g.grid.rows = BLOCK_ROWS
        while g.grid.rows > 1 and (4 * g.grid.rows > g.grid.h
                                   or 4 * input_words(&g, g.grid.rows, g.grid.columns) > BLOCK_BYTES):
            g.grid.rows = g.grid.rows // 2
        g.grid.down = (g.grid.h + g.grid.rows - 1) // g.grid.rows
        return g
