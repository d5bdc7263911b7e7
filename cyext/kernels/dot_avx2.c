/* Direct products with few tokens for AVX2: the same two skeletons as for AVX-512 (dot_avx512.c), 32 weights at a time.
 * Weights that fit 6 bits are multiplied unsigned and their offset taken off through the activations' sums; wider ones
 * (SIGNED) hand their sign to the activations, since the 16-bit sums of pairs would overflow. Layouts:
 * ggml/src/ggml-common.h. */
#include "dot_rows.h"
#include "load.h"
#include "plane.h"

#include <immintrin.h>

#define LOCALITY 3
#define INLINE HD_INLINE

typedef struct head32 {
    __m256 scale, offset; /* of the eight blocks of 32 */
} head32;
typedef struct head16 {
    __m256 scale[2], offset[2]; /* of the sixteen groups of 16 */
} head16;

INLINE __m256i load32(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
INLINE __m128i load16(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }
INLINE __m256 half_all(const uint8_t *p) { return _mm256_cvtph_ps(_mm_set1_epi16((short)hd_u16(p))); }
INLINE __m256i keep(__m256i v, int bits) { return _mm256_and_si256(v, _mm256_set1_epi8((char)bits)); }
/* Bits of every byte moved left by n (right if negative); neighbours' bits come in and must be masked out. */
INLINE __m256i left(__m256i v, int n) { return n >= 0 ? _mm256_slli_epi16(v, n) : _mm256_srli_epi16(v, -n); }

/* --- scales for 32 weights --- */

INLINE __m256 block_halves(const uint8_t *b, int bytes, int m) {
    uint16_t v[8] = {0};
    for (int i = 0; i < 8; i++) v[i] = i < m ? hd_u16(b + i * bytes) : 0;
    return _mm256_cvtph_ps(_mm_setr_epi16((short)v[0], (short)v[1], (short)v[2], (short)v[3], (short)v[4], (short)v[5],
                                          (short)v[6], (short)v[7]));
}
INLINE head32 offset_times(__m256 scale, float offset) {
    return (head32){scale, _mm256_mul_ps(scale, _mm256_set1_ps(offset))};
}
/* 16 bytes: their low nibbles, then their high ones. */
INLINE __m256i nibbles(const uint8_t *p) {
    __m128i v = load16(p);
    return keep(_mm256_inserti128_si256(_mm256_castsi128_si256(v), _mm_srli_epi16(v, 4), 1), 15);
}
INLINE __m256i look_up(const int8_t *table, int offset, __m256i index) {
    __m128i t = _mm_add_epi8(load16((const uint8_t *)table), _mm_set1_epi8((char)offset));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), index);
}

#define SIGNED_q8_0 1
#define SIGNED_iq4_nl 1
#define SIGNED_iq4_xs 1
#define SIGNED_q4_0 0
#define SIGNED_q4_1 0
#define SIGNED_q5_0 0
#define SIGNED_q5_1 0
#define SIGNED_mxfp4 0
#define SIGNED_q4_k 0
#define SIGNED_q5_k 0
#define SIGNED_q6_k 0
#define SIGNED_q2_k 0
#define SIGNED_q3_k 0

INLINE head32 head_q8_0(const uint8_t *b, int m) { return (head32){block_halves(b, 34, m), _mm256_setzero_ps()}; }
INLINE __m256i weights_q8_0(const uint8_t *b, int i) { return load32(b + 34 * i + 2); }
INLINE head32 head_q4_0(const uint8_t *b, int m) { return offset_times(block_halves(b, 18, m), 8.0f); }
INLINE __m256i weights_q4_0(const uint8_t *b, int i) { return nibbles(b + 18 * i + 2); }
/* A minimum is an offset below zero. */
INLINE head32 scale_min(const uint8_t *b, int bytes, int m) {
    return (head32){block_halves(b, bytes, m), _mm256_sub_ps(_mm256_setzero_ps(), block_halves(b + 2, bytes, m))};
}
/* The fifth bits of a block, one bit a weight: byte n of the word goes to bytes 8n onwards, each keeps its own bit. */
INLINE __m256i fifth_bits(__m256i low, const uint8_t *p) {
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i own = _mm256_set1_epi64x((long long)0x8040201008040201u);
    __m256i high = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)hd_u32(p)), spread), own);
    return _mm256_or_si256(low, keep(_mm256_cmpeq_epi8(high, own), 16));
}
INLINE head32 head_q4_1(const uint8_t *b, int m) { return scale_min(b, 20, m); }
INLINE __m256i weights_q4_1(const uint8_t *b, int i) { return nibbles(b + 20 * i + 4); }
INLINE head32 head_q5_0(const uint8_t *b, int m) { return offset_times(block_halves(b, 22, m), 16.0f); }
INLINE __m256i weights_q5_0(const uint8_t *b, int i) { return fifth_bits(nibbles(b + 22 * i + 6), b + 22 * i + 2); }
INLINE head32 head_q5_1(const uint8_t *b, int m) { return scale_min(b, 24, m); }
INLINE __m256i weights_q5_1(const uint8_t *b, int i) { return fifth_bits(nibbles(b + 24 * i + 8), b + 24 * i + 4); }
INLINE head32 head_iq4_nl(const uint8_t *b, int m) { return (head32){block_halves(b, 18, m), _mm256_setzero_ps()}; }
INLINE __m256i weights_iq4_nl(const uint8_t *b, int i) { return look_up(hd_values_iq4, 0, nibbles(b + 18 * i + 2)); }
INLINE head32 head_mxfp4(const uint8_t *b, int m) {
    float v[8];
    for (int i = 0; i < 8; i++) v[i] = i < m ? hd_e8m0_half(b[17 * i]) : 0.0f;
    return offset_times(_mm256_setr_ps(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]), 12.0f);
}
INLINE __m256i weights_mxfp4(const uint8_t *b, int i) { return look_up(hd_values_e2m1, 12, nibbles(b + 17 * i + 1)); }

INLINE head32 head_q4_k(const uint8_t *b, int m) {
    (void)m;
    /* Words of the block: d and dmin, then three with the low six bits of four scales, of four minima, and the rest. */
    __m128i v = load16(b);
    __m128i six = _mm_srlv_epi32(_mm_shuffle_epi32(v, 0xa5), _mm_setr_epi32(0, 2, 0, 2));
    __m128i four = _mm_srlv_epi32(_mm_shuffle_epi32(v, 0xff), _mm_setr_epi32(0, 0, 0, 4));
    six = _mm_and_si128(six, _mm_setr_epi32(0x3f3f3f3f, 0x30303030, 0x3f3f3f3f, 0x30303030));
    six = _mm_or_si128(six, _mm_and_si128(four, _mm_setr_epi32(0, 0x0f0f0f0f, 0, 0x0f0f0f0f)));
    __m128 d = _mm_cvtph_ps(v);
    __m256 d2 = _mm256_set_m128(d, d);
    return (head32){
        _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(six)), _mm256_shuffle_ps(d2, d2, 0x00)),
        _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(six, 8))), _mm256_shuffle_ps(d2, d2, 0x55))};
}
INLINE __m256i weights_q4_k(const uint8_t *b, int i) { return keep(left(load32(b + 16 + 32 * (i >> 1)), i & 1 ? -4 : 0), 15); }
INLINE head32 head_q5_k(const uint8_t *b, int m) { return head_q4_k(b, m); }
INLINE __m256i weights_q5_k(const uint8_t *b, int i) {
    return _mm256_or_si256(keep(left(load32(b + 48 + 32 * (i >> 1)), i & 1 ? -4 : 0), 15),
                           keep(left(load32(b + 16), 4 - i), 16));
}
INLINE head32 head_iq4_xs(const uint8_t *b, int m) {
    (void)m;
    __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32((int)hd_u32(b + 4)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(hd_u16(b + 2)), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    __m256i s = _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32));
    return (head32){_mm256_mul_ps(_mm256_cvtepi32_ps(s), half_all(b)), _mm256_setzero_ps()};
}
INLINE __m256i weights_iq4_xs(const uint8_t *b, int i) { return look_up(hd_values_iq4, 0, nibbles(b + 8 + 16 * i)); }

/* --- scales for 16 weights --- */

INLINE head16 scales16(__m128i bytes, __m256 d, float offset) {
    __m256 low = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), d);
    __m256 high = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))), d);
    __m256 o = _mm256_set1_ps(offset);
    return (head16){{low, high}, {_mm256_mul_ps(low, o), _mm256_mul_ps(high, o)}};
}
INLINE head16 head_q6_k(const uint8_t *b) { return scales16(load16(b + 192), half_all(b + 208), 32.0f); }
INLINE __m256i weights_q6_k(const uint8_t *b, int i) {
    int h = i >> 2, s = i & 3;
    return _mm256_or_si256(keep(left(load32(b + 64 * h + 32 * (s & 1)), s & 2 ? -4 : 0), 15),
                           keep(left(load32(b + 128 + 32 * h), 4 - 2 * s), 0x30));
}
INLINE head16 head_q2_k(const uint8_t *b) {
    __m128i v = load16(b), nibble = _mm_set1_epi8(15);
    head16 scale = scales16(_mm_and_si128(v, nibble), half_all(b + 80), 0.0f);
    head16 min = scales16(_mm_and_si128(_mm_srli_epi16(v, 4), nibble), half_all(b + 82), 0.0f);
    return (head16){{scale.scale[0], scale.scale[1]}, {min.scale[0], min.scale[1]}};
}
INLINE __m256i weights_q2_k(const uint8_t *b, int i) { return keep(left(load32(b + 16 + 32 * (i >> 2)), -2 * (i & 3)), 3); }
INLINE head16 head_q3_k(const uint8_t *b) {
    uint64_t low = hd_u64(b + 96);
    __m128i l = _mm_and_si128(_mm_set_epi64x((long long)(low >> 4), (long long)low), _mm_set1_epi8(15));
    __m128i h = _mm_srlv_epi32(_mm_set1_epi32((int)hd_u32(b + 104)), _mm_setr_epi32(0, 2, 4, 6));
    h = _mm_slli_epi16(_mm_and_si128(h, _mm_set1_epi8(3)), 4);
    return scales16(_mm_sub_epi8(_mm_or_si128(l, h), _mm_set1_epi8(32)), half_all(b + 108), 4.0f);
}
INLINE __m256i weights_q3_k(const uint8_t *b, int i) {
    return _mm256_or_si256(keep(left(load32(b + 32 + 32 * (i >> 2)), -2 * (i & 3)), 3), keep(left(load32(b), 2 - i), 4));
}

/* --- the skeletons --- */

INLINE __m256 dot32(__m256i w, __m256i x, int is_signed) {
    __m256i pairs = is_signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) : _mm256_maddubs_epi16(w, x);
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE __m256 first_floats(const float *p, int m) {
    if (m == 8) return _mm256_loadu_ps(p);
    float v[8] = {0};
    for (int i = 0; i < m; i++) v[i] = p[i];
    return _mm256_loadu_ps(v);
}

/* One piece of m blocks of 32 (8 unless the row ends). */
#define STEP32(name, m)                                                                                         \
    do {                                                                                                        \
        head32 h = head_##name(b, m);                                                                           \
        _Alignas(32) float scale[4][8];                                                                         \
        _Pragma("GCC unroll 4") for (int t = 0; t < N; t++) {                                                   \
            _mm256_store_ps(scale[t], _mm256_mul_ps(h.scale, first_floats(hd_q8_d(xs[t], k) + j / 32, m)));     \
            if (!SIGNED_##name)                                                                                 \
                off[t] = _mm256_fmadd_ps(h.offset, first_floats(hd_q8_s(xs[t], k) + j / 32, m), off[t]);        \
        }                                                                                                       \
        _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) if (i < (m)) {                                      \
            __m256i w = weights_##name(b, i);                                                                   \
            _Pragma("GCC unroll 4") for (int t = 0; t < N; t++) acc[t][i & 1] =                                 \
                _mm256_fmadd_ps(dot32(w, load32(xs[t] + j + 32 * i), SIGNED_##name),                            \
                                _mm256_broadcast_ss(&scale[t][i]), acc[t][i & 1]);                              \
        }                                                                                                       \
    } while (0)
#define STEP16(name)                                                                                            \
    do {                                                                                                        \
        head16 h = head_##name(b);                                                                              \
        _Alignas(32) float scale[4][16];                                                                        \
        _Pragma("GCC unroll 4") for (int t = 0; t < N; t++) {                                                   \
            const float *dx = hd_q8_d(xs[t], k) + j / 32;                                                       \
            const uint8_t *sums = (const uint8_t *)(hd_q8_sums(xs[t], k) + j / 16);                             \
            _Pragma("GCC unroll 2") for (int u = 0; u < 2; u++) {                                               \
                __m256 d = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(dx + 4 * u)),           \
                                                    _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));                 \
                __m256 s = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load16(sums + 16 * u)));                    \
                _mm256_store_ps(scale[t] + 8 * u, _mm256_mul_ps(h.scale[u], d));                                \
                off[t] = _mm256_fmadd_ps(_mm256_mul_ps(h.offset[u], d), s, off[t]);                             \
            }                                                                                                   \
        }                                                                                                       \
        _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) {                                                   \
            __m256i w = weights_##name(b, i);                                                                   \
            _Pragma("GCC unroll 4") for (int t = 0; t < N; t++) {                                               \
                __m256 pair = hd_pairs(scale[t] + 2 * i);                                                       \
                acc[t][i & 1] = _mm256_fmadd_ps(                                                                \
                    dot32(w, load32(xs[t] + j + 32 * i), 0),                                                    \
                    _mm256_permutevar_ps(pair, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)), acc[t][i & 1]);      \
            }                                                                                                   \
        }                                                                                                       \
    } while (0)

#define DOT32K(name, bytes) HD_DOT_ROWS(name, bytes, STEP32(name, 8), (void)0, HD_ALL)
#define DOT32(name, bytes)                                                             \
    HD_DOT_ROWS(name, bytes, STEP32(name, 8), do {                                     \
        const int left_over = (int)((k - j) / 32);                                     \
        if (left_over) STEP32(name, left_over);                                        \
    } while (0), HD_ALL)
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

INLINE __m256 floats_f16(const uint8_t *b) { return _mm256_cvtph_ps(load16(b)); }
INLINE __m256 floats_bf16(const uint8_t *b) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(b)), 16));
}
INLINE __m256 floats_f32(const uint8_t *b) { return _mm256_loadu_ps((const float *)(const void *)b); }

/* A row's last few values are copied out, so that nothing past its end is multiplied: it could be infinite. */
#define DOT_FLOATS(name, width)                                                                                 \
    INLINE void rows_##name(const hd_product *p, int64_t r0, int64_t r1, int32_t t0, const int N) {             \
        const int64_t k = p->k;                                                                                 \
        for (int64_t r = r0; r < r1; r++) {                                                                     \
            const uint8_t *b = p->w + (size_t)r * p->row_bytes;                                                 \
            __m256 acc[4][2];                                                                                   \
            for (int t = 0; t < N; t++) acc[t][0] = acc[t][1] = _mm256_setzero_ps();                            \
            int64_t j = 0;                                                                                      \
            for (; j + 32 <= k; j += 32, b += 32 * (width)) {                                                   \
                HD_PREFETCH(b, 32 * (width));                                                                   \
                _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) {                                           \
                    __m256 w = floats_##name(b + 8 * (width) * i);                                              \
                    _Pragma("GCC unroll 4") for (int t = 0; t < N; t++) acc[t][i & 1] = _mm256_fmadd_ps(        \
                        w, _mm256_loadu_ps((const float *)(const void *)p->x[t0 + t] + j + 8 * i), acc[t][i & 1]); \
                }                                                                                               \
            }                                                                                                   \
            for (; j < k; j += 8, b += 8 * (width)) {                                                           \
                int m = k - j < 8 ? (int)(k - j) : 8;                                                           \
                uint8_t end[8 * (width)];                                                                       \
                memset(end, 0, sizeof end);                                                                     \
                memcpy(end, b, (size_t)m * (width));                                                            \
                __m256 w = floats_##name(end);                                                                  \
                for (int t = 0; t < N; t++) {                                                                   \
                    float x[8] = {0};                                                                           \
                    memcpy(x, (const float *)(const void *)p->x[t0 + t] + j, (size_t)m * 4);                    \
                    acc[t][0] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x), acc[t][0]);                              \
                }                                                                                               \
            }                                                                                                   \
            for (int t = 0; t < N; t++) p->out[t0 + t][r] = hd_total(v_add(acc[t][0], acc[t][1]));              \
        }                                                                                                       \
    }                                                                                                           \
    HD_DOT(name)
DOT_FLOATS(f16, 2)
DOT_FLOATS(bf16, 2)
DOT_FLOATS(f32, 4)

const hd_dot_fn hd_dots_avx2[HD_TYPE_COUNT] = {
    [HD_F32] = dot_f32,   [HD_F16] = dot_f16,       [HD_BF16] = dot_bf16,   [HD_Q8_0] = dot_q8_0,
    [HD_Q4_0] = dot_q4_0, [HD_IQ4_NL] = dot_iq4_nl, [HD_MXFP4] = dot_mxfp4, [HD_Q4_K] = dot_q4_k,
    [HD_Q5_K] = dot_q5_k, [HD_IQ4_XS] = dot_iq4_xs, [HD_Q6_K] = dot_q6_k,   [HD_Q2_K] = dot_q2_k,
    [HD_Q3_K] = dot_q3_k, [HD_Q4_1] = dot_q4_1,     [HD_Q5_0] = dot_q5_0,   [HD_Q5_1] = dot_q5_1,
};
