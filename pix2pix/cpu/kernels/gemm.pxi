"""The loop around the micro-kernels: a panel of NR columns of C = init + A @ B, for any number of rows.

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
    # up to NR columns of C = init + A @ B
    Operand operand             # the words of A and B
    bint tiles                  # whether AMX multiplies them (amx.h)
    long rows, vectors          # vectors: of VL columns, 1 or 2
    const long* taps            # for each tap: its offset in a row of A, its offset in B
    long tap_count, depth       # depth: words of a tap, a multiple of 4
    const float* a
    const float* b              # [word][NR] for each tap
    const float* init           # C itself, to go on with a sum, or a bias, whose init_stride is 0
    float* c
    long a_stride, init_stride, c_stride    # from one row to the next
    # where the moments of C are asked for
    float slope                 # of a leaky ReLU on C
    const float* units          # of sums of 8-bit integers, one for each column: see `set_floats`
    const float* bias
    float step
    bint fetch                  # whether to have what follows in B, as many words, fetched to the second-level cache


cdef void multiply_rows(const Product* p, Moments* moments) noexcept nogil:
    """Compute the product, at most MR_MAX rows at a time, or PIECE_ROWS in tiles.

    Unless `moments` is NULL, C is complete then: integers become floats, the leaky ReLU is applied, and the columns are
    merged into the moments.
    """
    cdef long most = PIECE_ROWS if p.tiles else MR_MAX
    cdef long pieces = (p.rows + most - 1) // most, piece, at, height, shaped = 0
    cdef long words = p.tap_count * p.depth * NR
    for piece in range(pieces):
        if p.tiles:     # all but the last are of one height, for shaping tiles takes long
            at = piece * most
            height = min(most, p.rows - at)
        else:
            at = p.rows * piece // pieces
            height = p.rows * (piece + 1) // pieces - at
        if p.fetch and p.rows >= FETCH_ROWS:
            fetch(p.b + words + words * piece // pieces, p.b + words + words * (piece + 1) // pieces)
        if p.tiles:
            if height != shaped:
                shape_tiles(height, p.depth)
                shaped = height
            multiply_tiles(height, p.vectors, p.operand, p.a + at * p.a_stride, p.a_stride, p.taps, p.tap_count,
                           p.depth, p.b, p.init + at * p.init_stride, p.init_stride, p.c + at * p.c_stride, p.c_stride)
        else:
            kernel_for(height, p.vectors, p.operand)(
                p.a + at * p.a_stride, p.a_stride, p.taps, p.tap_count, p.depth, p.b,
                p.init + at * p.init_stride, p.init_stride, p.c + at * p.c_stride, p.c_stride)
        if moments != NULL:
            if p.operand == INT8:
                set_floats(p.c + at * p.c_stride, p.c_stride, height, p.vectors, p.units, p.step, p.bias)
            finish_rows(p.c + at * p.c_stride, p.c_stride, height, p.vectors, p.slope, moments)
    if p.tiles:
        release_tiles()
