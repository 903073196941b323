/* Products on AMX tiles: registers of 16 rows x 64 bytes, and an instruction that multiplies two of them; and float16, in
 * which the maps that come of them are kept.
 *
 * Four tiles hold up to 32 x 32 floats of C for all of K, two hold words of A and two words of B (tdpbf16ps). The operands
 * lie in memory as for the micro-kernels of simd.h: a tile's rows are so many words of A apart, or rows of B, which has
 * pairs of channels side by side already.
 *
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2.
 */
#ifndef PIX2PIX_AMX_H
#define PIX2PIX_AMX_H

#include "simd.h"

#define TILE_ROWS 16
#define TILE_MULTIPLY_ADDS (4 * TILE_ROWS * VL * 16) /* of words: see multiply_add_tiles */

/* Up to TILE_ROWS rows of A and C, and where their sums begin. */
typedef struct {
    long rows;
    const float *a, *init;
    float *c;
} TileRows;

/* Two tiles of rows and a panel of columns of C, which stay in the first-level cache until they are complete. */
typedef struct {
    float sums[2 * TILE_ROWS * NR] __attribute__((aligned(64)));
} TileSums;

#if VL == 16 && defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

#if HAS_TILES
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WITH_TILES __attribute__((target("amx-tile,amx-bf16,amx-int8")))
#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM of arch_prctl(2) */
#define TILE_DATA 18              /* the state that it is for */

/* Whether the processor has AMX for bfloat16 and for integers of 8 bits, and the system lets this process use it. */
static inline int can_tiles(void) {
    unsigned eax, ebx, ecx, edx;
    if (!can_bfloat16() || !can_vnni() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return 0;
    return (edx >> 22 & 1) && (edx >> 24 & 3) == 3 && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

/* Words of K that a tile takes: as many as divide depth, at most 16. */
static inline long tile_words(long depth) {
    long words = 16;
    while (depth % words) words--;
    return words;
}

/* Shape the tiles for so many rows of C, at most TILE_ROWS each: C in tiles 0 to 3, of which 2 and 3 are the lower ones,
 * A in 4 and 5, B in 6 and 7. */
WITH_TILES static inline void shape_tiles(long upper, long lower, long depth) {
    struct {
        unsigned char palette, start_row, reserved[14];
        unsigned short row_bytes[16];
        unsigned char rows[16];
    } shapes = {.palette = 1};
    long words = tile_words(depth);
    for (int i = 0; i < 8; i++) {
        shapes.rows[i] = (unsigned char)(i >= 6 ? words : i == 2 || i == 3 || i == 5 ? lower : upper);
        shapes.row_bytes[i] = (unsigned short)(!shapes.rows[i] ? 0 : i == 4 || i == 5 ? 4 * words : 4 * VL);
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes)); /* gcc's intrinsic names only 8 bytes of it as an operand */
}

WITH_TILES static inline void release_tiles(void) { _tile_release(); }

/* VL numbers as float16, rounded to nearest, ties to even. Returns what was stored. */
static inline vec store_half(unsigned short *to, vec x) {
    __m256i rounded = _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256((__m256i *)to, rounded);
    return (vec)_mm512_cvtph_ps(rounded);
}

static inline vec load_half(const unsigned short *from) {
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

/* tile C += tile A @ tile B */
#define MULTIPLY(C, A, B)                       \
    do {                                        \
        if (integers) _tile_dpbusd(C, A, B);    \
        else _tile_dpbf16ps(C, A, B);           \
    } while (0)

/* See MICRO_KERNEL. `integers`: of 8 bits, else bfloat16. `both`: whether there are lower rows, `right`: columns in the
 * tiles on the right. All three are constants where this is inlined.
 *
 * B is loaded as data that is used once, so that A, which the next panel multiplies too, stays in the first-level cache. */
WITH_TILES static inline __attribute__((always_inline)) void multiply_shape(
    const int integers, const int both, const int right, const TileRows *upper, const TileRows *lower, long a_stride,
    const long *taps, long count, long depth, const float *b, long init_stride, long c_stride) {
    const long words = tile_words(depth), a_bytes = 4 * a_stride, b_bytes = 4 * NR;
    const long from = 4 * init_stride, to = 4 * c_stride;
    __asm__ volatile("" ::: "memory"); /* gcc's intrinsics to load do not say that they read memory */
    _tile_loadd(0, upper->init, from);
    if (right) _tile_loadd(1, upper->init + VL, from);
    if (both) _tile_loadd(2, lower->init, from);
    if (both && right) _tile_loadd(3, lower->init + VL, from);
    for (long t = 0; t < count; t++) {
        const float *p = upper->a + taps[2 * t], *p_lower = lower->a + taps[2 * t], *q = b + taps[2 * t + 1];
        for (long k = 0; k < depth; k += words, q += words * NR) { /* loads first: products in between delay them */
            _tile_stream_loadd(6, q, b_bytes);
            _tile_loadd(4, p + k, a_bytes);
            if (both) _tile_loadd(5, p_lower + k, a_bytes);
            if (right) _tile_stream_loadd(7, q + VL, b_bytes);
            MULTIPLY(0, 4, 6);
            if (both) MULTIPLY(2, 5, 6);
            if (right) MULTIPLY(1, 4, 7);
            if (both && right) MULTIPLY(3, 5, 7);
        }
    }
    _tile_stored(0, upper->c, to);
    if (right) _tile_stored(1, upper->c + VL, to);
    if (both) _tile_stored(2, lower->c, to);
    if (both && right) _tile_stored(3, lower->c + VL, to);
}

/* Rows of one or two vectors of C, in tiles shaped for them. `lower` may have none. */
WITH_TILES static void multiply_tiles(const TileRows *upper, const TileRows *lower, long vectors, Operand operand,
                                      long a_stride, const long *taps, long count, long depth, const float *b,
                                      long init_stride, long c_stride) {
#define MULTIPLY_SHAPE(INTEGERS, BOTH, RIGHT) \
    multiply_shape(INTEGERS, BOTH, RIGHT, upper, lower, a_stride, taps, count, depth, b, init_stride, c_stride)
#define SHAPE(BOTH, RIGHT)                                   \
    do {                                                     \
        if (operand == INT8) MULTIPLY_SHAPE(1, BOTH, RIGHT); \
        else MULTIPLY_SHAPE(0, BOTH, RIGHT);                 \
    } while (0)
    if (lower->rows && vectors > 1) SHAPE(1, 1);
    else if (lower->rows) SHAPE(1, 0);
    else if (vectors > 1) SHAPE(0, 1);
    else SHAPE(0, 0);
#undef SHAPE
#undef MULTIPLY_SHAPE
}

/* Products on registers alone, four in each round. */
WITH_TILES static float multiply_add_tiles(long rounds, Operand operand) {
    const int integers = operand == INT8;
    float sums[TILE_ROWS * VL] = {0};
    shape_tiles(TILE_ROWS, TILE_ROWS, 16); /* and fill them with zeros */
    for (long r = 0; r < rounds; r++) {
        MULTIPLY(0, 4, 6);
        MULTIPLY(1, 4, 7);
        MULTIPLY(2, 5, 6);
        MULTIPLY(3, 5, 7);
    }
    _tile_stored(0, sums, 4 * VL);
    release_tiles();
    return sums[0];
}
#else
static inline int can_tiles(void) { return 0; }
static inline float multiply_add_tiles(long rounds, Operand operand) { return (float)(0 * rounds * operand); }
static inline void shape_tiles(long upper, long lower, long depth) { (void)upper, (void)lower, (void)depth; }
static inline void release_tiles(void) {}
static inline void multiply_tiles(const TileRows *upper, const TileRows *lower, long vectors, Operand operand,
                                  long a_stride, const long *taps, long count, long depth, const float *b,
                                  long init_stride, long c_stride) {
    (void)upper, (void)lower, (void)vectors, (void)operand, (void)a_stride, (void)taps, (void)count, (void)depth, (void)b;
    (void)init_stride, (void)c_stride;
}
static inline vec store_half(unsigned short *to, vec x) { return (void)to, x; }
static inline vec load_half(const unsigned short *from) { return (void)from, splat(0); }
#endif

#endif
