"""Convolution by Winograd's minimal filtering with r x r taps; its transforms are in winograd_transforms.pxi.

Supports a kernel of 3 x 3 taps with stride 1 (r = 3), and one of 4 x 4 taps with stride 2 and padding 1 in either
direction, which is cut into 2 x 2 taps of stride 1 (r = 2):

- A convolution becomes a 2 x 2 convolution over the four phases (p, q) of its input's rows and columns: K = 4 C.
- Each phase (r, s) of a transposed convolution's output is a 2 x 2 convolution of the input: K = C.
- *Shared* phases: if the tiles of the phases with r = 1, or s = 1, begin a pixel earlier, all four phases read the same
  window. One transformed input then serves them all, and their filters stand side by side: N = 4 filters.

For each of the products' points xi, the tiles are the rows of one matrix V, and the product is M = V @ U:

    V [xi][tile][K]     U [xi][panel][K][NR]     M [xi][tile][N]

Kernels are transformed in float64 when they are packed. In bfloat16, U and V are rounded; the input and the transforms
stay float32. In 8-bit integers, each row of V has a *step* of its own, the least with which its integers hold the whole
row; it lies behind the row. U comes in integers already (pix2pix/model/quantisation.py).

The work is divided among threads in one of two ways, by the size of the layer; neither changes a bit of the result.
Per thread: each takes blocks through all steps in its own cache, reading all weights for every block. Cooperatively:
all threads read some blocks, multiply them, each some panels, and write them, so weights are read once for many blocks.
"""

cdef enum:
    BLOCK_TILES = 16                        # in a row of a block, at most
    TILES_BYTES = 768 * 1024                # of a block's V and M, so that they stay in the second-level cache
    PER_THREAD_BYTES = 8 * 1024 * 1024      # of weights, at most, that each thread reads for every block
    TASKS = 16                              # for each thread, at least, when points and panels are shared out
    COOPERATIVE_BYTES = 12 * 1024 * 1024    # of V and M, at least, if blocks are worked on cooperatively

cdef float LEAST_STEP = 1e-30               # of a row of V; one that needs less is as good as zero


cdef struct Tiling:
    # how one layer at one size is cut into tiles, and those into blocks
    Blocking tiles
    long m, t                   # outputs of a tile in each direction, of each phase; points in each direction
    long scale                  # input pixels from one tile to the next
    long margin                 # input pixels of a block beyond `scale` times its tiles
    long line                   # floats of a row of a block's input
    long tile                   # floats of a transformed tile that is not an operand yet
    long points                 # products that are computed
    long k, n                   # words of a row of V, columns of M
    long k_stride               # words from one tile to the next in V


cdef struct TileSet:
    # the tiles of consecutive blocks, which go through all steps together
    long begin, count           # the first of them over all images; how many they are
    float* v
    float* products             # M
    long v_point, m_point       # words from one point to the next in V and M


cdef inline long first_tile(const Tiling* t, const Block* b) noexcept nogil:
    """How many tiles the blocks before this one have, over all images."""
    return b.image * t.tiles.h * t.tiles.w + b.y0 * t.tiles.w + (b.y1 - b.y0) * b.x0


cdef inline TileSet tile_set(const Tiling* t, long first, long last, float* v) noexcept nogil:
    """The tiles of the blocks first <= i < last, with V and M from v on."""
    cdef TileSet tiles
    cdef Block b = block_at(&t.tiles, first)
    tiles.begin = first_tile(t, &b)
    b = block_at(&t.tiles, last - 1)
    tiles.count = first_tile(t, &b) + (b.y1 - b.y0) * (b.x1 - b.x0) - tiles.begin
    tiles.v_point, tiles.m_point = tiles.count * t.k_stride + SKEW, tiles.count * t.n + SKEW
    tiles.v, tiles.products = v, v + t.points * tiles.v_point
    return tiles


cdef inline long tile_set_floats(const Tiling* t, long count) noexcept nogil:
    """Floats of V and M together for `count` tiles."""
    return t.points * (count * (t.k_stride + t.n) + 2 * SKEW)


cdef inline long block_input_floats(const Tiling* t) noexcept nogil:
    """Floats of the input that a block reads."""
    return (t.scale * t.tiles.rows + t.margin) * t.line


cdef inline long block_floats(const Tiling* t) noexcept nogil:
    """Floats of a thread's own for the input of a block and a transformed tile."""
    return block_input_floats(t) + t.tile


cdef class WinogradConvolution(Convolution):
    """A Convolution by F(m x m, r x r). Weights: U. `shared` phases are of transposed convolutions only."""
    cdef long m, r, t, points, n, panels        # t: points in each direction; n: columns of M
    cdef long row, k                            # numbers, and words, of a row of V
    cdef bint shared
    cdef Operand products
    cdef double[:, ::1] kernel_transform
    # of 8-bit integers, for each number of a row of V: what a Convolution has for each channel of its input. Points for
    # which all of that is the same are of one kind. By point, for each column of M: the unit of its sums, their begin
    cdef float[:, ::1] row_zeros, row_inverses, row_least, row_most, column_units
    cdef int[:, ::1] offsets
    cdef long[MAX_POINTS * MAX_POINTS] kinds        # by point: which of these rows are its

    def __init__(self, spec, long m, bint shared, long threads):
        Convolution.__init__(self, spec, FLOAT32, False)
        self.m, self.shared = m, shared
        self.products = operand_of(spec)
        if in_integers(self.products) and self.transposed and not shared:
            raise ValueError("in 8-bit integers, the phases of a transposed convolution share their tiles")
        self.r = 3 if self.step * self.scale == 1 else 2
        self.t = m + self.r - 1
        self.kernel_transform = kernel_transform(self.r, self.t)
        self.points = self.t * self.t * (1 if shared else self.phases)
        self.row = self.depth * self.step * self.step
        self.k = (self.row // ELEMENTS[<int>self.products] + 3) // 4 * 4     # words that are padding meet weights of 0
        self.n = self.filters * (self.phases if shared else 1)
        self.panels = (self.n + NR - 1) // NR
        self.weights = aligned(self.points * self.panels * self.k * NR)
        if in_integers(self.products):
            self.set_integers(spec.quantised, threads)
        else:
            self.pack(spec.kernel, threads)

    cdef set_integers(self, quantised, long threads):
        """Pack the kernel in whole numbers, and what belongs to it."""
        cdef long item
        count, phases = quantised.scales.shape[1], self.step**2
        rows = repeated(self.where, count // phases, phases)
        values, kinds = np.stack(quantised.input_values(), 1), {}
        for item in range(self.points):
            self.kinds[item] = kinds.setdefault(values[item].tobytes(), len(kinds))
        values = np.reshape([np.frombuffer(each, values.dtype) for each in kinds], (-1, *values.shape[1:]))
        of_rows = [spread(each, rows) for each in np.moveaxis(values, 1, 0)]
        self.row_zeros, self.row_inverses, self.row_least, self.row_most = of_rows
        count, phases = quantised.units.shape[1], self.n // self.filters
        columns = np.arange(self.filters)
        columns = repeated(np.where(columns < count // phases, columns, -1), count // phases, phases)
        columns = np.append(columns, np.full(VL, -1))   # the last panel may be VL columns short
        self.column_units = spread(quantised.units, columns)
        offsets = [-(zeros @ each) for zeros, each in zip(quantised.zeros.astype(np.float64), quantised.kernel)]
        self.offsets = spread(np.rint(offsets), columns).astype(np.intc)
        cdef const signed char[:, :, ::1] kernel = quantised.kernel
        cdef const long[::1] row_of = rows, column_of = columns
        for item in prange(self.points * self.panels, nogil=True, num_threads=threads, schedule="static"):
            self.pack_integers(kernel, row_of, column_of, item)

    cdef void pack_integers(self, const signed char[:, :, ::1] kernel, const long[::1] row_of,
                            const long[::1] column_of, long item) noexcept nogil:
        """One panel of one point of U."""
        cdef long first = item % self.panels * NR, width = min(<long>NR, self.n - first), k, j
        cdef float* panel = &self.weights[item * self.k * NR]
        for k in range(self.row):
            for j in range(width):
                if row_of[k] >= 0 and column_of[first + j] >= 0:
                    set_weight(panel, k, j, kernel[item // self.panels, row_of[k], column_of[first + j]],
                               self.products)

    cdef pack(self, const float[:, :, :, ::1] kernel, long threads):
        """Transform and pack the weights, VL columns and a few channels at a time."""
        cdef const long[::1] where = self.where
        cdef long groups = self.n // VL, steps = (self.depth + PACK_CHANNELS - 1) // PACK_CHANNELS, item
        for item in prange(groups * steps, nogil=True, num_threads=threads, schedule="static"):
            self.pack_part(kernel, where, item // steps * VL, item % steps * PACK_CHANNELS)

    cdef void pack_part(self, const float[:, :, :, ::1] kernel, const long[::1] where, long column,
                        long first) noexcept nogil:
        """VL columns of U, which are filters of one phase, and the rows of a few channels of all input phases."""
        cdef float[MAX_TAPS * PACK_CHANNELS * VL] taps
        cdef long count = min(<long>PACK_CHANNELS, self.depth - first), size = kernel.shape[1]
        cdef long k, p, q, phase, point, tap = PACK_CHANNELS * VL, down, across
        cdef const float* corner
        gather_taps(kernel, self.transposed, where, first, count, column % self.filters, taps)
        down, across = self.down.next * size * tap, self.across.next * tap  # to the next tap of the same phase
        for k in range(count):
            if not self.transposed:
                for p in range(self.step):      # (p, q): a phase of the input, that is, of the taps
                    for q in range(self.step):
                        corner = taps + (size * p + q) * tap + k * VL
                        self.pack_row(corner, self.step * down, self.step * across, 0,
                                      (self.step * p + q) * self.depth + first + k, column)
                continue
            for phase in range(self.phases):
                if not self.shared or column // self.filters == phase:
                    p, q = self.down.tap[phase // self.scale], self.across.tap[phase % self.scale]
                    corner, point = taps + (size * p + q) * tap + k * VL, 0 if self.shared else phase * self.t * self.t
                    self.pack_row(corner, down, across, point, first + k, column)

    cdef void pack_row(self, const float* k, long down, long across, long point, long row, long column) noexcept nogil:
        """VL columns of one row of U, at `point` and those that follow."""
        cdef double[MAX_POINTS * MAX_POINTS * VL] u
        cdef long i, j
        cdef float* out
        if self.r == 2:     # a constant argument makes the compiler specialise the transform
            transform_kernel(2, self.t, &self.kernel_transform[0, 0], k, down, across, u)
        else:
            transform_kernel(3, self.t, &self.kernel_transform[0, 0], k, down, across, u)
        for i in range(self.t * self.t):
            out = &self.weights[((point + i) * self.panels + column // NR) * self.k * NR]
            for j in range(VL):
                set_weight(out, row, column % NR + j, <float>u[i * VL + j], self.products)

    cdef Tiling tiling(self, const Geometry* g) noexcept nogil:
        """The tiles of one layer, in blocks whose V and M together fit the second-level cache."""
        cdef Tiling t
        cdef Blocking* tiles = &t.tiles
        cdef long bytes
        t.m, t.t, t.points, t.k, t.n, t.k_stride = self.m, self.t, self.points, self.k, self.n, self.k + SKEW
        t.scale, t.margin = g.step * t.m, 1 if self.shared else g.down.patch - g.step
        tiles.h, tiles.w = (g.grid.h + t.m - 1) // t.m, (g.grid.w + t.m - 1) // t.m
        if self.shared:     # whose tiles begin a pixel before the map
            tiles.h, tiles.w = (g.grid.h + t.m) // t.m, (g.grid.w + t.m) // t.m
        t.tile = t.t * t.t * self.row if in_integers(self.products) else 0
        bytes = 4 * t.points * (t.k_stride + t.n)
        tiles.columns = min(<long>BLOCK_TILES, tiles.w)
        tiles.across = (tiles.w + tiles.columns - 1) // tiles.columns
        tiles.columns = (tiles.w + tiles.across - 1) // tiles.across
        tiles.rows = min(max(1, TILES_BYTES // (bytes * tiles.columns)), tiles.h)
        tiles.down = (tiles.h + tiles.rows - 1) // tiles.rows
        t.line = (t.scale * tiles.columns + t.margin) * g.pixel
        return t

    cdef bint per_thread(self, const Geometry* g, const Tiling* t, long threads) noexcept nogil:
        """Whether threads work by themselves rather than cooperatively."""
        return (g.n * t.tiles.down * t.tiles.across >= 2 * threads
                and 4 * self.weights.shape[0] <= PER_THREAD_BYTES)

    cdef long cooperative_blocks(self, const Geometry* g, const Tiling* t, long threads) noexcept nogil:
        """Blocks that are worked on cooperatively: enough to make it worth reading all weights once.

        In equal shares, for with a small last one the others would need more memory.
        """
        cdef long enough = max(COOPERATIVE_BYTES // 4, self.weights.shape[0]) // (t.points * (t.k_stride + t.n))
        cdef long most = max(2 * threads, enough // (t.tiles.rows * t.tiles.columns))
        cdef long blocks = g.n * t.tiles.down * t.tiles.across, times = (blocks + most - 1) // most
        return (blocks + times - 1) // times

    def scratch(self, long n, long h, long w, long threads) -> int:
        """Floats of scratch that `run` needs for n inputs of h x w."""
        cdef Geometry g = self.geometry(n, h, w)
        cdef Tiling t = self.tiling(&g)
        tiles = t.tiles.rows * t.tiles.columns
        if self.per_thread(&g, &t, threads):
            work = threads * tile_set_floats(&t, tiles)
        else:
            work = tile_set_floats(&t, tiles * self.cooperative_blocks(&g, &t, threads))
        return n * self.parts(&g) * moments_size(g.filters) + work + threads * block_floats(&t)

    cdef long parts(self, const Geometry* g) noexcept nogil:
        cdef Tiling t = self.tiling(g)
        return t.tiles.down * t.tiles.across

    cdef long compute(self, Geometry* g, const Call* call) noexcept nogil:
        cdef Tiling t = self.tiling(g)
        cdef long item
        if self.per_thread(g, &t, call.threads):
            for item in prange(g.n * t.tiles.down * t.tiles.across, num_threads=call.threads, schedule="dynamic"):
                self.run_block(g, &t, call, item, threadid())
        else:
            self.run_cooperatively(g, &t, call)
        return t.tiles.down * t.tiles.across

    cdef void run_block(self, const Geometry* g, const Tiling* t, const Call* call, long index,
                        long thread) noexcept nogil:
        """One block by one thread."""
        cdef long size = tile_set_floats(t, t.tiles.rows * t.tiles.columns), item
        cdef float* v = call.work + call.threads * block_floats(t) + thread * size
        cdef TileSet tiles = tile_set(t, index, index + 1, v)
        self.read_block(g, t, &tiles, call, index, thread)
        for item in range(t.points):
            self.multiply(t, &tiles, item, 0, self.panels)
        self.write_block(g, t, &tiles, call, index)

    cdef void run_cooperatively(self, const Geometry* g, const Tiling* t, const Call* call) noexcept nogil:
        """All threads together: read some blocks, multiply them, write them."""
        cdef long blocks = g.n * t.tiles.down * t.tiles.across, first = 0, last, item
        cdef long step = self.cooperative_blocks(g, t, call.threads)
        cdef long groups
        cdef TileSet tiles
        while first < blocks:
            last = min(first + step, blocks)
            tiles = tile_set(t, first, last, call.work + call.threads * block_floats(t))
            for item in prange(first, last, num_threads=call.threads, schedule="dynamic"):
                self.read_block(g, t, &tiles, call, item, threadid())
            groups = self.panel_groups(t, tiles.count, call.threads)
            for item in prange(t.points * groups, num_threads=call.threads, schedule="dynamic"):
                self.multiply(t, &tiles, item // groups, self.panels * (item % groups) // groups,
                              self.panels * (item % groups + 1) // groups)
            for item in prange(first, last, num_threads=call.threads, schedule="dynamic"):
                self.write_block(g, t, &tiles, call, item)
            first = last

    cdef long panel_groups(self, const Tiling* t, long tiles, long threads) noexcept nogil:
        """Into how many tasks the panels of a point are cut.

        Few, so that a point's rows of V stay in one thread's cache, unless they are small.
        """
        cdef long groups = (TASKS * threads + t.points - 1) // t.points
        if tiles < FETCH_ROWS:
            groups = max(groups, self.panels // 4)
        return min(groups, self.panels)

    cdef void read_block(self, const Geometry* g, const Tiling* t, const TileSet* tiles, const Call* call, long index,
                         long thread) noexcept nogil:
        """The input of a block, then its tiles' rows of V."""
        cdef Block b = block_at(&t.tiles, index)
        cdef float* a = call.work + thread * block_floats(t)
        cdef long left = t.scale * b.x0 - g.across.before, right = t.scale * b.x1 - g.across.before + t.margin, y
        for y in range(t.scale * (b.y1 - b.y0) + t.margin):
            read_row(call.input, b.image, t.scale * b.y0 - g.down.before + y, left, right, a + y * t.line)
        if t.t == 3:
            self.read_tiles(g, t, tiles, &b, a, 3)
        elif t.t == 4:
            self.read_tiles(g, t, tiles, &b, a, 4)
        elif t.t == 5:
            self.read_tiles(g, t, tiles, &b, a, 5)
        else:
            self.read_tiles(g, t, tiles, &b, a, 6)

    cdef inline void read_tiles(self, const Geometry* g, const Tiling* t, const TileSet* tiles, const Block* b,
                                float* a, const long points) noexcept nogil:
        """The rows of V of a block's tiles, from its input and, behind that, space for a tile.

        Constants as arguments make the compiler specialise the transforms.
        """
        cdef float* v = tiles.v + (first_tile(t, b) - tiles.begin) * t.k_stride
        cdef float* transformed = a + block_input_floats(t)
        cdef long y, x, i, phase, phase_words = self.depth // ELEMENTS[<int>self.products]
        cdef const float* corner
        cdef Window window
        window.down, window.across = g.step * t.line, g.step * g.pixel
        for y in range(b.y1 - b.y0):
            for x in range(b.x1 - b.x0):
                corner = a + t.scale * (y * t.line + x * g.pixel)
                if self.transposed and not self.shared:
                    window.x = corner
                    if self.products == BFLOAT16:
                        read_phases(points, True, &window, self.depth, v, tiles.v_point)
                    else:
                        read_phases(points, False, &window, self.depth, v, tiles.v_point)
                else:
                    for phase in range(g.step * g.step):
                        window.x = corner + phase // g.step * t.line + phase % g.step * g.pixel
                        if self.products == BFLOAT16:
                            read_tile(points, True, &window, self.depth, v + phase * phase_words, tiles.v_point)
                        elif self.products == FLOAT32:
                            read_tile(points, False, &window, self.depth, v + phase * phase_words, tiles.v_point)
                        else:
                            read_tile(points, False, &window, self.depth, transformed + phase * self.depth, self.row)
                if in_integers(self.products):
                    for i in range(t.points):
                        self.store_row(transformed + i * self.row, i, v + i * tiles.v_point)
                v = v + t.k_stride

    cdef inline void store_row(self, const float* x, long point, float* v) noexcept nogil:
        """A row of V as 8-bit integers, and its step behind it. If a number isn't finite, the step is NaN."""
        cdef const vec* numbers = <const vec*>x
        cdef const vec* zeros = <const vec*>&self.row_zeros[self.kinds[point], 0]
        cdef const vec* inverses = <const vec*>&self.row_inverses[self.kinds[point], 0]
        cdef const vec* least = <const vec*>&self.row_least[self.kinds[point], 0]
        cdef const vec* most = <const vec*>&self.row_most[self.kinds[point], 0]
        cdef vec largest = splat(0), not_finite = splat(0), factor     # of NaN and infinities, 0 times them is NaN
        cdef float[MAX_VL] lanes, marks
        cdef float step = 0, mark = 0
        cdef long k
        for k in range(self.row // VL):
            largest = larger(larger(numbers[k] * least[k], numbers[k] * most[k]), largest)
            not_finite = fused(numbers[k], splat(0), not_finite)
        (<vec*>lanes)[0], (<vec*>marks)[0] = largest, not_finite
        for k in range(VL):
            step, mark = max(step, lanes[k]), mark + marks[k]
        step = step if step > LEAST_STEP else 1
        factor = splat(1 / step)
        for k in range(self.row // VL):
            store_integers(v, k * VL, fused(numbers[k], inverses[k] * factor, zeros[k]), self.products)
        v[self.k] = step + mark

    cdef void multiply(self, const Tiling* t, const TileSet* tiles, long point, long first, long last) noexcept nogil:
        """The panels first <= panel < last of M[point] = V[point] @ U[point] for all tiles."""
        cdef long per_pass = max(256, PANEL_BYTES // (4 * NR)), panel, k
        cdef Product p
        p.operand, p.tiles = self.products, self.tiles
        p.lines, p.rows, p.a_line, p.c_line = 1, tiles.count, 0, 0
        p.fetch = 4 * self.weights.shape[0] > CACHED_BYTES
        p.taps, p.tap_count, p.a_stride, p.c_stride, p.b_panel = ONE_TAP, 1, t.k_stride, t.n, 0
        for panel in range(first, last):
            p.vectors = panel_vectors(t.n, panel)
            p.c = tiles.products + point * tiles.m_point + panel * NR
            p.start, k = ZEROS, 0
            if in_integers(self.products):
                p.start = <const float*>&self.offsets[point, panel * NR]
            while k < t.k:
                p.depth = min(per_pass, t.k - k)
                p.a = tiles.v + point * tiles.v_point + k
                p.b = &self.weights[((point * self.panels + panel) * t.k + k) * NR]
                multiply_rows(&p, NULL)
                p.start = NULL
                k = k + per_pass

    cdef void write_block(self, const Geometry* g, const Tiling* t, const TileSet* tiles, const Call* call,
                          long index) noexcept nogil:
        """The outputs of a block's tiles, and their moments."""
        cdef Block b = block_at(&t.tiles, index)
        cdef long scale = g.scale * t.m, y
        cdef long top = max(scale * b.y0 - self.shared, 0), bottom = min(scale * b.y1 - self.shared, g.out_h)
        cdef long left = max(scale * b.x0 - self.shared, 0), right = min(scale * b.x1 - self.shared, g.out_w)
        cdef float* part = call.moments + index * moments_size(g.filters)
        cdef float* image = image_of(g, call, b.image)
        cdef long vectors = g.filters // VL
        cdef float* row
        cdef Moments moments
        cdef Epilogue epilogue
        if t.m == 2 and t.t == 3:
            self.write_tiles(g, t, tiles, &b, image, 2, 3)
        elif t.m == 2:
            self.write_tiles(g, t, tiles, &b, image, 2, 4)
        elif t.m == 3 and t.t == 4:
            self.write_tiles(g, t, tiles, &b, image, 3, 4)
        elif t.m == 3:
            self.write_tiles(g, t, tiles, &b, image, 3, 5)
        elif t.t == 5:
            self.write_tiles(g, t, tiles, &b, image, 4, 5)
        else:
            self.write_tiles(g, t, tiles, &b, image, 4, 6)
        epilogue.integers, epilogue.slope = False, self.inner_slope
        epilogue.units, epilogue.bias, epilogue.step = NULL, NULL, 1
        moments = begin_moments(part, g.filters, 0, vectors, (bottom - top) * (right - left), g.finds_range)
        for y in range(top, bottom):
            row = image + (y * g.out_w + left) * g.filters
            finish_rows(&epilogue, 0, row, g.filters, right - left, vectors)
            merge_rows(row, g.filters, right - left, vectors, &moments)

    cdef inline void write_tiles(self, const Geometry* g, const Tiling* t, const TileSet* tiles, const Block* b,
                                 float* image, const long m, const long points) noexcept nogil:
        """The outputs of a block's tiles, in all phases."""
        cdef long tile = first_tile(t, b) - tiles.begin, y, x, phase, r, s, c
        cdef const float* products
        cdef const float* units = NULL
        cdef OutputTile place
        cdef vec[MAX_POINTS * MAX_POINTS] d
        if in_integers(self.products):
            units = &self.column_units[0, 0]
        place.step, place.h, place.w, place.filters = g.scale, g.out_h, g.out_w, g.filters
        for y in range(b.y0, b.y1):
            for x in range(b.x0, b.x1):
                for phase in range(g.phases):
                    r, s = phase // g.scale, phase % g.scale
                    if self.shared:
                        products = tiles.products + tile * t.n + phase * g.filters
                        r, s = -r, -s
                    else:
                        products = tiles.products + phase * points * points * tiles.m_point + tile * t.n
                    place.y, place.x = g.scale * m * y + r, g.scale * m * x + s
                    for c in range(g.filters // VL):
                        if units == NULL:
                            load_sums(points, products + c * VL, tiles.m_point, d)
                        else:
                            load_integers(points, products + c * VL, tiles.m_point,
                                          units + phase * g.filters + c * VL, self.column_units.shape[1],
                                          tiles.v + tile * t.k_stride + t.k, tiles.v_point, d)
                        write_tile(m, points, d, &self.bias[c * VL], image + c * VL, &place)
                tile = tile + 1
