"""The loops around the micro-kernels: panels of NR columns of C = A @ B, for any number of rows.

In registers, all rows are multiplied by a panel before the next panel; on tiles, two tiles of rows by all panels before
the next rows, for loading tiles is what costs, and the operands of those rows stay in the first-level cache.

K is cut into taps. A table says where in a row of A, and where in B, each tap begins, so that A may be a padded feature
map as well as a matrix (see simd.h).
"""

cdef enum:
    PANEL_BYTES = 256 * 1024    # of a panel's weights at most that are used for all rows before the next are begun
    CACHED_BYTES = 512 * 1024   # of weights, at most, that stay in the second-level cache
    FETCH_ROWS = 96             # products of fewer rows take less time than fetching the weights that follow
    SKEW = 16                   # words added to a row of A, so that its rows don't compete for one set of the cache

cdef long[2] ONE_TAP = [0, 0]   # the table for a matrix: one tap, at the beginning


cdef struct Product:
    # panels of columns of C = A @ B, added to `start` or to C itself, in `lines` of `rows` rows each
    Operand operand             # the words of A and B
    bint tiles                  # whether AMX multiplies them (amx.h)
    long lines, rows, vectors   # vectors: of VL columns; all panels but the last have two
    const long* taps            # for each tap: its offset in a row of A, its offset in a panel of B
    long tap_count, depth       # depth: words of a tap, a multiple of 4
    const float* a
    const float* b              # [word][NR] for each tap
    long b_panel                # words from one panel to the next
    const float* start          # with which the sums of each row begin; NULL to go on with those in C
    float* c                    # float32; on tiles, float16 where moments are asked for
    long a_stride, c_stride     # from one row to the next
    long a_line, c_line         # from one line to the next
    Epilogue epilogue           # of C, where moments are asked for
    bint fetch                  # whether to have what follows in B, as many words, fetched to the second-level cache


cdef inline long panels_of(const Product* p) noexcept nogil:
    return (p.vectors + 1) // 2


cdef inline long width_of(const Product* p, long panel) noexcept nogil:
    """Vectors of a panel."""
    return min(2, p.vectors - 2 * panel)


cdef void multiply_rows(const Product* p, Moments* moments) noexcept nogil:
    """Compute the product.

    Unless `moments` is NULL, the sums are complete then: they become the numbers of a map, and are merged into the
    moments of all columns.
    """
    cdef long panel
    if p.tiles:
        multiply_in_tiles(p, moments)
    else:
        for panel in range(panels_of(p)):
            multiply_in_registers(p, panel, moments)
    if moments != NULL:
        moments.pixels += p.lines * p.rows


cdef void multiply_in_registers(const Product* p, long panel, const Moments* moments) noexcept nogil:
    """Compute one panel of the product, at most MR_MAX rows at a time."""
    cdef long pieces = (p.rows + MR_MAX - 1) // MR_MAX, line, piece, at, height, first = panel * NR
    cdef const float* a
    cdef const float* init
    cdef float* c
    cdef Moments own = NONE
    if moments != NULL:
        own = moments_of(moments, first)
    for line in range(p.lines):
        for piece in range(pieces):
            at = p.rows * piece // pieces
            height = p.rows * (piece + 1) // pieces - at
            fetch_following(p, line * pieces + piece, 1, p.lines * pieces)
            a, c = p.a + line * p.a_line + at * p.a_stride, p.c + line * p.c_line + at * p.c_stride + first
            init = c
            if p.start != NULL:
                init = p.start + first
            kernel_for(height, width_of(p, panel), p.operand)(
                a, p.a_stride, p.taps, p.tap_count, p.depth, p.b + panel * p.b_panel, init,
                p.c_stride if p.start == NULL else 0, c, p.c_stride)
            if moments != NULL:
                finish_rows(&p.epilogue, 2 * panel, c, p.c_stride, height, width_of(p, panel))
                merge_rows(c, p.c_stride, height, width_of(p, panel), &own)


cdef void multiply_in_tiles(const Product* p, const Moments* moments) noexcept nogil:
    """Compute the product, two tiles of rows at a time, which may lie in two lines."""
    cdef long across = (p.rows + TILE_ROWS - 1) // TILE_ROWS, count = p.lines * across, i = 0, panel
    cdef long shaped_upper = 0, shaped_lower = 0
    cdef TileRows upper, lower
    cdef TileSums sums
    cdef Moments own = NONE
    if moments != NULL:
        own = moments[0]
    while i < count:
        upper, lower = tile_rows(p, i, across), tile_rows(p, i + 1, across)
        fetch_following(p, i, 2, count)
        if upper.rows != shaped_upper or lower.rows != shaped_lower:    # slow, but most pairs have one shape
            shape_tiles(upper.rows, lower.rows, p.depth)
            shaped_upper, shaped_lower = upper.rows, lower.rows
        for panel in range(panels_of(p)):
            if moments == NULL:
                multiply_pair(p, panel, &upper, &lower)
            else:
                finish_pair(p, panel, &upper, &lower, &sums.sums[0], &own)
        if moments != NULL:
            own.pixels += upper.rows + lower.rows
        i = i + 2
    release_tiles()


cdef inline TileRows tile_rows(const Product* p, long index, long across) noexcept nogil:
    """The rows of a tile; a line has `across` tiles. None beyond the last tile.

    Tiles of two lines take turns: those lines share more of the input than neighbours in a line do.
    """
    cdef long line = index // (2 * across) * 2, column = index % (2 * across), at
    cdef TileRows tile
    if line + 1 < p.lines:
        line, column = line + column % 2, column // 2
    at = column * TILE_ROWS
    tile.rows = max(0, min(<long>TILE_ROWS, p.rows - at))
    tile.a, tile.c = p.a + line * p.a_line + at * p.a_stride, p.c + line * p.c_line + at * p.c_stride
    tile.init = p.start
    return tile


cdef inline void multiply_pair(const Product* p, long panel, const TileRows* upper,
                               const TileRows* lower) noexcept nogil:
    """One panel of two tiles of rows, in C."""
    cdef TileRows first = upper[0], second = lower[0]
    first.c, second.c = first.c + panel * NR, second.c + panel * NR
    first.init, second.init = first.c, second.c
    if p.start != NULL:
        first.init = p.start + panel * NR
        second.init = first.init
    prefetch_rows(first.c, p.c_stride, first.rows, width_of(p, panel))
    prefetch_rows(second.c, p.c_stride, second.rows, width_of(p, panel))
    multiply_tiles(&first, &second, width_of(p, panel), p.operand, p.a_stride, p.taps, p.tap_count, p.depth,
                   p.b + panel * p.b_panel, p.c_stride if p.start == NULL else 0, p.c_stride)


cdef inline void finish_pair(const Product* p, long panel, const TileRows* upper, const TileRows* lower, float* sums,
                             const Moments* moments) noexcept nogil:
    """One panel of two tiles of rows, complete: in C as float16, and merged into the moments."""
    cdef TileRows first = upper[0], second = lower[0]
    cdef long j
    cdef vec sum
    cdef Moments of_vector
    cdef float* out = upper.c + words_of(panel * NR, True)
    cdef float* lower_out = lower.c + words_of(panel * NR, True)
    first.c, second.c = sums, sums + upper.rows * NR
    first.init = p.start + panel * NR
    second.init = first.init
    prefetch_rows(out, p.c_stride, upper.rows, 1)
    prefetch_rows(lower_out, p.c_stride, lower.rows, 1)
    multiply_tiles(&first, &second, width_of(p, panel), p.operand, p.a_stride, p.taps, p.tap_count, p.depth,
                   p.b + panel * p.b_panel, 0, NR)
    for j in range(width_of(p, panel)):
        sum = finish_halves(&p.epilogue, 2 * panel + j, first.c + j * VL, NR, upper.rows,
                            <unsigned short*>out + j * VL, 2 * p.c_stride)
        sum = sum + finish_halves(&p.epilogue, 2 * panel + j, second.c + j * VL, NR, lower.rows,
                                  <unsigned short*>lower_out + j * VL, 2 * p.c_stride)
        of_vector = moments_of(moments, panel * NR + j * VL)
        merge_vector(sums + j * VL, NR, upper.rows + lower.rows, sum, &of_vector)


cdef inline void prefetch_rows(const float* c, long stride, long rows, long vectors) noexcept nogil:
    """Fetch rows to the first-level cache while they are computed, so that storing them needs no wait."""
    cdef long i, j
    for i in range(rows):
        for j in range(vectors):
            prefetch_to_write(c + i * stride + j * VL)


cdef inline void fetch_following(const Product* p, long piece, long count, long pieces) noexcept nogil:
    """Fetch the share of `count` pieces, of all `pieces`, in the weights that follow."""
    cdef long words = panels_of(p) * p.tap_count * p.depth * NR
    cdef const float* following = p.b + (panels_of(p) - 1) * p.b_panel + p.taps[2 * p.tap_count - 1] + p.depth * NR
    if p.fetch and p.lines * p.rows >= FETCH_ROWS:
        fetch(following + words * piece // pieces, following + words * min(piece + count, pieces) // pieces)
