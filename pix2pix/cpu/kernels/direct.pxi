"""Direct convolution: for every tap, the patches' pixels are the rows of a matrix, multiplied where they lie."""

cdef enum Way:
    BY_BLOCK    # each thread reads a block and computes all of its filters
    BY_PANEL    # all read all images, then each thread computes some filters of many blocks
    BY_PATCH    # the same, with the patches of all images as one matrix


cdef class DirectConvolution(Convolution):
    """A Convolution without any transform. Weights: [parity][panel][tap][word][NR]."""
    cdef long panels, taps

    def __init__(self, const float[:, :, :, ::1] kernel, bint transposed, channels, bias, gamma, beta, eps,
                 bint half, bint picture, long threads):
        Convolution.__init__(self, kernel, transposed, channels, bias, gamma, beta, eps, half, picture)
        self.panels, self.taps = (self.filters + NR - 1) // NR, 4 if transposed else 16
        self.weights = aligned(self.parities * self.panels * self.taps * self.words * NR)
        self.pack(kernel, threads)

    cdef pack(self, const float[:, :, :, ::1] kernel, long threads):
        """Pack the weights, VL filters and a few channels at a time."""
        cdef const long[::1] where = self.where
        cdef long groups = self.filters // VL, steps = (self.depth + PACK_CHANNELS - 1) // PACK_CHANNELS, item
        for item in prange(groups * steps, nogil=True, num_threads=threads, schedule="static"):
            self.pack_part(kernel, where, item // steps * VL, item % steps * PACK_CHANNELS)

    cdef void pack_part(self, const float[:, :, :, ::1] kernel, const long[::1] where, long filter,
                        long first) noexcept nogil:
        """Parity (r, s) uses the kernel's (3 - r - 2u, 3 - s - 2v) as its tap (u, v)."""
        cdef float[16 * PACK_CHANNELS * VL] taps
        cdef long count = min(<long>PACK_CHANNELS, self.depth - first), parity, tap, k, j, a, b
        cdef float* out
        cdef const float* given
        gather_taps(kernel, self.transposed, where, first, count, filter, taps)
        for parity in range(self.parities):
            out = &self.weights[(parity * self.panels + filter // NR) * self.taps * self.words * NR]
            for tap in range(self.taps):
                if self.transposed:
                    a = 3 - parity // 2 - 2 * (tap // 2)
                    b = 3 - parity % 2 - 2 * (tap % 2)
                    given = taps + (4 * a + b) * PACK_CHANNELS * VL
                else:
                    given = taps + tap * PACK_CHANNELS * VL
                for k in range(count):
                    for j in range(VL):
                        set_weight(out, first + k, filter % NR + j, given[k * VL + j], self.half)
                out = out + self.words * NR

    def scratch(self, long n, long h, long w, long threads) -> int:
        """Floats of scratch that `run` needs for n inputs of h x w."""
        cdef Geometry g = self.lay_out(n, h, w)
        way = self.way(&g, threads)
        if way == BY_PATCH:
            work = n * g.grid_h * g.grid_w * (self.patch_floats(&g) + self.parities * self.filters)
        elif way == BY_PANEL:
            work = n * self.input_floats(&g, g.grid_h, g.grid_w)
        else:
            work = threads * self.input_floats(&g, g.rows, g.columns)
        return self.partial_floats(&g) + work

    cdef long compute(self, Geometry* g, const Operand* operand, float* out, float* work, float* partial,
                      long threads) noexcept nogil:
        cdef int way = self.way(g, threads)
        if way == BY_PATCH:
            self.run_patches(g, operand, out, work, partial, threads)
            return 1
        if way == BY_PANEL:
            self.run_panels(g, operand, out, work, partial, threads)
        else:
            self.run_blocks(g, operand, out, work, partial, threads)
        return g.down * g.across * g.parities

    cdef int way(self, const Geometry* g, long threads) noexcept nogil:
        """How the work is divided among threads. No way changes a bit of the result."""
        if g.grid_w < PATCHES_BELOW:
            return BY_PATCH
        if g.n * g.down * g.across < 2 * threads or g.rows * g.columns < BLOCK_PIXELS:
            return BY_PANEL
        return BY_BLOCK

    cdef long patch_floats(self, const Geometry* g) noexcept nogil:
        return g.patch * g.patch * g.pixel + SKEW

    cdef void set_taps(self, Geometry* g) noexcept nogil:
        set_taps(g, self.words * (4 if self.picture else 1), self.picture)

    cdef const float* panel_weights(self, long parity, long panel) noexcept nogil:
        return &self.weights[(parity * self.panels + panel) * self.taps * self.words * NR]

    cdef void run_blocks(self, Geometry* g, const Operand* operand, float* out, float* work, float* partial,
                         long threads) noexcept nogil:
        cdef long margin = g.patch - g.stride, blocks = g.down * g.across, item
        g.line = (g.stride * g.columns + margin) * g.pixel
        self.set_taps(g)
        for item in prange(g.n * blocks, num_threads=threads, schedule="dynamic"):
            self.run_block(g, operand, item // blocks, item % blocks, out,
                           work + threadid() * self.input_floats(g, g.rows, g.columns),
                           partial + item * g.parities * partial_size(self.filters))

    cdef void run_block(self, const Geometry* g, const Operand* operand, long image, long block, float* out, float* a,
                        float* partial) noexcept nogil:
        """All filters of one block of one image."""
        cdef long top = block // g.across * g.rows * g.stride - 1, left = block % g.across * g.columns * g.stride - 1
        cdef long height = g.stride * g.rows + g.patch - g.stride, y, parity, panel, first
        for y in range(height):
            read_row(operand, image, top + y, left, left + g.line // g.pixel, a + y * g.line)
        for parity in range(g.parities):
            for panel in range(self.panels):
                first = 0
                while first < g.count:
                    multiply_block(g, a, block, parity, panel, first, min(first + g.per_pass, g.count),
                                   self.panel_weights(parity, panel), &self.bias[0],
                                   out + image * g.out_h * g.out_w * self.filters, self.filters,
                                   partial + parity * partial_size(self.filters))
                    first = first + g.per_pass

    cdef void run_panels(self, Geometry* g, const Operand* operand, float* out, float* work, float* partial,
                         long threads) noexcept nogil:
        cdef long margin = g.patch - g.stride, height = g.stride * g.grid_h + margin, items = g.n * g.down * g.across
        cdef long tasks = g.parities * self.panels, item, groups
        g.line = (g.stride * g.grid_w + margin) * g.pixel
        self.set_taps(g)
        for item in prange(g.n * height, num_threads=threads, schedule="static"):
            read_row(operand, item // height, item % height - 1, -1, g.line // g.pixel - 1, work + item * g.line)
        groups = min(items, (4 * threads + tasks - 1) // tasks)
        for item in prange(tasks * groups, num_threads=threads, schedule="dynamic"):
            self.run_panel(g, item // groups // self.panels, item // groups % self.panels,
                           items * (item % groups) // groups, items * (item % groups + 1) // groups, work, out,
                           partial)

    cdef void run_panel(self, const Geometry* g, long parity, long panel, long begin, long end, const float* a,
                        float* out, float* partial) noexcept nogil:
        """One panel of filters of the blocks begin..end of all images."""
        cdef long blocks = g.down * g.across, first = 0, item, image, block, row
        while first < g.count:
            for item in range(begin, end):
                image = item // blocks
                block = item % blocks
                row = image * (g.stride * g.grid_h + g.patch - g.stride) + block // g.across * g.rows * g.stride
                multiply_block(g, a + row * g.line + block % g.across * g.columns * g.stride * g.pixel, block, parity,
                               panel, first, min(first + g.per_pass, g.count), self.panel_weights(parity, panel),
                               &self.bias[0], out + image * g.out_h * g.out_w * self.filters, self.filters,
                               partial + (item * g.parities + parity) * partial_size(self.filters))
            first = first + g.per_pass

    cdef void run_patches(self, Geometry* g, const Operand* operand, float* out, float* work, float* partial,
                          long threads) noexcept nogil:
        cdef long patches = g.n * g.grid_h * g.grid_w, size = self.patch_floats(g), tasks = g.parities * self.panels
        cdef long groups = min((patches + MR_MAX - 1) // MR_MAX, (4 * threads + tasks - 1) // tasks), item
        cdef float* product = work + patches * size
        g.line = g.patch * g.pixel
        self.set_taps(g)
        for item in prange(patches, num_threads=threads, schedule="static"):
            self.read_patch(g, operand, item, work + item * size)
        for item in prange(tasks * groups, num_threads=threads, schedule="dynamic"):
            self.multiply_patches(g, work, item // groups // self.panels, item // groups % self.panels,
                                  patches * (item % groups) // groups, patches * (item % groups + 1) // groups, product)
        for item in prange(g.n, num_threads=threads, schedule="static"):
            self.place_patches(g, item, product, out + item * g.out_h * g.out_w * self.filters,
                               partial + item * partial_size(self.filters))

    cdef void read_patch(self, const Geometry* g, const Operand* operand, long item, float* a) noexcept nogil:
        cdef long x = item % g.grid_w * g.stride - 1, y = item // g.grid_w % g.grid_h * g.stride - 1, u
        for u in range(g.patch):
            read_row(operand, item // g.grid_w // g.grid_h, y + u, x, x + g.patch, a + u * g.line)

    cdef void multiply_patches(self, const Geometry* g, const float* a, long parity, long panel, long begin, long end,
                               float* product) noexcept nogil:
        """product[parity][patch][filter] = bias + patches @ weights for the patches begin..end."""
        cdef long size = self.patch_floats(g), first = 0, last
        cdef float* c = product + (parity * g.n * g.grid_h * g.grid_w + begin) * self.filters + panel * NR
        while first < g.count:
            last = min(first + g.per_pass, g.count)
            multiply_rows(g, a + begin * size, size, g.taps[parity], first, last, self.panel_weights(parity, panel),
                          <const float*>c if first else &self.bias[panel * NR], self.filters if first else 0, c,
                          self.filters, end - begin, min(2, (self.filters - panel * NR) // VL), 0, NULL, NULL)
            first = last

    cdef void place_patches(self, const Geometry* g, long image, const float* product, float* out,
                            float* partial) noexcept nogil:
        """Interleave the parities of one image, and gather its statistics row by row."""
        cdef long up = g.out_h // g.grid_h, y, x, patch, panel, vectors
        memset(partial, 0, 2 * self.filters * sizeof(float))
        partial[2 * self.filters] = g.out_h * g.out_w
        for y in range(g.out_h):
            for x in range(g.out_w):
                patch = (y % up * up + x % up) * g.n + image
                patch = (patch * g.grid_h + y // up) * g.grid_w + x // up
                memcpy(out + (y * g.out_w + x) * self.filters, product + patch * self.filters,
                       self.filters * sizeof(float))
            for panel in range(self.panels):
                vectors = min(2, (self.filters - panel * NR) // VL)
                merge_tile(out + y * g.out_w * self.filters + panel * NR, self.filters, g.out_w, vectors, y * g.out_w,
                           partial + panel * NR, partial + self.filters + panel * NR)
