"""A convolution at one size: which input pixels meet which weights, and how the work is cut into blocks.

All outputs are computed over a *grid*. For a convolution it is the output; every grid position reads a *patch* of
KERNEL_SIZE x KERNEL_SIZE pixels, STRIDE pixels from the next. For a transposed convolution it is the input: the output
pixels (STRIDE * y + r, STRIDE * x + s) form the *phase* (r, s), and each phase is a convolution of stride 1 with
PHASE_SIZE x PHASE_SIZE of the taps, so no zeros are inserted. The patches of all phases together have 3 x 3 pixels.

A *block* is a rectangle of the grid whose input fits the second-level cache.
"""

cdef enum:
    PHASE_PATCH = PHASE_SIZE + STRIDE - 1
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


cdef struct Geometry:
    # one layer at one size; lengths in pixels unless stated
    long n, h, w                # input
    long out_h, out_w, filters  # output
    Blocking grid
    long phases                 # of the output: 1, or PHASES
    long upscale                # output rows per row of the grid: 1, or STRIDE
    long stride, patch          # of the patches over the input
    bint bfloat16               # whether the input is read as bfloat16
    long pixel, line            # words from one pixel, and one row, to the next where the input is read to
    # direct convolution only: the taps that meet the map at all, for each phase (see Product)
    long depth, per_pass        # words of a tap; taps that are used before the next are begun
    long tap_count
    long taps[PHASES][2 * TAPS]


cdef struct Call:
    # one call of a layer: what it reads, and where its results and its scratch lie
    const LayerInput* input
    float* out                  # (N, out_h, out_w, filters)
    float* moments              # of the parts of all images, in order
    float* work
    long threads


cdef inline long covered(const Geometry* g, long count) noexcept nogil:
    """Input rows, or columns, that `count` neighbouring patches cover."""
    return g.stride * (count - 1) + g.patch


cdef inline long input_words(const Geometry* g, long rows, long columns) noexcept nogil:
    """Words of the input that rows x columns of the grid read."""
    return covered(g, rows) * covered(g, columns) * g.pixel


cdef inline float* image_of(const Geometry* g, const Call* call, long image) noexcept nogil:
    """The output of one image."""
    return call.out + image * g.out_h * g.out_w * g.filters


cdef class Convolution:
    """A layer's packed weights. Subclasses pack them, and compute the layer, by one algorithm each.

    spec: a :class:`pix2pix.cpu.convolution.ConvolutionSpec`. bfloat16: whether the layer's input is read as bfloat16.
    """
    cdef readonly bint transposed, reads_image, norm, bfloat16
    cdef readonly long depth, words, filters, phases  # depth: channels of a pixel with padding; words: of a pixel
    cdef readonly float[::1] shift
    cdef float[::1] weights, bias, gamma
    cdef float eps
    cdef object where

    def __init__(self, spec, bint bfloat16):
        cdef const float[:, :, :, ::1] kernel = spec.kernel
        self.transposed, self.reads_image, self.bfloat16 = spec.transposed, spec.reads_image, bfloat16
        self.norm, self.eps = spec.eps is not None, spec.eps or 0.0
        self.filters = padded(kernel.shape[2] if self.transposed else kernel.shape[3])
        self.phases = PHASES if self.transposed else 1
        self.where = joined_channels(spec.channels, self.reads_image)
        self.depth = len(self.where)
        self.words = self.depth // 2 if bfloat16 else self.depth
        self.bias = widened(spec.bias, self.filters + VL, 0.0)
        self.gamma = widened(spec.gamma, self.filters, 1.0)
        self.shift = widened(spec.beta, self.filters, 0.0)

    def run(self, sources, Map target, float[::1] scratch, long threads):
        """Compute the layer into `target` without holding the GIL. sources: an image, or pairs (Map, slope)."""
        cdef LayerInput layer_input
        cdef Geometry g
        cdef Call call
        cdef long image, parts, size
        read_sources(sources, self.reads_image, &layer_input)
        g = self.geometry(target.raw.shape[0], layer_input.h, layer_input.w)
        layer_input.bfloat16, layer_input.pixel = g.bfloat16, g.pixel
        call.input, call.out, call.threads = &layer_input, &target.raw[0, 0, 0, 0], threads
        call.moments, call.work = &scratch[0], &scratch[0] + g.n * self.parts(&g) * moments_size(g.filters)
        with nogil:
            parts = self.compute(&g, &call)
            size = parts * moments_size(g.filters)
            if self.norm:
                for image in prange(g.n, num_threads=threads, schedule="static"):
                    finish_norm(call.moments + image * size, parts, g.filters, &self.gamma[0], self.eps,
                                &target.mean[image, 0], &target.scale[image, 0])

    cdef long compute(self, Geometry* g, const Call* call) noexcept nogil:
        """Fill the output and the moments; returns how many parts of an image have moments."""
        return 0

    cdef long parts(self, const Geometry* g) noexcept nogil:
        """How many parts of an image have moments, at most."""
        return g.grid.down * g.grid.across * g.phases

    cdef Geometry geometry(self, long n, long h, long w) noexcept nogil:
        """The layer for n inputs of h x w."""
        cdef Geometry g
        g.n, g.h, g.w, g.filters, g.phases = n, h, w, self.filters, self.phases
        if self.transposed:
            g.stride, g.patch, g.upscale, g.grid.h, g.grid.w = 1, PHASE_PATCH, STRIDE, h, w
        else:
            g.stride, g.patch, g.upscale, g.grid.h, g.grid.w = STRIDE, KERNEL_SIZE, 1, h // STRIDE, w // STRIDE
        g.out_h, g.out_w = g.upscale * g.grid.h, g.upscale * g.grid.w
        g.bfloat16 = self.bfloat16
        g.pixel = self.words + (0 if self.reads_image else SKEW)
        g.grid.across = (g.grid.w + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
        g.grid.columns = (g.grid.w + g.grid.across - 1) // g.grid.across
        g.grid.rows = BLOCK_ROWS
        while g.grid.rows > 1 and (4 * g.grid.rows > g.grid.h
                                   or 4 * input_words(&g, g.grid.rows, g.grid.columns) > BLOCK_BYTES):
            g.grid.rows = g.grid.rows // 2
        g.grid.down = (g.grid.h + g.grid.rows - 1) // g.grid.rows
        return g
