"""Which taps a direct convolution multiplies, and in which order: the table of taps, tasks, passes."""

cdef struct Task:
    # some neighbouring panels of filters of one phase, over the blocks or patches begin <= i < end
    long phase, panel, panels, begin, end
    const float* weights        # of the first panel
    long first, last            # the taps that are being added up


cdef void set_taps(Geometry* g, long depth, bint reads_image, int padding) noexcept nogil:
    """Fill the table of taps for the line length of `g`; taps that meet only zeros are left out.

    depth: words of a tap. The pixels of an image lie side by side, so a whole row of taps is one tap to the product.
    """
    cdef long phase, r, s, u, v, y, x, across
    cdef bint everywhere = padding != PAD_ZEROS or in_integers(g.operand)  # whose zeros are no 0
    g.depth = depth
    for phase in range(g.phases):
        r, s = phase // g.scale, phase % g.scale
        across = 1 if reads_image else g.across.count[s]
        g.tap_count[phase] = 0
        for u in range(g.down.count[r]):
            for v in range(across):
                y, x = g.down.start[r] + u, g.across.start[s] + v
                if everywhere or (meets(y - g.down.before, g.step, g.grid.h, g.h)
                                  and (reads_image or meets(x - g.across.before, g.step, g.grid.w, g.w))):
                    g.taps[phase][2 * g.tap_count[phase]] = y * g.line + x * g.pixel
                    g.taps[phase][2 * g.tap_count[phase] + 1] = (u * across + v) * depth * NR
                    g.tap_count[phase] = g.tap_count[phase] + 1
    set_passes(g)


cdef void set_passes(Geometry* g) noexcept nogil:
    """How many taps are used before the next are begun: as many as fit PANEL_BYTES, in passes of equal length.

    On tiles, all of them: maps of float16 cannot hold sums that are incomplete.
    """
    cdef long most = 1, fitting = max(1, PANEL_BYTES // (4 * NR * g.depth)), phase, passes
    for phase in range(g.phases):
        most = max(most, g.tap_count[phase])
    passes = 1 if g.tiles else (most + fitting - 1) // fitting
    g.per_pass = (most + passes - 1) // passes


cdef inline bint meets(long offset, long step, long grid, long size) noexcept nogil:
    """Whether the row at `offset` from step * i is inside a map of `size` rows, for any of `grid` positions i."""
    cdef long i
    for i in range(grid):
        if 0 <= i * step + offset < size:
            return True
    return False


cdef inline bint next_taps(const Geometry* g, Task* task) noexcept nogil:
    """Go on to the next taps, `per_pass` at most; False if there are none left."""
    task.first = task.last
    task.last = min(task.first + g.per_pass, g.tap_count[task.phase])
    return task.first < task.last


cdef inline long chunk(long items, long threads) noexcept nogil:
    """How many neighbouring tasks a thread takes at once: it has fetched the second one's weights by then."""
    return 2 if items >= 8 * threads else 1
