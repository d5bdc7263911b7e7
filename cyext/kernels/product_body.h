/* Unpacking and products by way of planes, compiled once per instruction set (HD_NAME, HD_DOTS from the including file).
 * A sum is built in a fixed order from one row and one token, so it depends neither on r0, r1 nor on the other tokens. */
#include "load.h"
#include "plane.h"
#include "product.h"

#if defined(__AVX2__)
#include <immintrin.h>
#define HD_FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#define HD_FMA(a, b, c) ((a) * (b) + (c))
#endif

/* --- a plane to floats --- */

static inline void HD_NAME(expand)(const hd_plane *p, int64_t n, int has_min, float *restrict out) {
    for (int64_t g = 0; g < n / 16; g++) {
        float scale = p->scale[g], min = p->min[g];
        if (has_min)
            for (int j = 0; j < 16; j++) out[16 * g + j] = scale * (float)p->q[16 * g + j] - min;
        else
            for (int j = 0; j < 16; j++) out[16 * g + j] = scale * (float)p->q[16 * g + j];
    }
}

static void HD_NAME(unpack_plane)(int32_t type, const void *blocks, float *out, int64_t n) {
    const uint8_t *b = blocks;
    hd_plane plane;
    hd_plane_fn spread = HD_NAME(hd_planes)[type];
    int64_t step = (int64_t)HD_PLANE / hd_types[type].block * hd_types[type].bytes;
    for (int64_t i = 0; i < n; i += HD_PLANE, b += step) {
        int64_t m = n - i < HD_PLANE ? n - i : HD_PLANE;
        spread(b, m, &plane);
        HD_NAME(expand)(&plane, m, hd_plane_has_min(type), out + i);
    }
}

static void HD_NAME(unpack_f32)(const void *blocks, float *out, int64_t n) { memcpy(out, blocks, 4 * (size_t)n); }
static void HD_NAME(unpack_bf16)(const void *blocks, float *out, int64_t n) {
    const uint8_t *b = blocks;
    for (int64_t i = 0; i < n; i++) out[i] = hd_bf16(hd_u16(b + 2 * i));
}
static void HD_NAME(unpack_f16)(const void *blocks, float *out, int64_t n) {
    const uint8_t *b = blocks;
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(b + 2 * i))));
#elif defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(b + 2 * i))));
#endif
    for (; i < n; i++) out[i] = hd_f16_at(b + 2 * i);
}

#define UNPACK(name, type)                                                            \
    static void HD_NAME(unpack_##name)(const void *blocks, float *out, int64_t n) {   \
        HD_NAME(unpack_plane)(type, blocks, out, n);                                  \
    }
UNPACK(q4_0, HD_Q4_0) UNPACK(q4_1, HD_Q4_1) UNPACK(q5_0, HD_Q5_0) UNPACK(q5_1, HD_Q5_1) UNPACK(q8_0, HD_Q8_0)
UNPACK(q2_k, HD_Q2_K) UNPACK(q3_k, HD_Q3_K) UNPACK(q4_k, HD_Q4_K) UNPACK(q5_k, HD_Q5_K) UNPACK(q6_k, HD_Q6_K)
UNPACK(iq2_xxs, HD_IQ2_XXS) UNPACK(iq2_xs, HD_IQ2_XS) UNPACK(iq2_s, HD_IQ2_S) UNPACK(iq3_xxs, HD_IQ3_XXS)
UNPACK(iq3_s, HD_IQ3_S) UNPACK(iq1_s, HD_IQ1_S) UNPACK(iq1_m, HD_IQ1_M) UNPACK(iq4_nl, HD_IQ4_NL)
UNPACK(iq4_xs, HD_IQ4_XS) UNPACK(tq1_0, HD_TQ1_0) UNPACK(tq2_0, HD_TQ2_0) UNPACK(mxfp4, HD_MXFP4)
UNPACK(nvfp4, HD_NVFP4)

const hd_unpack_fn HD_NAME(hd_unpackers)[HD_TYPE_COUNT] = {
    [HD_F32] = HD_NAME(unpack_f32),         [HD_F16] = HD_NAME(unpack_f16),         [HD_BF16] = HD_NAME(unpack_bf16),
    [HD_Q4_0] = HD_NAME(unpack_q4_0),       [HD_Q4_1] = HD_NAME(unpack_q4_1),       [HD_Q5_0] = HD_NAME(unpack_q5_0),
    [HD_Q5_1] = HD_NAME(unpack_q5_1),       [HD_Q8_0] = HD_NAME(unpack_q8_0),       [HD_Q2_K] = HD_NAME(unpack_q2_k),
    [HD_Q3_K] = HD_NAME(unpack_q3_k),       [HD_Q4_K] = HD_NAME(unpack_q4_k),       [HD_Q5_K] = HD_NAME(unpack_q5_k),
    [HD_Q6_K] = HD_NAME(unpack_q6_k),       [HD_IQ2_XXS] = HD_NAME(unpack_iq2_xxs), [HD_IQ2_XS] = HD_NAME(unpack_iq2_xs),
    [HD_IQ2_S] = HD_NAME(unpack_iq2_s),     [HD_IQ3_XXS] = HD_NAME(unpack_iq3_xxs), [HD_IQ3_S] = HD_NAME(unpack_iq3_s),
    [HD_IQ1_S] = HD_NAME(unpack_iq1_s),     [HD_IQ1_M] = HD_NAME(unpack_iq1_m),     [HD_IQ4_NL] = HD_NAME(unpack_iq4_nl),
    [HD_IQ4_XS] = HD_NAME(unpack_iq4_xs),   [HD_TQ1_0] = HD_NAME(unpack_tq1_0),     [HD_TQ2_0] = HD_NAME(unpack_tq2_0),
    [HD_MXFP4] = HD_NAME(unpack_mxfp4),     [HD_NVFP4] = HD_NAME(unpack_nvfp4),
};

/* --- sums in sixteen lanes, so that the vectoriser may keep them apart and every width adds in the same order --- */

typedef struct HD_NAME(lanes) { float v[16]; } HD_NAME(lanes);

static inline float HD_NAME(total)(const float *restrict v) {
    float a[8];
    for (int i = 0; i < 8; i++) a[i] = v[i] + v[i + 8];
    for (int i = 0; i < 4; i++) a[i] += a[i + 4];
    return (a[0] + a[2]) + (a[1] + a[3]);
}
static inline void HD_NAME(fma_piece)(float *restrict acc, const float *restrict w, const float *restrict x, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) acc[j] = HD_FMA(w[i + j], x[i + j], acc[j]);
    for (int j = 0; i < n; i++, j++) acc[j] = HD_FMA(w[i], x[i], acc[j]);
}

/* Activations of one token, m values from j, as floats. */
static inline const float *HD_NAME(act_floats)(hd_act kind, const uint8_t *row, int64_t k, int64_t j, int64_t m,
                                               float *restrict room) {
    if (kind == HD_ACT_F32) return (const float *)(const void *)row + j;
    if (kind == HD_ACT_BF16) {
        const uint16_t *x = (const uint16_t *)(const void *)row + j;
        for (int64_t i = 0; i < m; i++) room[i] = hd_bf16(x[i]);
    } else {
        const int8_t *q = hd_act_q(row) + j;
        const float *d = hd_q8_d(row, k); /* Q8K's scales begin at the same place */
        int64_t block = kind == HD_ACT_Q8 ? HD_ACT_BLOCK : HD_ACT_SUPER;
        for (int64_t i = 0; i < m; i += 16) {
            float scale = d[(j + i) / block];
            int64_t end = m - i < 16 ? m - i : 16;
            for (int64_t e = 0; e < end; e++) room[i + e] = scale * (float)q[i + e];
        }
    }
    return room;
}

/* One row, up to 4 tokens, whatever the types: floats times floats. */
static void HD_NAME(row_floats)(const hd_product *p, const uint8_t *w, int32_t t0, int32_t n, float *sums) {
    _Alignas(64) float piece[HD_PLANE], room[HD_PLANE], acc[4][16] = {{0}};
    const hd_type_info *info = &hd_types[p->type];
    for (int64_t j = 0; j < p->k; j += HD_PLANE) {
        int64_t m = p->k - j < HD_PLANE ? p->k - j : HD_PLANE;
        HD_NAME(hd_unpackers)[p->type](w + j / info->block * info->bytes, piece, m);
        for (int32_t t = 0; t < n; t++)
            HD_NAME(fma_piece)(acc[t], piece, HD_NAME(act_floats)((hd_act)p->act, p->x[t0 + t], p->k, j, m, room), m);
    }
    for (int32_t t = 0; t < n; t++) sums[t] = HD_NAME(total)(acc[t]);
}

/* --- planes times 8-bit activations --- */

#if defined(__AVX512VNNI__)
/* VNNI multiplies unsigned by signed bytes: the weights' signs move over to the activations. (Adding 128 to the weights
 * instead makes lanes that are large and cancel, which costs the floats' last digits where weights are small.) */
static inline __m512 HD_NAME(plane_dot)(const hd_plane *p, int64_t m, const int8_t *q, __m512 d, const int16_t *sums,
                                        int has_min, __m512 acc) {
    __mmask16 groups = (__mmask16)((1u << (m / 16)) - 1);
    __m512 scale = _mm512_mul_ps(_mm512_maskz_loadu_ps(groups, p->scale), d);
    if (has_min) {
        __m512 sum = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(groups, sums)));
        acc = _mm512_fnmadd_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(groups, p->min), d), sum, acc);
    }
    __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (int64_t i = 0; i < m; i += 64) {
        __mmask64 valid = m - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (m - i)) - 1;
        __m512i w = _mm512_load_si512(p->q + i), x = _mm512_maskz_loadu_epi8(valid, q + i);
        x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
        __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_abs_epi8(w), x);
        acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(lane, scale), acc);
        lane = _mm512_add_epi32(lane, _mm512_set1_epi32(4));
    }
    return acc;
}
#elif defined(__AVX2__)
static inline __m256 HD_NAME(plane_dot)(const hd_plane *p, int64_t m, const int8_t *q, const float *d, int shift,
                                        const int16_t *sums, int has_min, __m256 acc) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t i = 0; i < m / 32; i++) {
        __m256i w = _mm256_load_si256((const __m256i *)(const void *)(p->q + 32 * i));
        __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(q + 32 * i));
        __m256i dot = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), ones);
        float dx = d[i >> shift];
        __m256 scale = _mm256_setr_m128(_mm_set1_ps(p->scale[2 * i] * dx), _mm_set1_ps(p->scale[2 * i + 1] * dx));
        acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, acc);
        if (has_min) {
            float take = dx * (p->min[2 * i] * (float)sums[2 * i] + p->min[2 * i + 1] * (float)sums[2 * i + 1]);
            acc = _mm256_sub_ps(acc, _mm256_castps128_ps256(_mm_set_ss(take)));
        }
    }
    return acc;
}
#endif

static void HD_NAME(row_bytes)(const hd_product *p, const uint8_t *w, int32_t t0, int32_t n, float *out) {
    _Alignas(64) hd_plane plane;
    const hd_type_info *info = &hd_types[p->type];
    hd_plane_fn spread = HD_NAME(hd_planes)[p->type];
    int has_min = hd_plane_has_min(p->type), q8 = p->act == HD_ACT_Q8;
#if defined(__AVX512VNNI__)
    __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
#elif defined(__AVX2__)
    __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
#else
    float acc[4] = {0};
#endif
    for (int64_t j = 0; j < p->k; j += HD_PLANE) {
        int64_t m = p->k - j < HD_PLANE ? p->k - j : HD_PLANE;
        spread(w + j / info->block * info->bytes, m, &plane);
        for (int32_t t = 0; t < n; t++) {
            const uint8_t *row = p->x[t0 + t];
            const int8_t *q = hd_act_q(row) + j;
            const float *d = hd_q8_d(row, p->k) + (q8 ? j / HD_ACT_BLOCK : j / HD_ACT_SUPER);
            const int16_t *sums = (q8 ? hd_q8_sums(row, p->k) : hd_q8k_sums(row, p->k)) + j / 16;
#if defined(__AVX512VNNI__)
            __m512 dv;
            if (q8) {
                __m256 d8 = _mm256_maskz_loadu_ps((__mmask8)((1u << (m / 32)) - 1), d);
                dv = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                                           _mm512_castps256_ps512(d8));
            } else {
                dv = _mm512_set1_ps(*d);
            }
            acc[t] = HD_NAME(plane_dot)(&plane, m, q, dv, sums, has_min, acc[t]);
#elif defined(__AVX2__)
            acc[t] = HD_NAME(plane_dot)(&plane, m, q, d, q8 ? 0 : 3, sums, has_min, acc[t]);
#else
            for (int64_t g = 0; g < m / 16; g++) {
                int32_t dot = 0;
                for (int i = 0; i < 16; i++) dot += (int16_t)plane.q[16 * g + i] * (int16_t)q[16 * g + i];
                float sum = plane.scale[g] * (float)dot;
                if (has_min) sum -= plane.min[g] * (float)sums[g];
                acc[t] += sum * d[q8 ? g / 2 : 0];
            }
#endif
        }
    }
    for (int32_t t = 0; t < n; t++) {
#if defined(__AVX512VNNI__)
        out[t] = _mm512_reduce_add_ps(acc[t]);
#elif defined(__AVX2__)
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(acc[t]), _mm256_extractf128_ps(acc[t], 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        out[t] = _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
        out[t] = acc[t];
#endif
    }
}

void HD_NAME(hd_product)(const hd_product *p, int64_t r0, int64_t r1) {
    int bytes = (p->act == HD_ACT_Q8 || p->act == HD_ACT_Q8K) && HD_NAME(hd_planes)[p->type];
#if defined(HD_DOTS)
    int halves = p->type == HD_F16 || p->type == HD_BF16 || p->type == HD_F32;
    hd_dot_fn dot = p->act == (halves ? HD_ACT_F32 : HD_ACT_Q8) ? HD_NAME(hd_dots)[p->type] : NULL;
    if (!dot && p->act == HD_ACT_Q8) dot = HD_NAME(hd_dots_by_hand)[p->type];
    if (dot && p->n <= HD_DOT_TOKENS) {
        dot(p, r0, r1, 0, p->n);
        return;
    }
#endif
    for (int64_t r = r0; r < r1; r++) {
        const uint8_t *w = p->w + (size_t)r * p->row_bytes;
        for (int32_t t = 0; t < p->n; t += 4) {
            int32_t n = p->n - t < 4 ? p->n - t : 4;
#if defined(HD_DOTS)
            if (dot) {
                dot(p, r, r + 1, t, n);
                continue;
            }
#endif
            float sums[4];
            if (bytes) HD_NAME(row_bytes)(p, w, t, n, sums);
            else HD_NAME(row_floats)(p, w, t, n, sums);
            for (int32_t i = 0; i < n; i++) p->out[t + i][r] = sums[i];
        }
    }
}
