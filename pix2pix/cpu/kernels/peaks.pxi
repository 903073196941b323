"""The peaks of this machine: multiply-adds, and reading memory."""


OPERANDS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8 if can_vnni() else INT16}


def run_multiply_adds(long rounds, long threads, precision="float32", bint tiles=False) -> tuple[int, float]:
    """Keep all threads busy with multiply-adds in float32, bfloat16 or int8; `tiles`: those of AMX.

    They are on registers alone; those of int8 without VNNI are a micro-kernel's, from the first-level cache. rounds: a
    multiple of 128. Returns the number of operations and a sum of the results, so that the compiler keeps them.
    """
    cdef long _thread
    cdef float total = 0
    cdef Operand operand
    if rounds % 128:
        raise ValueError(f"got {rounds} rounds, expected a multiple of 128")
    if precision not in OPERANDS or (tiles and precision == "float32"):
        raise ValueError(f"got precision {precision!r}, expected {'' if tiles else 'float32, '}bfloat16 or int8")
    operand = OPERANDS[precision]
    if operand == BFLOAT16 and not can_bfloat16():
        raise RuntimeError("this processor has no AVX512_BF16")
    if tiles and not can_tiles():
        raise RuntimeError("this processor has no AMX")
    for _thread in prange(threads, nogil=True, num_threads=threads, schedule="static"):
        total += multiply_add_tiles(rounds, operand) if tiles else multiply_add(rounds, operand)
    return threads * rounds * ELEMENTS[<int>operand] * (TILE_MULTIPLY_ADDS if tiles else 12 * VL) * 2, total


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
