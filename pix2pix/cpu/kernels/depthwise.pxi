"""A fixed filter on every channel by itself: blurring and averaging, with any stride.

    out[y, x, c] = sum over taps (a, b) of filter[a] * filter[b] * in[step * y + a - before, step * x + b - before, c]

An average that does not count its padding divides by the sum of the taps that meet the map.
"""

cdef class DepthwiseConvolution(Sampled):
    """A layer of a fixed filter. taps: one for each pixel of the kernel along either axis."""
    cdef readonly long filters, depth
    cdef readonly float[::1] shift
    cdef float[::1] taps
    cdef readonly bint half         # whether its output is float16: never
    cdef bint counts_padding, finds_range

    def __init__(self, spec, taps):
        Sampled.__init__(self, spec)
        self.taps = np.asarray(taps, np.float32)
        self.counts_padding = spec.sampling.padding_mode != "uncounted"
        self.finds_range = spec.finds_range
        self.depth = len(joined_channels(spec.channels, 1 if self.reads_image else VL, spec.adds))
        self.filters = padded(self.depth)
        self.shift = widened(None, self.filters, 0.0)

    cdef long line_floats(self, long w) noexcept nogil:
        """Floats of a row of the padded input."""
        return (w + self.padding[1] + self.padding[3]) * self.depth + VL

    def scratch(self, long n, long h, long w, long threads) -> int:
        """Floats of scratch that `run` needs for n inputs of h x w."""
        return threads * self.taps.shape[0] * self.line_floats(w * self.how.upsample)

    def run(self, sources, Map target, float[::1] scratch, long threads, residual=None):
        """Compute the layer into `target`; see :meth:`Convolution.run`."""
        cdef LayerInput layer_input
        cdef Geometry g
        cdef long item
        read_sources(sources, self.reads_image, &self.how, &layer_input)
        layer_input.pixel = self.depth
        self.set_grid(&g, target.n, layer_input.map_h, layer_input.map_w)
        for item in prange(g.n * g.grid.h, nogil=True, num_threads=threads, schedule="static"):
            self.run_row(&g, &layer_input, item, target.at(item // g.grid.h, item % g.grid.h, 0),
                         &scratch[threadid() * self.taps.shape[0] * self.line_floats(layer_input.w)])
        target.mean[:, :], target.scale[:, :] = 0, 1
        if residual is not None:
            target.add_residual(self.shift, *residual, widened(None, self.filters, 1.0), threads)
        if self.finds_range:
            target.find_range(threads)

    cdef void run_row(self, const Geometry* g, const LayerInput* layer_input, long item, float* out,
                      float* rows) noexcept nogil:
        """One row of the output."""
        cdef long size = self.taps.shape[0], line = self.line_floats(g.w), y = item % g.grid.h * g.step, x, a, b, c
        cdef const float* read
        cdef float weight, share
        for a in range(size):
            read_row(layer_input, item // g.grid.h, y + a - self.padding[0], -self.padding[1], g.w + self.padding[3],
                     rows + a * line)
        for x in range(g.grid.w):
            share = 1
            if not self.counts_padding:
                share = self.share(y - self.padding[0], g.h) * self.share(x * g.step - self.padding[1], g.w)
            memset(out + x * self.filters, 0, self.filters * sizeof(float))
            for a in range(size):
                for b in range(size):
                    weight = self.taps[a] * self.taps[b] * share
                    read = rows + a * line + (x * g.step + b) * self.depth
                    for c in range(self.depth):
                        out[x * self.filters + c] += weight * read[c]

    cdef float share(self, long first, long size) noexcept nogil:
        """All taps, over those whose pixels, from `first` on, are among `size`."""
        cdef float total = 0, met = 0
        cdef long a
        for a in range(self.taps.shape[0]):
            total = total + self.taps[a]
            if 0 <= first + a < size:
                met = met + self.taps[a]
        return total / met
