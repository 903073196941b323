"""Direct convolution: each tap multiplies the input's pixels where they lie, as the rows of a matrix (see Product).

The work is divided among threads in one of three ways, by the size of the layer. None changes a bit of the result.
A patch that is read into a matrix takes more memory than the input, since patches overlap; but the rows of all images
then fill the micro-kernels, and each weight is read once.

With AMX, blocks meet a *bundle* of panels at a time: two tiles of rows are multiplied by one panel after the other
while their input stays in the first-level cache. All taps are added up in one pass, for the map is float16 and cannot
hold sums that are incomplete. Products of patches are float32 until they are complete.
"""

cdef enum Partitioning:
    BY_BLOCK    # each thread reads a block of the input, and computes all of its filters
    BY_PANEL    # all threads read all of the input; then each computes some filters of many blocks
    BY_PATCH    # the same, with the patches of all images as one matrix

cdef enum:
    BLOCK_PIXELS = 64   # blocks with fewer don't use the weights often enough
    PATCHES_BELOW = 8   # grids narrower than this are read as patches; with AMX, those narrower than TILE_ROWS
    BLOCK_WEIGHT_BYTES = 1536 * 1024    # layers with more weights are cut by panel: every block would read all of them,
    COPIED_BYTES = 8192 * 1024          # unless their input takes more than this, for it is copied as a whole then
    GROUP_BYTES = 1024 * 1024           # of that copy, or of patches, that all panels read before the next
    BUNDLE_BYTES = 640 * 1024           # of a bundle's weights, which stay in the second-level cache


cdef class DirectConvolution(Convolution):
    """A Convolution without any transform. Weights: [phase][panel][tap][word][NR].

    Sums begin with the bias. Of 8-bit integers, they begin with what the channels' zeros add to them, negative, and the
    bias comes when they are floats.
    """
    cdef int[:, ::1] offsets                # (phase, filter): where sums of 8-bit integers begin
    cdef long panels, tap_words             # words of a tap; of an image, it is a whole row of taps
    cdef long taps[MAX_PHASES]              # that each phase has
    cdef long first_weight[MAX_PHASES]      # where the weights of each phase begin

    def __init__(self, spec, long threads):
        operand = operand_of(spec)
        Convolution.__init__(self, spec, operand, spec.tiles)
        cdef long phase, size = 0
        self.panels = (self.filters + NR - 1) // NR
        # the micro-kernels take four words at a time; what follows a pixel of integers meets weights of 0
        self.tap_words = ((self.across.count[0] if self.reads_image else 1) * self.words + 3) // 4 * 4
        for phase in range(self.phases):
            self.taps[phase] = self.down.count[phase // self.scale]
            if not self.reads_image:
                self.taps[phase] *= self.across.count[phase % self.scale]
            self.first_weight[phase] = size
            size += self.panels * self.taps[phase] * self.tap_words * NR
        self.weights = aligned(size)
        self.pack(spec.kernel, threads)
        if in_integers(self.operand):
            self.set_offsets(spec)

    cdef set_offsets(self, spec):
        """offsets[phase, filter] = - the sum over its taps and channels of weight * zero."""
        zeros = spec.quantised.zeros
        of_tap = np.einsum("abfc,c->abf" if self.transposed else "abcf,c->abf", spec.kernel, zeros, dtype=np.float64)
        offsets = np.zeros((self.phases, self.filters + VL), np.intc)
        for phase, taps in enumerate(spec.sampling.phases):
            total = sum(of_tap[tap.ky, tap.kx] for tap in taps.taps)
            offsets[phase, : len(total)] = -np.rint(total).astype(np.intc)
        self.offsets = offsets

    cdef inline const float* start(self, long phase) noexcept nogil:
        """Where the sums of a phase begin."""
        return <const float*>&self.offsets[phase, 0] if in_integers(self.operand) else &self.bias[0]

    cdef pack(self, const float[:, :, :, ::1] kernel, long threads):
        """Pack the weights, VL filters and a few channels at a time."""
        cdef const long[::1] where = self.where
        cdef long groups = self.filters // VL, steps = (self.depth + PACK_CHANNELS - 1) // PACK_CHANNELS, item
        for item in prange(groups * steps, nogil=True, num_threads=threads, schedule="static"):
            self.pack_part(kernel, where, item // steps * VL, item % steps * PACK_CHANNELS)

    cdef void pack_part(self, const float[:, :, :, ::1] kernel, const long[::1] where, long filter,
                        long first) noexcept nogil:
        """Pack VL filters of the channels from `first`."""
        cdef float[MAX_TAPS * PACK_CHANNELS * VL] taps
        cdef long count = min(<long>PACK_CHANNELS, self.depth - first), phase, u, v, r, s, k, j, a, b, at
        cdef float* out
        cdef const float* given
        cdef const float* factors = &self.weight_factors[filter]
        gather_taps(kernel, self.transposed, where, first, count, filter, taps)
        for phase in range(self.phases):
            r, s = phase // self.scale, phase % self.scale
            for u in range(self.down.count[r]):
                for v in range(self.across.count[s]):
                    out, at = self.panel_weights(phase, filter // NR), first
                    if self.reads_image:
                        out, at = out + u * self.tap_words * NR, v * self.depth + first
                    else:
                        out = out + (u * self.across.count[s] + v) * self.tap_words * NR
                    a, b = self.down.tap[r] + u * self.down.next, self.across.tap[s] + v * self.across.next
                    given = taps + (kernel.shape[1] * a + b) * PACK_CHANNELS * VL
                    for k in range(count):
                        for j in range(VL):
                            set_weight(out, at + k, filter % NR + j, given[k * VL + j] * factors[j], self.operand)

    cdef inline float* panel_weights(self, long phase, long panel) noexcept nogil:
        """The weights of a panel of filters of one phase."""
        return &self.weights[self.first_weight[phase] + panel * self.taps[phase] * self.tap_words * NR]

    def scratch(self, long n, long h, long w, long threads) -> int:
        """Floats of scratch that `run` needs for n inputs of h x w."""
        cdef Geometry g = self.geometry(n, h, w)
        partitioning = self.partitioning(&g, threads)
        if partitioning == BY_PATCH:
            work = n * g.grid.h * g.grid.w * (self.patch_words(&g) + g.phases * g.filters)
        elif partitioning == BY_PANEL:
            work = n * input_words(&g, g.grid.h, g.grid.w)
        else:
            work = threads * input_words(&g, g.grid.rows, g.grid.columns)
        return n * self.parts(&g) * moments_size(g.filters) + work

    cdef long compute(self, Geometry* g, const Call* call) noexcept nogil:
        cdef int partitioning = self.partitioning(g, call.threads)
        if partitioning == BY_PATCH:
            self.run_patches(g, call)
            return 1
        if partitioning == BY_PANEL:
            self.run_panels(g, call)
        else:
            self.run_blocks(g, call)
        return self.parts(g)

    cdef int partitioning(self, const Geometry* g, long threads) noexcept nogil:
        """How the work is divided among threads."""
        if g.grid.w < (TILE_ROWS if g.tiles else PATCHES_BELOW):
            return BY_PATCH
        if (g.n * g.grid.down * g.grid.across < 2 * threads or g.grid.rows * g.grid.columns < BLOCK_PIXELS
                or (4 * self.weights.shape[0] > BLOCK_WEIGHT_BYTES
                    and 4 * g.n * input_words(g, g.grid.h, g.grid.w) <= COPIED_BYTES)):
            return BY_PANEL
        return BY_BLOCK

    cdef void set_taps(self, Geometry* g) noexcept nogil:
        set_taps(g, self.tap_words, self.reads_image, self.how.padding)

    cdef long bundles(self, const Geometry* g) noexcept nogil:
        """How many bundles the panels of a phase are. Without AMX, each panel is one."""
        cdef long bytes = 4 * self.weights.shape[0] // g.phases
        return min(self.panels, (bytes + BUNDLE_BYTES - 1) // BUNDLE_BYTES) if g.tiles else self.panels

    cdef long shared_bundles(self, const Geometry* g, long threads, long most) noexcept nogil:
        """The same where each meets up to `most` parts of the input by itself: enough for all threads."""
        cdef long enough = (4 * threads + g.phases * most - 1) // (g.phases * most)
        return min(self.panels, max(self.bundles(g), enough))

    cdef Task task(self, long phase, long bundle, long bundles) noexcept nogil:
        """One of so many bundles of a phase's panels, before their first tap."""
        cdef Task task
        task.phase, task.panel = phase, self.panels * bundle // bundles
        task.panels = self.panels * (bundle + 1) // bundles - task.panel
        task.begin, task.end, task.first, task.last = 0, 0, 0, 0
        task.weights = self.panel_weights(phase, task.panel)
        return task

    cdef long groups(self, const Geometry* g, long bundles, long threads, long words, long most) noexcept nogil:
        """The parts, `most` at most, into which an input of so many words is cut: enough for all threads, and small."""
        cdef long tasks = g.phases * bundles
        return min(most, max((4 * threads + tasks - 1) // tasks, (4 * words + GROUP_BYTES - 1) // GROUP_BYTES))

    cdef Task share(self, long item, long bundles, long groups, long total) noexcept nogil:
        """Task `item` of groups * phases * bundles: a bundle of panels, over one of `groups` parts of 0..total."""
        cdef long group = item // (self.phases * bundles), within = item % (self.phases * bundles)
        cdef Task task = self.task(within // bundles, within % bundles, bundles)
        task.begin, task.end = total * group // groups, total * (group + 1) // groups
        return task

    cdef void set_product(self, const Geometry* g, const Task* task, Product* p) noexcept nogil:
        """Describe the product of the task's taps, given the rows of A and of C."""
        cdef const long* taps = g.taps[task.phase]
        cdef const float* start = self.start(task.phase)
        p.operand, p.tiles = g.operand, g.tiles
        p.vectors = min(2 * task.panels, g.filters // VL - 2 * task.panel)
        p.taps, p.tap_count, p.depth = taps + 2 * task.first, task.last - task.first, g.depth
        p.b, p.b_panel = task.weights, self.taps[task.phase] * self.tap_words * NR
        p.start = NULL
        if task.first == 0:
            p.start = start + task.panel * NR

    cdef Epilogue epilogue(self, const Call* call, long image, long first) noexcept nogil:
        """How an image's sums become the numbers of the map, from that filter on."""
        cdef Epilogue epilogue
        epilogue.integers, epilogue.slope = in_integers(self.operand), self.inner_slope
        epilogue.units, epilogue.bias, epilogue.step = NULL, NULL, 1
        if epilogue.integers:
            epilogue.units, epilogue.bias = &self.units[first], &self.bias[first]
            epilogue.step = call.steps[image]
        return epilogue

    cdef void multiply_block(self, const Geometry* g, const Call* call, const Task* task, long index,
                             const float* a) noexcept nogil:
        """Add the task's taps to one block of its panels, and gather their moments with the last.

        a: the block's input.
        """
        cdef Block b = block_at(&g.grid, index)
        cdef long r = task.phase // g.scale, s = task.phase % g.scale, pixel = words_of(g.filters, g.half)
        cdef float* part = call.moments + (index * g.phases + task.phase) * moments_size(g.filters)
        cdef long last = task.panel + task.panels
        cdef bint complete = task.last == g.tap_count[task.phase]
        cdef Moments moments
        cdef Product p
        self.set_product(g, task, &p)
        if complete:
            moments = begin_moments(part, g.filters, task.panel * NR, p.vectors, (b.y1 - b.y0) * (b.x1 - b.x0),
                                    g.finds_range)
            p.epilogue = self.epilogue(call, b.image, task.panel * NR)
        p.lines, p.rows = b.y1 - b.y0, b.x1 - b.x0
        p.a, p.a_stride, p.a_line = a, g.step * g.pixel, g.step * g.line
        p.c = image_of(g, call, b.image) + words_of(task.panel * NR, g.half)
        p.c = p.c + ((b.y0 * g.scale + r) * g.out_w + b.x0 * g.scale + s) * pixel
        p.c_stride, p.c_line = g.scale * pixel, g.scale * g.out_w * pixel
        p.fetch = 4 * self.weights.shape[0] > CACHED_BYTES and task.phase * self.panels + last < g.phases * self.panels
        multiply_rows(&p, &moments if complete else NULL)

    cdef void run_blocks(self, Geometry* g, const Call* call) noexcept nogil:
        cdef long item
        g.line = covered(g, &g.across, g.grid.columns) * g.pixel + SKEW
        self.set_taps(g)
        for item in prange(g.n * g.grid.down * g.grid.across, num_threads=call.threads, schedule="dynamic"):
            self.run_block(g, call, item, call.work + threadid() * input_words(g, g.grid.rows, g.grid.columns))

    cdef void run_block(self, const Geometry* g, const Call* call, long index, float* a) noexcept nogil:
        """All filters of one block."""
        cdef Block b = block_at(&g.grid, index)
        cdef long top = b.y0 * g.step - g.down.before, bundles = self.bundles(g), y, phase, bundle
        cdef Task task
        for y in range(covered(g, &g.down, b.y1 - b.y0)):
            self.read_line(g, call, b.image, top + y, b.x0 * g.step, covered(g, &g.across, b.x1 - b.x0),
                           a + y * g.line)
        for phase in range(g.phases):
            for bundle in range(bundles):
                task = self.task(phase, bundle, bundles)
                while next_taps(g, &task):
                    self.multiply_block(g, call, &task, index, a)

    cdef void read_line(self, const Geometry* g, const Call* call, long image, long y, long x, long count,
                        float* a) noexcept nogil:
        """`count` pixels of row y of the input, from the patch of x on, and zeros behind those of an image, whose taps
        read some words more."""
        read_row(call.input, image, y, x - g.across.before, x - g.across.before + count, a)
        if self.reads_image:
            memset(a + count * g.pixel, 0, SKEW * sizeof(float))

    cdef void run_panels(self, Geometry* g, const Call* call) noexcept nogil:
        cdef long height = covered(g, &g.down, g.grid.h), blocks = g.n * g.grid.down * g.grid.across
        cdef long bundles = self.shared_bundles(g, call.threads, blocks), item, groups
        g.line = covered(g, &g.across, g.grid.w) * g.pixel + SKEW
        self.set_taps(g)
        for item in prange(g.n * height, num_threads=call.threads, schedule="static"):
            self.read_line(g, call, item // height, item % height - g.down.before, 0, covered(g, &g.across, g.grid.w),
                           call.work + item * g.line)
        groups = self.groups(g, bundles, call.threads, g.n * height * g.line, blocks)
        for item in prange(g.phases * bundles * groups, num_threads=call.threads, schedule="dynamic",
                           chunksize=chunk(g.phases * bundles * groups, call.threads)):
            self.run_bundle(g, call, item, bundles, groups)

    cdef void run_bundle(self, const Geometry* g, const Call* call, long item, long bundles,
                         long groups) noexcept nogil:
        """Some panels of filters of some blocks of all images."""
        cdef Task task = self.share(item, bundles, groups, g.n * g.grid.down * g.grid.across)
        cdef long index, row
        cdef Block b
        while next_taps(g, &task):
            for index in range(task.begin, task.end):
                b = block_at(&g.grid, index)
                row = b.image * covered(g, &g.down, g.grid.h) + b.y0 * g.step
                self.multiply_block(g, call, &task, index, call.work + row * g.line + b.x0 * g.step * g.pixel)

    cdef long patch_words(self, const Geometry* g) noexcept nogil:
        return g.down.patch * (g.across.patch * g.pixel + SKEW)

    cdef void run_patches(self, Geometry* g, const Call* call) noexcept nogil:
        cdef long patches = g.n * g.grid.h * g.grid.w, panels = g.phases * self.panels, item
        cdef long rows = 2 * TILE_ROWS if g.tiles else MR_MAX
        cdef long groups = self.groups(g, self.panels, call.threads, patches * self.patch_words(g),
                                       (patches + rows - 1) // rows)
        cdef float* products = call.work + patches * self.patch_words(g)    # [phase][patch][filter]
        g.line = g.across.patch * g.pixel + SKEW
        self.set_taps(g)
        for item in prange(patches, num_threads=call.threads, schedule="static"):
            self.read_patch(g, call, item)
        for item in prange(panels * groups, num_threads=call.threads, schedule="dynamic",
                           chunksize=chunk(panels * groups, call.threads)):
            self.multiply_patches(g, call.work, item, groups, products)
        for item in prange(g.n * self.panels, num_threads=call.threads, schedule="static"):
            self.place_patches(g, call, item // self.panels, item % self.panels, products)

    cdef void read_patch(self, const Geometry* g, const Call* call, long item) noexcept nogil:
        cdef long x = item % g.grid.w * g.step, y = item // g.grid.w % g.grid.h * g.step - g.down.before, u
        cdef float* a = call.work + item * self.patch_words(g)
        for u in range(g.down.patch):
            self.read_line(g, call, item // g.grid.w // g.grid.h, y + u, x, g.across.patch, a + u * g.line)

    cdef void multiply_patches(self, const Geometry* g, const float* a, long item, long groups,
                               float* products) noexcept nogil:
        """One panel of filters of some patches: products = bias + patches @ weights."""
        cdef long patches = g.n * g.grid.h * g.grid.w
        cdef Task task = self.share(item, self.panels, groups, patches)
        cdef Product p
        p.a_stride, p.c_stride, p.fetch = self.patch_words(g), g.filters, True
        p.lines, p.rows, p.a_line, p.c_line = 1, task.end - task.begin, 0, 0
        p.a = a + task.begin * p.a_stride
        p.c = products + (task.phase * patches + task.begin) * g.filters + task.panel * NR
        while next_taps(g, &task):
            self.set_product(g, &task, &p)
            multiply_rows(&p, NULL)

    cdef void place_patches(self, const Geometry* g, const Call* call, long image, long panel,
                            float* products) noexcept nogil:
        """Complete one panel of one image, and interleave its phases. Moments are of the whole image."""
        cdef long patches = g.grid.h * g.grid.w, vectors = panel_vectors(g.filters, panel), first = panel * NR, phase, j
        cdef float* part = call.moments + image * moments_size(g.filters)
        cdef float* rows
        cdef Moments moments = begin_moments(part, g.filters, first, vectors, g.out_h * g.out_w, g.finds_range)
        cdef Epilogue epilogue = self.epilogue(call, image, first)
        cdef unsigned short[MAX_VL] rounded     # which nobody reads: the rows hold them, too
        cdef Moments of_vector
        cdef vec sum
        for phase in range(g.phases):
            rows = products + (phase * g.n + image) * patches * g.filters + first
            if g.half:
                for j in range(vectors):
                    of_vector = moments_of(&moments, j * VL)
                    sum = finish_halves(&epilogue, j, rows + j * VL, g.filters, patches, rounded, 0)
                    merge_vector(rows + j * VL, g.filters, patches, sum, &of_vector)
                moments.pixels += patches
            else:
                finish_rows(&epilogue, 0, rows, g.filters, patches, vectors)
                merge_rows(rows, g.filters, patches, vectors, &moments)
            self.place_phase(g, image_of(g, call, image) + words_of(first, g.half), phase, rows, vectors)

    cdef void place_phase(self, const Geometry* g, float* out, long phase, const float* rows,
                          long vectors) noexcept nogil:
        """A phase's pixels of one panel, to where they are in the image."""
        cdef long pixel = words_of(g.filters, g.half), y, x, j
        cdef float* to
        cdef const float* row
        for y in range(g.grid.h):
            for x in range(g.grid.w):
                row = rows + (y * g.grid.w + x) * g.filters
                to = out + ((y * g.scale + phase // g.scale) * g.out_w + x * g.scale + phase % g.scale) * pixel
                for j in range(vectors):
                    store_channels(to, j * VL, (<const vec*>(row + j * VL))[0], g.half)
