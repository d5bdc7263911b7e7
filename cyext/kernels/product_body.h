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
    const int8_t *q = hd_act_q(row) + j;
    const float *d = hd_q8_d(row, k);
    for (int64_t i = 0; i < m; i += 16) {
        float scale = d[(j + i) / HD_ACT_BLOCK];
        int64_t end = m - i < 16 ? m - i : 16;
        for (int64_t e = 0; e < end; e++) room[i + e] = scale * (float)q[i + e];
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

#if !defined(HD_DOTS)
/* --- planes times 8-bit activations: the other sets have direct kernels for all types that have planes --- */

static void HD_NAME(row_bytes)(const hd_product *p, const uint8_t *w, int32_t t0, int32_t n, float *out) {
    hd_plane plane;
    const hd_type_info *info = &hd_types[p->type];
    hd_plane_fn spread = HD_NAME(hd_planes)[p->type];
    int has_min = hd_plane_has_min(p->type);
    float acc[4] = {0};
    for (int64_t j = 0; j < p->k; j += HD_PLANE) {
        int64_t m = p->k - j < HD_PLANE ? p->k - j : HD_PLANE;
        spread(w + j / info->block * info->bytes, m, &plane);
        for (int32_t t = 0; t < n; t++) {
            const uint8_t *row = p->x[t0 + t];
            const int8_t *q = hd_act_q(row) + j;
            const float *d = hd_q8_d(row, p->k) + j / HD_ACT_BLOCK;
            const int16_t *sums = hd_q8_sums(row, p->k) + j / 16;
            for (int64_t g = 0; g < m / 16; g++) {
                int32_t dot = 0;
                for (int i = 0; i < 16; i++) dot += (int16_t)plane.q[16 * g + i] * (int16_t)q[16 * g + i];
                float sum = plane.scale[g] * (float)dot;
                if (has_min) sum -= plane.min[g] * (float)sums[g];
                acc[t] += sum * d[g / 2];
            }
        }
    }
    for (int32_t t = 0; t < n; t++) out[t] = acc[t];
}
#endif

void HD_NAME(hd_product)(const hd_product *p, int64_t r0, int64_t r1) {
#if defined(HD_DOTS)
    int halves = p->type == HD_F16 || p->type == HD_BF16 || p->type == HD_F32;
    hd_dot_fn dot = p->act == (halves ? HD_ACT_F32 : HD_ACT_Q8) ? HD_NAME(hd_dots)[p->type] : NULL;
    if (!dot && p->act == HD_ACT_Q8) dot = HD_NAME(hd_dots_by_hand)[p->type];
    if (dot && p->n <= HD_DOT_MOST) {
        dot(p, r0, r1, 0, p->n);
        return;
    }
#else
    int bytes = p->act == HD_ACT_Q8 && HD_NAME(hd_planes)[p->type];
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
#if !defined(HD_DOTS)
            if (bytes) HD_NAME(row_bytes)(p, w, t, n, sums);
            else
#endif
                HD_NAME(row_floats)(p, w, t, n, sums);
            for (int32_t i = 0; i < n; i++) p->out[t + i][r] = sums[i];
        }
    }
}
