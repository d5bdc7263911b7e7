/* Direct products with few tokens for AVX-512 VNNI: rows are streamed once, straight from the file's blocks.
 * Two skeletons serve all quantised types: one for scales that cover 32 weights, one for 16. A type brings its head (scales
 * and offsets of 256 weights as floats) and its weights (64 at a time, in order, unsigned); what an offset adds is taken off
 * through the sums that come with the activations. Layouts: ggml/src/ggml-common.h. */
#include "dot_rows.h"
#include "load.h"
#include "plane.h"

#include <immintrin.h>

#define LOCALITY 0 /* weights are read once */
#define INLINE HD_INLINE

/* scale[8] of the eight blocks of 32, then what to take off per unit of the activations' sums. */
typedef struct head32 {
    __m512 scale_offset;
} head32;
typedef struct head16 {
    __m512 scale, offset; /* for the sixteen groups of 16 */
} head16;

INLINE __m512i load32_twice(const uint8_t *p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
/* Shift counts for the lower and the upper 32 bytes. */
INLINE __m512i halves(int64_t low, int64_t high) { return _mm512_setr_epi64(low, low, low, low, high, high, high, high); }
INLINE __m512i quarters(int64_t a, int64_t b) { return _mm512_setr_epi64(a, a, b, b, a, a, b, b); }
INLINE __m512 join(__m256 low, __m256 high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }
INLINE __m512 half_all(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_set1_epi16((short)hd_u16(p))); }
INLINE __m512i words(short a, short b, short c, short d, short e, short f, short g, short h) {
    return _mm512_castsi128_si512(_mm_setr_epi16(a, b, c, d, e, f, g, h));
}
INLINE head32 offset_times(__m256 scale, float offset) {
    return (head32){join(scale, _mm256_mul_ps(scale, _mm256_set1_ps(offset)))};
}

/* --- scales for 32 weights --- */

/* The first words of the m blocks of `bytes`. Whole pieces pick them out of vectors (inserting them one by one costs as
 * much as the products); the short last one must not read so far. */
INLINE __m128i first_words(const uint8_t *b, int bytes, int m) {
    if (m < 8 || (bytes != 17 && bytes != 18 && bytes != 34)) {
        uint16_t v[8] = {0};
        for (int i = 0; i < m; i++) v[i] = hd_u16(b + i * bytes);
        return _mm_loadu_si128((const __m128i *)(const void *)v);
    }
    if (bytes == 34) {
        __m512i low = _mm512_permutex2var_epi16(_mm512_loadu_si512(b), words(0, 17, 34, 51, 0, 0, 0, 0),
                                                _mm512_loadu_si512(b + 64));
        __m512i high = _mm512_permutex2var_epi16(_mm512_loadu_si512(b + 128), words(0, 0, 0, 0, 4, 21, 38, 55),
                                                 _mm512_loadu_si512(b + 192));
        return _mm_blend_epi16(_mm512_castsi512_si128(low), _mm512_castsi512_si128(high), 0xf0);
    }
    __m512i index = bytes == 18 ? words(0, 9, 18, 27, 36, 45, 54, 63) : words(0, 8, 17, 25, 34, 42, 51, 59);
    return _mm512_castsi512_si128(_mm512_permutex2var_epi16(_mm512_loadu_si512(b), index, _mm512_loadu_si512(b + 64)));
}
INLINE __m256 block_halves(const uint8_t *b, int bytes, int m) { return _mm256_cvtph_ps(first_words(b, bytes, m)); }
/* Two blocks of 16 bytes, each of which holds 16 low and then 16 high nibbles. */
INLINE __m512i nibbles_of_two(const uint8_t *first, const uint8_t *second) {
    __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)first));
    v = _mm512_mask_broadcast_i32x4(v, 0xff00, _mm_loadu_si128((const __m128i *)(const void *)second));
    return _mm512_and_si512(_mm512_srlv_epi64(v, quarters(0, 4)), _mm512_set1_epi8(15));
}
INLINE __m512i look_up(const int8_t *table, int offset, __m512i index) {
    __m128i t = _mm_add_epi8(_mm_loadu_si128((const __m128i *)(const void *)table), _mm_set1_epi8((char)offset));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), index);
}

INLINE head32 head_q8_0(const uint8_t *b, int m) { return offset_times(block_halves(b, 34, m), 128.0f); }
INLINE __m512i weights_q8_0(const uint8_t *b, int i) {
    __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(b + 68 * i + 2));
    __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(b + 68 * i + 36));
    return _mm512_xor_si512(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1), _mm512_set1_epi8((char)0x80));
}
INLINE head32 head_q4_0(const uint8_t *b, int m) { return offset_times(block_halves(b, 18, m), 8.0f); }
INLINE __m512i weights_q4_0(const uint8_t *b, int i) { return nibbles_of_two(b + 36 * i + 2, b + 36 * i + 20); }
/* A minimum is an offset below zero. */
INLINE head32 scale_min(const uint8_t *b, int bytes, int m) {
    return (head32){join(block_halves(b, bytes, m), _mm256_sub_ps(_mm256_setzero_ps(), block_halves(b + 2, bytes, m)))};
}
/* The fifth bits of two blocks, one bit a weight. */
INLINE __m512i fifth_bits(__m512i low, const uint8_t *first, const uint8_t *second) {
    __mmask64 high = hd_u32(first) | (uint64_t)hd_u32(second) << 32;
    return _mm512_mask_add_epi8(low, high, low, _mm512_set1_epi8(16));
}
INLINE head32 head_q4_1(const uint8_t *b, int m) { return scale_min(b, 20, m); }
INLINE __m512i weights_q4_1(const uint8_t *b, int i) { return nibbles_of_two(b + 40 * i + 4, b + 40 * i + 24); }
INLINE head32 head_q5_0(const uint8_t *b, int m) { return offset_times(block_halves(b, 22, m), 16.0f); }
INLINE __m512i weights_q5_0(const uint8_t *b, int i) {
    return fifth_bits(nibbles_of_two(b + 44 * i + 6, b + 44 * i + 28), b + 44 * i + 2, b + 44 * i + 24);
}
INLINE head32 head_q5_1(const uint8_t *b, int m) { return scale_min(b, 24, m); }
INLINE __m512i weights_q5_1(const uint8_t *b, int i) {
    return fifth_bits(nibbles_of_two(b + 48 * i + 8, b + 48 * i + 32), b + 48 * i + 4, b + 48 * i + 28);
}
INLINE head32 head_iq4_nl(const uint8_t *b, int m) { return offset_times(block_halves(b, 18, m), 128.0f); }
INLINE __m512i weights_iq4_nl(const uint8_t *b, int i) { return look_up(hd_values_iq4, 128, weights_q4_0(b, i)); }

INLINE head32 head_mxfp4(const uint8_t *b, int m) {
    __m128i first = first_words(b, 17, m); /* odd blocks begin in the upper byte of a word */
    if (m == 8) first = _mm_srlv_epi16(first, _mm_setr_epi16(0, 8, 0, 8, 0, 8, 0, 8));
    __m256i v = _mm256_cvtepu16_epi32(_mm_and_si128(first, _mm_set1_epi16(255)));
    __m256i bits = _mm256_slli_epi32(_mm256_sub_epi32(v, _mm256_set1_epi32(1)), 23);
    __mmask8 tiny = _mm256_cmplt_epu32_mask(v, _mm256_set1_epi32(2)); /* subnormal floats */
    bits = _mm256_mask_sllv_epi32(bits, tiny, _mm256_set1_epi32(0x00200000), v);
    if (m < 8) bits = _mm256_maskz_mov_epi32((__mmask8)((1 << m) - 1), bits);
    return offset_times(_mm256_castsi256_ps(bits), 12.0f);
}
INLINE __m512i weights_mxfp4(const uint8_t *b, int i) {
    return look_up(hd_values_e2m1, 12, nibbles_of_two(b + 34 * i + 1, b + 34 * i + 18));
}

/* Eight scales times d, then eight minima times dmin, of Q4_K and Q5_K. */
INLINE __m512 head_k4(const uint8_t *b) {
    /* Words of the block: d and dmin, then a, c, e with the low six bits of four scales, of four minima, and the rest. */
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)b);
    __m128i six = _mm_srlv_epi32(_mm_shuffle_epi32(v, 0xa5), _mm_setr_epi32(0, 2, 0, 2));
    __m128i four = _mm_srlv_epi32(_mm_shuffle_epi32(v, 0xff), _mm_setr_epi32(0, 0, 0, 4));
    six = _mm_and_si128(six, _mm_setr_epi32(0x3f3f3f3f, 0x30303030, 0x3f3f3f3f, 0x30303030));
    six = _mm_ternarylogic_epi32(six, four, _mm_setr_epi32(0, 0x0f0f0f0f, 0, 0x0f0f0f0f), 0xf8);
    __m512 d = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                                     _mm512_castps128_ps512(_mm_cvtph_ps(v)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(six)), d);
}
/* High nibbles stay where they are, 16 times too large; the scales of the odd blocks make it good, exactly. */
INLINE head32 head_q4_k(const uint8_t *b, int m) {
    (void)m;
    const float s = 0.0625f;
    return (head32){_mm512_mul_ps(head_k4(b), _mm512_setr_ps(1, s, 1, s, 1, s, 1, s, 1, 1, 1, 1, 1, 1, 1, 1))};
}
INLINE __m512i weights_q4_k(const uint8_t *b, int i) {
    return _mm512_and_si512(load32_twice(b + 16 + 32 * i), halves(0x0f0f0f0f0f0f0f0f, (int64_t)0xf0f0f0f0f0f0f0f0));
}
INLINE head32 head_q5_k(const uint8_t *b, int m) {
    (void)m;
    return (head32){head_k4(b)};
}
INLINE __m512i weights_q5_k(const uint8_t *b, int i) {
    /* Bits 2i and 2i + 1 come to place 4; what a rotation brings in from the next byte is masked out. */
    __m512i high = _mm512_rolv_epi64(load32_twice(b + 16), halves((4 - 2 * i) & 63, (3 - 2 * i) & 63));
    __m512i low = _mm512_and_si512(_mm512_srlv_epi64(load32_twice(b + 48 + 32 * i), halves(0, 4)), _mm512_set1_epi8(15));
    return _mm512_ternarylogic_epi64(low, high, _mm512_set1_epi8(16), 0xf8);
}
INLINE head32 head_iq4_xs(const uint8_t *b, int m) {
    (void)m;
    uint64_t s = _pdep_u64(hd_u32(b + 4), 0x0f0f0f0f0f0f0f0full) | _pdep_u64(hd_u16(b + 2), 0x3030303030303030ull);
    __m256i v = _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)s)), _mm256_set1_epi32(32));
    return offset_times(_mm256_mul_ps(_mm256_cvtepi32_ps(v), _mm512_castps512_ps256(half_all(b))), 128.0f);
}
INLINE __m512i weights_iq4_xs(const uint8_t *b, int i) {
    return look_up(hd_values_iq4, 128, nibbles_of_two(b + 8 + 32 * i, b + 24 + 32 * i));
}

/* --- scales for 16 weights --- */

INLINE head16 head_q6_k(const uint8_t *b) {
    __m512i s = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(b + 192)));
    __m512 scale = _mm512_mul_ps(_mm512_cvtepi32_ps(s), half_all(b + 208));
    return (head16){scale, _mm512_mul_ps(scale, _mm512_set1_ps(32.0f))};
}
INLINE __m512i weights_q6_k(const uint8_t *b, int i) {
    __m512i low = _mm512_loadu_si512(b + 64 * (i >> 1));
    if (i & 1) low = _mm512_srli_epi16(low, 4);
    __m512i high = _mm512_rolv_epi64(load32_twice(b + 128 + 32 * (i >> 1)), i & 1 ? halves(0, 62) : halves(4, 2));
    return _mm512_ternarylogic_epi64(_mm512_and_si512(low, _mm512_set1_epi8(15)), high, _mm512_set1_epi8(0x30), 0xf8);
}
/* The four pairs of bits stay where they are, 1, 4, 16 and 64 times too large, and the scales make it good, exactly. */
INLINE head16 head_q2_k(const uint8_t *b) {
    const float q = 0.25f, h = 0.0625f, o = 0.015625f;
    __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)b));
    __m512 scale = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(15))),
                                 _mm512_setr_ps(1, 1, q, q, h, h, o, o, 1, 1, q, q, h, h, o, o));
    return (head16){_mm512_mul_ps(scale, half_all(b + 80)),
                    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(v, 4)), half_all(b + 82))};
}
INLINE __m512i weights_q2_k(const uint8_t *b, int i) {
    __m512i bits = i & 1 ? halves(0x3030303030303030, (int64_t)0xc0c0c0c0c0c0c0c0)
                         : halves(0x0303030303030303, 0x0c0c0c0c0c0c0c0c);
    return _mm512_and_si512(load32_twice(b + 16 + 32 * (i >> 1)), bits);
}
INLINE head16 head_q3_k(const uint8_t *b) {
    uint64_t low = hd_u64(b + 96);
    __m128i l = _mm_and_si128(_mm_set_epi64x((long long)(low >> 4), (long long)low), _mm_set1_epi8(15));
    __m128i h = _mm_srlv_epi32(_mm_set1_epi32((int)hd_u32(b + 104)), _mm_setr_epi32(0, 2, 4, 6));
    h = _mm_slli_epi16(_mm_and_si128(h, _mm_set1_epi8(3)), 4);
    __m512i s = _mm512_cvtepi8_epi32(_mm_sub_epi8(_mm_or_si128(l, h), _mm_set1_epi8(32)));
    __m512 scale = _mm512_mul_ps(_mm512_cvtepi32_ps(s), half_all(b + 108));
    return (head16){scale, _mm512_mul_ps(scale, _mm512_set1_ps(4.0f))};
}
INLINE __m512i weights_q3_k(const uint8_t *b, int i) {
    __m512i v = _mm512_srlv_epi64(load32_twice(b + 32 + 32 * (i >> 1)), i & 1 ? halves(4, 6) : halves(0, 2));
    __m512i high = _mm512_rolv_epi64(load32_twice(b), halves((2 - 2 * i) & 63, (1 - 2 * i) & 63));
    return _mm512_ternarylogic_epi64(_mm512_and_si512(v, _mm512_set1_epi8(3)), high, _mm512_set1_epi8(4), 0xf8);
}

/* --- the skeletons --- */

#define LANES32(i) _mm512_setr_epi32(2*(i), 2*(i), 2*(i), 2*(i), 2*(i), 2*(i), 2*(i), 2*(i), 2*(i)+1, 2*(i)+1, 2*(i)+1, \
                                     2*(i)+1, 2*(i)+1, 2*(i)+1, 2*(i)+1, 2*(i)+1)
#define LANES16(i) _mm512_setr_epi32(4*(i), 4*(i), 4*(i), 4*(i), 4*(i)+1, 4*(i)+1, 4*(i)+1, 4*(i)+1, 4*(i)+2, 4*(i)+2, \
                                     4*(i)+2, 4*(i)+2, 4*(i)+3, 4*(i)+3, 4*(i)+3, 4*(i)+3)

/* One piece of m blocks of 32 (8 unless the row ends). Past its end the weights are whatever follows; their scales are 0. */
#define STEP32(name, m)                                                                                         \
    do {                                                                                                        \
        head32 h = head_##name(b, m);                                                                           \
        __m512i w[4];                                                                                           \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)                                            \
            w[i] = 2 * i < (m) ? weights_##name(b, i) : _mm512_setzero_si512();                                 \
        __mmask8 valid = (__mmask8)((1u << (m)) - 1);                                                           \
        _Pragma("GCC unroll 4") for (int t = 0; t < N; t++) {                                                   \
            const uint8_t *x = xs[t];                                                                           \
            __m512 s = _mm512_mul_ps(h.scale_offset, join(_mm256_maskz_loadu_ps(valid, hd_q8_d(x, k) + j / 32), \
                                                          _mm256_maskz_loadu_ps(valid, hd_q8_s(x, k) + j / 32))); \
            off[t] = _mm512_add_ps(off[t], s);                                                                  \
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) if (2 * i < (m)) {                              \
                __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[i], _mm512_loadu_si512(x + j + 64 * i)); \
                acc[t][i & 1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(LANES32(i), s), acc[t][i & 1]); \
            }                                                                                                   \
        }                                                                                                       \
    } while (0)
#define STEP16(name)                                                                                            \
    do {                                                                                                        \
        head16 h = head_##name(b);                                                                              \
        __m512i w[4];                                                                                           \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) w[i] = weights_##name(b, i);                        \
        _Pragma("GCC unroll 4") for (int t = 0; t < N; t++) {                                                   \
            const uint8_t *x = xs[t];                                                                           \
            __m512 d = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), \
                                             _mm512_castps256_ps512(_mm256_loadu_ps(hd_q8_d(x, k) + j / 32)));  \
            __m512i sums = _mm512_cvtepi16_epi32(                                                               \
                _mm256_loadu_si256((const __m256i *)(const void *)(hd_q8_sums(x, k) + j / 16)));                \
            off[t] = _mm512_fmadd_ps(_mm512_mul_ps(h.offset, d), _mm512_cvtepi32_ps(sums), off[t]);             \
            __m512 s = _mm512_mul_ps(h.scale, d);                                                               \
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) {                                               \
                __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[i], _mm512_loadu_si512(x + j + 64 * i)); \
                acc[t][i & 1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(LANES16(i), s), acc[t][i & 1]); \
            }                                                                                                   \
        }                                                                                                       \
    } while (0)

INLINE __m512 upper(__m512 v) { return _mm512_maskz_mov_ps(0xff00, v); }

#define DOT32K(name, bytes) HD_DOT_ROWS(name, bytes, STEP32(name, 8), (void)0, upper)
#define DOT32(name, bytes)                                                             \
    HD_DOT_ROWS(name, bytes, STEP32(name, 8), do {                                     \
        const int left = (int)((k - j) / 32);                                          \
        if (left) STEP32(name, left);                                                  \
    } while (0), upper)
#define DOT16(name, bytes) HD_DOT_ROWS(name, bytes, STEP16(name), (void)0, HD_ALL)

DOT32(q8_0, 272)
DOT32(q4_0, 144)
DOT32(q4_1, 160)
DOT32(q5_0, 176)
DOT32(q5_1, 192)
DOT32(iq4_nl, 144)
DOT32(mxfp4, 136)
DOT32K(q4_k, 144)
DOT32K(q5_k, 176)
DOT32K(iq4_xs, 136)
DOT16(q6_k, 210)
DOT16(q2_k, 84)
DOT16(q3_k, 110)

/* --- halves times floats --- */

INLINE __m512 floats_f16(const uint8_t *b) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)b));
}
INLINE __m512 floats_bf16(const uint8_t *b) {
    __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)b));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}
INLINE __m512 floats_f32(const uint8_t *b) { return _mm512_loadu_ps(b); }

/* Past a row's end weights are cut off before they are multiplied: they could be infinite. */
#define DOT_FLOATS(name, width)                                                                                 \
    INLINE void rows_##name(const hd_product *p, int64_t r0, int64_t r1, int32_t t0, const int N) {             \
        const int64_t k = p->k;                                                                                 \
        for (int64_t r = r0; r < r1; r++) {                                                                     \
            const uint8_t *b = p->w + (size_t)r * p->row_bytes;                                                 \
            __m512 acc[4][4];                                                                                   \
            for (int t = 0; t < N; t++)                                                                         \
                for (int i = 0; i < 4; i++) acc[t][i] = _mm512_setzero_ps();                                    \
            int64_t j = 0;                                                                                      \
            for (; j + 64 <= k; j += 64, b += 64 * (width)) {                                                   \
                HD_PREFETCH(b, 64 * (width));                                                                   \
                _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) {                                           \
                    __m512 w = floats_##name(b + 16 * (width) * i);                                             \
                    _Pragma("GCC unroll 4") for (int t = 0; t < N; t++) acc[t][i] = _mm512_fmadd_ps(            \
                        w, _mm512_loadu_ps((const float *)(const void *)p->x[t0 + t] + j + 16 * i), acc[t][i]); \
                }                                                                                               \
            }                                                                                                   \
            for (; j < k; j += 16, b += 16 * (width)) {                                                         \
                __mmask16 valid = k - j >= 16 ? 0xffff : (__mmask16)((1u << (k - j)) - 1);                      \
                __m512 w = _mm512_maskz_mov_ps(valid, floats_##name(b));                                        \
                for (int t = 0; t < N; t++)                                                                     \
                    acc[t][0] = _mm512_fmadd_ps(                                                                \
                        w, _mm512_maskz_loadu_ps(valid, (const float *)(const void *)p->x[t0 + t] + j), acc[t][0]); \
            }                                                                                                   \
            for (int t = 0; t < N; t++)                                                                         \
                p->out[t0 + t][r] = hd_total(v_add(v_add(acc[t][0], acc[t][1]), v_add(acc[t][2], acc[t][3])));  \
        }                                                                                                       \
    }                                                                                                           \
    HD_DOT(name)
DOT_FLOATS(f16, 2)
DOT_FLOATS(bf16, 2)
DOT_FLOATS(f32, 4)

const hd_dot_fn hd_dots_avx512[HD_TYPE_COUNT] = {
    [HD_F32] = dot_f32,   [HD_F16] = dot_f16,   [HD_BF16] = dot_bf16,     [HD_Q8_0] = dot_q8_0,
    [HD_Q4_0] = dot_q4_0, [HD_IQ4_NL] = dot_iq4_nl, [HD_MXFP4] = dot_mxfp4, [HD_Q4_K] = dot_q4_k,
    [HD_Q5_K] = dot_q5_k, [HD_IQ4_XS] = dot_iq4_xs, [HD_Q6_K] = dot_q6_k, [HD_Q2_K] = dot_q2_k,
    [HD_Q3_K] = dot_q3_k, [HD_Q4_1] = dot_q4_1, [HD_Q5_0] = dot_q5_0,     [HD_Q5_1] = dot_q5_1,
};
