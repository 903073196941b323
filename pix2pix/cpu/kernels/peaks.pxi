"""Upper bounds of this machine: multiply-adds on registers, and reading memory."""


def run_multiply_adds(long rounds, long threads, bint bfloat16=False, bint tiles=False) -> tuple[int, float]:
    """Keep all threads busy with multiply-adds on registers; `tiles`: those of AMX.

    Returns the number of floating-point operations and a sum of the results, so that the compiler keeps them.
    """
    cdef long _thread
    cdef float total = 0
    if bfloat16 and not can_bfloat16():
        raise RuntimeError("this processor has no AVX512_BF16")
    if tiles and not can_tiles():
        raise RuntimeError("this processor has no AMX")
    for _thread in prange(threads, nogil=True, num_threads=threads, schedule="static"):
        total += multiply_add_tiles(rounds) if tiles else multiply_add(rounds, bfloat16)
    return threads * rounds * (TILE_FLOPS if tiles else 12 * 2 * VL * (2 if bfloat16 else 1)), total


def run_sum(const float[::1] x, long threads):
    """Sum of x, read once by all threads."""
    cdef long part, parts = 64 * threads
    cdef float total = 0
    for part in prange(parts, nogil=True, num_threads=threads, schedule="static"):
        total += sum_of(&x[0] + x.shape[0] * part // parts, x.shape[0] // parts)
    return total


cdef float sum_of(const float* x, long size) noexcept nogil:
    cdef vec a = splat(0), b = splat(0)
    cdef long i
    for i in range(size // (2 * VL)):
        a = a + (<const vec*>(x + 2 * i * VL))[0]
        b = b + (<const vec*>(x + (2 * i + 1) * VL))[0]
    return first_lane(a + b)
