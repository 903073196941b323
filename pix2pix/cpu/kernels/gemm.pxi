"""The loop around the micro-kernels: a panel of NR columns of C = A @ B, for any number of rows.

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
    # up to NR columns of C = A @ B, added to `start` or to C itself, in `lines` of `rows` rows each
    Operand operand             # the words of A and B
    bint tiles                  # whether AMX multiplies them (amx.h)
    long lines, rows, vectors   # vectors: of VL columns, 1 or 2
    const long* taps            # for each tap: its offset in a row of A, its offset in B
    long tap_count, depth       # depth: words of a tap, a multiple of 4
    const float* a
    const float* b              # [word][NR] for each tap
    const float* start          # with which the sums of each row begin; NULL to go on with those in C
    float* c
    long a_stride, c_stride     # from one row to the next
    long a_line, c_line         # from one line to the next
    # where the moments of C are asked for
    float slope                 # of a leaky ReLU on C
    const float* units          # of sums of 8-bit integers, one for each column: see `set_floats`
    const float* bias
    float step
    bint fetch                  # whether to have what follows in B, as many words, fetched to the second-level cache


cdef void multiply_rows(const Product* p, Moments* moments) noexcept nogil:
    """Compute the product.

    Unless `moments` is NULL, C is complete then: integers become floats, the leaky ReLU is applied, and the columns are
    merged into the moments.
    """
    if p.tiles:
        multiply_in_tiles(p, moments)
    else:
        multiply_in_registers(p, moments)


cdef void multiply_in_registers(const Product* p, Moments* moments) noexcept nogil:
    """Compute the product, at most MR_MAX rows at a time."""
    cdef long pieces = (p.rows + MR_MAX - 1) // MR_MAX, line, piece, at, height
    cdef const float* a
    cdef float* c
    for line in range(p.lines):
        for piece in range(pieces):
            at = p.rows * piece // pieces
            height = p.rows * (piece + 1) // pieces - at
            fetch_following(p, line * pieces + piece, 1, p.lines * pieces)
            a, c = p.a + line * p.a_line + at * p.a_stride, p.c + line * p.c_line + at * p.c_stride
            kernel_for(height, p.vectors, p.operand)(
                a, p.a_stride, p.taps, p.tap_count, p.depth, p.b, c if p.start == NULL else p.start,
                p.c_stride if p.start == NULL else 0, c, p.c_stride)
            finish_product(p, c, height, moments)


cdef void multiply_in_tiles(const Product* p, Moments* moments) noexcept nogil:
    """Compute the product, two tiles of rows at a time, which may lie in two lines."""
    cdef long across = (p.rows + TILE_ROWS - 1) // TILE_ROWS, count = p.lines * across, i = 0
    cdef long shaped_upper = 0, shaped_lower = 0
    cdef TileRows upper, lower
    while i < count:
        upper, lower = tile_rows(p, i, across), tile_rows(p, i + 1, across)
        fetch_following(p, i, 2, count)
        if upper.rows != shaped_upper or lower.rows != shaped_lower:    # slow, but most pairs have one shape
            shape_tiles(upper.rows, lower.rows, p.depth)
            shaped_upper, shaped_lower = upper.rows, lower.rows
        prefetch_rows(p, &upper)
        prefetch_rows(p, &lower)
        multiply_tiles(&upper, &lower, p.vectors, p.operand, p.a_stride, p.taps, p.tap_count, p.depth, p.b,
                       p.c_stride if p.start == NULL else 0, p.c_stride)
        if upper.rows == TILE_ROWS and lower.c == upper.c + TILE_ROWS * p.c_stride:
            finish_product(p, upper.c, upper.rows + lower.rows, moments)
        else:
            finish_product(p, upper.c, upper.rows, moments)
            finish_product(p, lower.c, lower.rows, moments)
        i = i + 2
    release_tiles()


cdef inline TileRows tile_rows(const Product* p, long index, long across) noexcept nogil:
    """The rows of a tile; a line has `across` tiles. None beyond the last line."""
    cdef long line = index // across, at = index % across * TILE_ROWS
    cdef TileRows tile
    tile.rows = min(<long>TILE_ROWS, p.rows - at) if line < p.lines else 0
    tile.a, tile.c = p.a + line * p.a_line + at * p.a_stride, p.c + line * p.c_line + at * p.c_stride
    tile.init = tile.c if p.start == NULL else p.start
    return tile


cdef inline void prefetch_rows(const Product* p, const TileRows* tile) noexcept nogil:
    """Fetch the rows of C to the first-level cache while they are computed, so that storing them needs no wait."""
    cdef long i, j
    for i in range(tile.rows):
        for j in range(p.vectors):
            prefetch_to_write(tile.c + i * p.c_stride + j * VL)


cdef inline void fetch_following(const Product* p, long piece, long count, long pieces) noexcept nogil:
    """Fetch the share of `count` pieces, of all `pieces`, in the weights that follow."""
    cdef long words = p.tap_count * p.depth * NR
    cdef const float* following = p.b + p.taps[2 * p.tap_count - 1] + p.depth * NR
    if p.fetch and p.lines * p.rows >= FETCH_ROWS:
        fetch(following + words * piece // pieces, following + words * min(piece + count, pieces) // pieces)


cdef inline void finish_product(const Product* p, float* c, long rows, Moments* moments) noexcept nogil:
    """What follows the sums of some rows, if they are complete."""
    if moments == NULL or rows == 0:
        return
    if p.operand == INT8:
        set_floats(c, p.c_stride, rows, p.vectors, p.units, p.step, p.bias)
    finish_rows(c, p.c_stride, rows, p.vectors, p.slope, moments)
