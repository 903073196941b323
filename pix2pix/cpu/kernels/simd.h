/* Vectors, bfloat16, 8-bit integers, and the micro-kernels: MR rows x NV vectors of C, which stay in registers for all of K.
 *
 * Vectors are an extension of gcc and clang, so one source serves every instruction set: the compiler's flags decide
 * VL, the floats of a vector. A micro-kernel has at most MR_MAX rows and NR = 2 * VL columns. Its accumulators, two
 * vectors of B, one broadcast element of A and one product stay in the register file (32 registers with AVX-512, 16
 * without); with more than 12 rows, their addresses would not.
 *
 * A is addressed indirectly, as in Dukhan, "The Indirect Convolution Algorithm", arXiv:1907.02129: K is cut into taps,
 * and a table says where in a row of A, and where in B, each tap begins. So the same kernel reads a padded feature map,
 * a matrix of patches and any packed operand.
 */
#ifndef PIX2PIX_SIMD_H
#define PIX2PIX_SIMD_H

#if defined(__AVX512F__)
#define ISA_NAME "avx512"
#define VL 16
#define MR_MAX 12
#elif defined(__AVX2__) && defined(__FMA__)
#define ISA_NAME "avx2"
#define VL 8
#define MR_MAX 6
#else
#define ISA_NAME "portable"
#define VL 4
#define MR_MAX 6
#endif
#define NR (2 * VL)

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int vec_int __attribute__((vector_size(4 * VL)));
typedef unsigned vec_bits __attribute__((vector_size(4 * VL)));
typedef unsigned char vec_bytes __attribute__((vector_size(VL), aligned(1), may_alias));
typedef unsigned short vec_shorts __attribute__((vector_size(2 * VL), aligned(2), may_alias));

static inline vec splat(float x) { return x - (vec){0}; } /* x + 0 would be an addition: it changes -0 */

/* a * b + c, rounded once where the instruction set has that. */
static inline vec fused(vec a, vec b, vec c) {
#if VL == 16 && defined(__x86_64__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VL == 8 && defined(__x86_64__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* a > b ? a : b, which is b if one of them is NaN. */
static inline vec larger(vec a, vec b) {
#if VL == 16 && defined(__x86_64__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif VL == 8 && defined(__x86_64__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    vec_int take_a = a > b;
    return (vec)((take_a & (vec_int)a) | (~take_a & (vec_int)b));
#endif
}

/* bfloat16 is the upper half of a float, rounded to nearest, ties to even. */
static inline unsigned short to_bfloat16(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, 4);
    if (x != x) return (unsigned short)(bits >> 16 | 0x40); /* NaN, whose upper half alone might be infinity */
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* With AVX-512, for processors that have bfloat16. Their instruction rounds denormal numbers to 0. */
static inline void store_bfloat16(unsigned short *to, vec x) {
#if VL == 16 && defined(__x86_64__)
    vec_shorts rounded; /* no intrinsic: callers are compiled for every processor with AVX-512 */
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(x));
    *(vec_shorts *)to = rounded;
#else
    vec_bits bits = (vec_bits)x;
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    *(vec_shorts *)to = __builtin_convertvector(bits, vec_shorts);
#endif
}

/* 8-bit integers: to = x rounded to nearest, ties to even, within 0..255. */
static inline void store_bytes(unsigned char *to, vec x) {
    x = larger(x, splat(0.0f));
#if VL == 16 && defined(__x86_64__)
    _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32((__m512)x)));
#elif VL == 8 && defined(__x86_64__)
    __m256i whole = _mm256_cvtps_epi32((__m256)-larger(-x, splat(-255.0f)));
    __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(shorts, shorts));
#else
    x = -larger(-x, splat(-255.0f));
    *(vec_bytes *)to = __builtin_convertvector((vec_bits)(x + splat(12582912.0f)) & 255, vec_bytes); /* 1.5 * 2^23 */
#endif
}

/* The same integers, in 16 bits each. */
static inline void store_shorts(unsigned short *to, vec x) {
    x = -larger(-larger(x, splat(0.0f)), splat(-255.0f));
#if VL == 16 && defined(__x86_64__)
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32((__m512)x)));
#elif VL == 8 && defined(__x86_64__)
    __m256i whole = _mm256_cvtps_epi32((__m256)x);
    __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128((__m128i *)to, shorts);
#else
    *(vec_shorts *)to = __builtin_convertvector((vec_bits)(x + splat(12582912.0f)) & 255, vec_shorts);
#endif
}

/* Sums of products of 8-bit integers, which a vector holds as integers of 32 bits. */
static inline vec integers_to_floats(vec sums) { return __builtin_convertvector((vec_int)sums, vec); }

#define UNROLL _Pragma("GCC unroll 16")

/* What a word of A and B holds: a float, a pair of bfloat16, four integers of 8 bits, unsigned in A, signed in B, or,
 * for processors without VNNI, a pair of such integers, in 16 bits each. */
typedef enum { FLOAT32, BFLOAT16, INT8, INT16 } Operand;

/* sum + x * w, where all products of a word are added. Sums of integers have 32 bits and are exact. */
#define ADD_FLOAT(sum, x, w) (sum) + (x) * (w)
#if VL == 16 && defined(__x86_64__)
#define HAS_BFLOAT16 1
#define ADD_BFLOAT16(sum, x, w) (vec) _mm512_dpbf16_ps((__m512)(sum), (__m512bh)PAIR_OF(x), (__m512bh)(w))
#define WITH_BFLOAT16 __attribute__((target("avx512bf16")))
#if defined(__clang__) && __clang_major__ == 16 /* which crashes when it knows that x is one float, repeated */
static inline vec opaque(vec x) {
    __asm__("" : "+v"(x));
    return x;
}
#define PAIR_OF(x) opaque(x)
#else
#define PAIR_OF(x) (x)
#endif
#define HAS_INT8 1
#define ADD_INT8(sum, x, w) (vec) _mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(x), (__m512i)(w))
#define WITH_INT8 __attribute__((target("avx512vnni")))
#define PAIRS(x, w) _mm512_madd_epi16((__m512i)(x), (__m512i)(w))
#elif VL == 8 && defined(__x86_64__)
#define HAS_BFLOAT16 0
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define HAS_INT8 1
#else
#define HAS_INT8 0
#endif
#define ADD_INT8(sum, x, w) (vec) _mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(x), (__m256i)(w))
#define WITH_INT8 __attribute__((target("avxvnni")))
#define PAIRS(x, w) _mm256_madd_epi16((__m256i)(x), (__m256i)(w))
#else
#define HAS_BFLOAT16 0
#define HAS_INT8 1 /* in plain C, and slow: with it, tests of four integers to a word run anywhere */
#define ADD_INT8(sum, x, w) add_int8(sum, x, w)
#define WITH_INT8
static inline vec add_int8(vec sum, vec x, vec w) {
    vec_int total = (vec_int)sum;
    for (int bit = 0; bit < 32; bit += 8) {
        vec_int a = (vec_int)((vec_bits)x >> bit & 255), b = (vec_int)((vec_bits)w << (24 - bit)) >> 24;
        total += a * b;
    }
    return (vec)total;
}
#if defined(__SSE2__) && defined(__x86_64__)
#define PAIRS(x, w) _mm_madd_epi16((__m128i)(x), (__m128i)(w))
#else
#define PAIRS(x, w) (UPPER(x) * UPPER(w) + LOWER(x) * LOWER(w))
#define UPPER(x) ((vec_int)(x) >> 16)
#define LOWER(x) ((vec_int)((vec_bits)(x) << 16) >> 16)
#endif
#endif
#define ADD_INT16(sum, x, w) add_int16(sum, x, w)
static inline vec add_int16(vec sum, vec x, vec w) {
    vec_int total = (vec_int)sum + (vec_int)PAIRS(x, w);
#if defined(__x86_64__)
    __asm__("" : "+v"(total)); /* else gcc adds up the products of several words first, which takes more registers */
#endif
    return (vec)total;
}

/* B is read from the second-level cache or from memory, once for every MR rows. The processor's window of
 * instructions covers half as many bytes of B with vectors of 256 bits as with 512, too few to hide memory's latency.
 * Prefetching 64 rows (4 KiB) ahead makes a single image 1.1 times faster there; with 512 bits it gains nothing. */
#if VL == 8
#define FETCH_AHEAD(q) __builtin_prefetch((q) + 64 * NR)
#else
#define FETCH_AHEAD(q)
#endif

/* c[i][:] = init[i][:] + sum over taps t, words k < depth of a[i * a_stride + taps[2t] + k] * b[taps[2t+1] + k*NR + :]
 *
 * i < MR, rows of NV * VL columns. init may be c itself, to go on with a sum, or a bias, with init_stride 0. All
 * kernels add up in the same order, t and then k, so the bits don't depend on how rows are grouped. depth % 4 == 0. */
#define MICRO_KERNEL(MR, NV, NAME, TARGET, ADD)                                                                       \
    TARGET static void NAME##_##MR##x##NV(const float *a, long a_stride, const long *taps, long count, long depth,    \
                                          const float *b, const float *init, long init_stride, float *c,              \
                                          long c_stride) {                                                            \
        vec sum[MR][NV];                                                                                              \
        UNROLL for (int i = 0; i < MR; i++)                                                                           \
            UNROLL for (int j = 0; j < NV; j++) sum[i][j] = *(const vec *)(init + i * init_stride + j * VL);          \
        for (long t = 0; t < count; t++) {                                                                            \
            const float *p = a + taps[2 * t], *q = b + taps[2 * t + 1];                                               \
            for (long k = 0; k < depth; k += 4)                                                                       \
                UNROLL for (int s = 0; s < 4; s++, q += NR) {                                                         \
                    FETCH_AHEAD(q);                                                                                   \
                    vec w[NV];                                                                                        \
                    UNROLL for (int j = 0; j < NV; j++) w[j] = *(const vec *)(q + j * VL);                            \
                    UNROLL for (int i = 0; i < MR; i++) {                                                             \
                        vec x = splat(p[i * a_stride + k + s]);                                                       \
                        UNROLL for (int j = 0; j < NV; j++) sum[i][j] = ADD(sum[i][j], x, w[j]);                      \
                    }                                                                                                 \
                }                                                                                                     \
        }                                                                                                             \
        UNROLL for (int i = 0; i < MR; i++)                                                                           \
            UNROLL for (int j = 0; j < NV; j++) *(vec *)(c + i * c_stride + j * VL) = sum[i][j];                      \
    }

#define BOTH_WIDTHS_FLOAT(MR) MICRO_KERNEL(MR, 1, floats, , ADD_FLOAT) MICRO_KERNEL(MR, 2, floats, , ADD_FLOAT)
#if HAS_BFLOAT16
#define BOTH_WIDTHS_BFLOAT16(MR)                                                                                      \
    MICRO_KERNEL(MR, 1, bfloat16, WITH_BFLOAT16, ADD_BFLOAT16)                                                        \
    MICRO_KERNEL(MR, 2, bfloat16, WITH_BFLOAT16, ADD_BFLOAT16)
#else
#define BOTH_WIDTHS_BFLOAT16(MR)
#endif
#if HAS_INT8
#define BOTH_WIDTHS_INT8(MR)                                                                                          \
    MICRO_KERNEL(MR, 1, int8, WITH_INT8, ADD_INT8) MICRO_KERNEL(MR, 2, int8, WITH_INT8, ADD_INT8)
#else
#define BOTH_WIDTHS_INT8(MR)
#endif
#define BOTH_WIDTHS_INT16(MR) MICRO_KERNEL(MR, 1, int16, , ADD_INT16) MICRO_KERNEL(MR, 2, int16, , ADD_INT16)
#define BOTH_WIDTHS(MR) BOTH_WIDTHS_FLOAT(MR) BOTH_WIDTHS_BFLOAT16(MR) BOTH_WIDTHS_INT8(MR) BOTH_WIDTHS_INT16(MR)
BOTH_WIDTHS(1) BOTH_WIDTHS(2) BOTH_WIDTHS(3) BOTH_WIDTHS(4) BOTH_WIDTHS(5) BOTH_WIDTHS(6)
#if MR_MAX > 6
BOTH_WIDTHS(7) BOTH_WIDTHS(8) BOTH_WIDTHS(9) BOTH_WIDTHS(10)
BOTH_WIDTHS(11) BOTH_WIDTHS(12)
#endif

typedef void (*micro_kernel)(const float *, long, const long *, long, long, const float *, const float *, long,
                             float *, long);

/* The micro-kernel for that many rows (1..MR_MAX) and vectors (1 or 2). */
static inline micro_kernel kernel_for(long rows, long vectors, Operand operand) {
#define PAIR(NAME, MR) {NAME##_##MR##x1, NAME##_##MR##x2}
#if MR_MAX > 6
#define TABLE(NAME)                                                                                                   \
    {PAIR(NAME, 1), PAIR(NAME, 2), PAIR(NAME, 3), PAIR(NAME, 4), PAIR(NAME, 5), PAIR(NAME, 6), PAIR(NAME, 7),         \
     PAIR(NAME, 8), PAIR(NAME, 9), PAIR(NAME, 10), PAIR(NAME, 11), PAIR(NAME, 12)}
#else
#define TABLE(NAME) {PAIR(NAME, 1), PAIR(NAME, 2), PAIR(NAME, 3), PAIR(NAME, 4), PAIR(NAME, 5), PAIR(NAME, 6)}
#endif
    static const micro_kernel of_floats[MR_MAX][2] = TABLE(floats), of_int16[MR_MAX][2] = TABLE(int16);
#if HAS_BFLOAT16
    static const micro_kernel of_bfloat16[MR_MAX][2] = TABLE(bfloat16);
    if (operand == BFLOAT16) return of_bfloat16[rows - 1][vectors - 1];
#endif
#if HAS_INT8
    static const micro_kernel of_int8[MR_MAX][2] = TABLE(int8);
    if (operand == INT8) return of_int8[rows - 1][vectors - 1];
#endif
    if (operand == INT16) return of_int16[rows - 1][vectors - 1];
    return of_floats[rows - 1][vectors - 1];
#undef TABLE
#undef PAIR
}

/* Have a range of memory, which need not exist, brought to the second-level cache. */
static inline void fetch(const float *begin, const float *end) {
    for (; begin < end; begin += 16) __builtin_prefetch(begin, 0, 2);
}

/* Have one line of memory, which need not exist, brought to the first-level cache. */
static inline void prefetch(const float *p) { __builtin_prefetch(p, 0, 3); }
static inline void prefetch_to_write(const float *p) { __builtin_prefetch(p, 1, 3); }

static inline float first_lane(vec v) { return v[0]; }

static const float ZEROS[NR] = {0};

/* The best instruction set that this project builds for and the processor can run. */
static inline const char *processor_isa(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    return "portable";
}

/* Whether this file was compiled with bfloat16 kernels and the processor can run them. */
static inline int can_bfloat16(void) {
#if HAS_BFLOAT16
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return 0;
#endif
}

/* The same of the kernels of VNNI. */
static inline int can_vnni(void) {
#if VL == 16 && defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vnni") != 0;
#elif VL == 8 && defined(__x86_64__)
    unsigned eax = 0, ebx, ecx, edx;
    return HAS_INT8 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
#else
    return 0;
#endif
}

#define MULTIPLY_ADD(NAME, TARGET, ADD, ONES)                                           \
    TARGET static float multiply_add_##NAME(long rounds) {                              \
        vec x[12], ones = (vec)((vec_bits){0} + (ONES));                                \
        UNROLL for (int i = 0; i < 12; i++) x[i] = splat((float)i);                     \
        for (long r = 0; r < rounds; r++) {                                             \
            UNROLL for (int i = 0; i < 12; i++) x[i] = ADD(x[i], ones, ones);           \
        }                                                                               \
        vec total = x[0];                                                               \
        UNROLL for (int i = 1; i < 12; i++) total += x[i];                              \
        return total[0];                                                                \
    }
#if HAS_BFLOAT16
MULTIPLY_ADD(bfloat16, WITH_BFLOAT16, ADD_BFLOAT16, 0x3f803f80)
#endif
#if HAS_INT8
MULTIPLY_ADD(int8, WITH_INT8, ADD_INT8, 0x01010101)
#endif

/* Of pairs of integers, compilers would compute the product of constants once: here their micro-kernel multiplies
 * operands that stay in the first-level cache. */
static inline float multiply_add_int16(long rounds) {
    enum { DEPTH = 128 };
    const long taps[2] = {0, 0};
    const int pair = 0x00010001 * (int)(1 + rounds % 2); /* compilers don't know it */
    float a[6 * DEPTH] __attribute__((aligned(64))), b[DEPTH * NR] __attribute__((aligned(64)));
    float c[6 * NR] __attribute__((aligned(64)));
    for (int i = 0; i < 6 * DEPTH; i++) __builtin_memcpy(a + i, &pair, 4);
    for (int i = 0; i < DEPTH * NR; i++) __builtin_memcpy(b + i, &pair, 4);
    micro_kernel multiply = kernel_for(6, 2, INT16);
    __asm__ volatile("" : "+r"(multiply)); /* else compilers would compute a product once, or inline a slower copy */
    for (long r = 0; r < rounds; r += DEPTH) multiply(a, DEPTH, taps, 1, DEPTH, b, ZEROS, 0, c, NR);
    return c[0];
}

/* 12 * VL multiply-adds of words in each round: on registers alone, but for INT16, whose rounds are a multiple of 128. */
static inline float multiply_add(long rounds, Operand operand) {
#if HAS_BFLOAT16
    if (operand == BFLOAT16) return multiply_add_bfloat16(rounds);
#endif
#if HAS_INT8
    if (operand == INT8) return multiply_add_int8(rounds);
#endif
    if (operand == INT16) return multiply_add_int16(rounds);
    vec x[12], factor = splat(0.999999f), term = splat(1e-6f);
    UNROLL for (int i = 0; i < 12; i++) x[i] = splat((float)i);
    for (long r = 0; r < rounds; r++) {
        UNROLL for (int i = 0; i < 12; i++) x[i] = x[i] * factor + term;
    }
    vec total = x[0];
    UNROLL for (int i = 1; i < 12; i++) total += x[i];
    return total[0];
}

#ifdef _OPENMP
#define OPENMP_VERSION _OPENMP
#else
#define OPENMP_VERSION 0
#endif
#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define COMPILER "gcc " __VERSION__
#else
#define COMPILER "unknown"
#endif

#endif
