/* Products of any weights with float activations, once over lanes.h, for any number of tokens. Owned by the file that includes
 * it, gemm_avx2.c or gemm_avx512.c. Nothing is rounded but the sums, and those have one order: in pieces of FLOAT_PIECE
 * columns lane l adds the columns l, l + HD_LANES ... in sequence; the piece is the total of its lanes (hd_total); pieces are
 * added in sequence. Four rows at a time; few tokens take halves and floats straight from the file's bytes, more of them (and
 * other types always) from a piece that is unpacked once for all. */
#include "dot_rows.h"
#include "gemm_panel.h"

#include <string.h>

#define FLOAT_PIECE (64 * HD_LANES) /* whole blocks of every type */
#define FLOAT_ROWS 16               /* unpacked at a time: they stay in the first-level cache */
#define FLOAT_APART (FLOAT_PIECE + HD_LANES) /* columns from row to row: a power of two would load from one bank always */
#define FLOAT_TOKENS (HD_LANES == 16 ? 6 : 3)
#define FLOAT_DIRECT 3              /* tokens; for so few nothing is unpacked */

HD_INLINE vf floats_at(const uint8_t *p, const int32_t type)
{
    if (type == HD_F32) return v_load((const float *)(const void *)p);
    if (type == HD_F16) return v_from_half((const uint16_t *)(const void *)p);
#ifdef __AVX512F__
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
#else
    __m128i h = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
#endif
}

static int is_float(int32_t type) { return type == HD_F32 || type == HD_F16 || type == HD_BF16; }

/* hd_total of each of four. */
HD_INLINE __m128 totals(vf a, vf b, vf c, vf d)
{
#ifdef __AVX512F__
#define HALVED(v) _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))
#else
#define HALVED(v) (v)
#endif
    __m256 e = HALVED(a), f = HALVED(b), g = HALVED(c), h = HALVED(d);
#undef HALVED
    __m256 x = _mm256_add_ps(_mm256_permute2f128_ps(e, g, 0x20), _mm256_permute2f128_ps(e, g, 0x31));
    __m256 y = _mm256_add_ps(_mm256_permute2f128_ps(f, h, 0x20), _mm256_permute2f128_ps(f, h, 0x31));
    __m256 z = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(x), _mm256_castps_pd(y))),
                             _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(x), _mm256_castps_pd(y))));
    __m128 low = _mm256_castps256_ps128(z), high = _mm256_extractf128_ps(z, 1);
    return _mm_add_ps(_mm_shuffle_ps(low, high, 0x88), _mm_shuffle_ps(low, high, 0xdd));
}

/* sum[t] += kc columns of four rows times token t, n of them. A row's last few values are copied out, so that nothing past its
 * end is multiplied: it could be infinite. */
HD_INLINE void float_block(__m128 *sum, const uint8_t *const *w, const float *const *x, int32_t kc, const int32_t type,
                           const int n)
{
    const int width = type == HD_F32 ? 4 : 2;
    vf acc[FLOAT_TOKENS][4];
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) acc[t][i] = v_zero();
    int32_t c = 0;
#pragma GCC unroll 4
    for (; c + HD_LANES <= kc; c += HD_LANES) {
        vf v[FLOAT_TOKENS];
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) v[t] = v_load(x[t] + c);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vf row = floats_at(w[i] + width * c, type);
#pragma GCC unroll 6
            for (int t = 0; t < n; t++) acc[t][i] = v_fma(row, v[t], acc[t][i]);
        }
    }
    if (c < kc) {
        float end[FLOAT_TOKENS][HD_LANES];
        memset(end, 0, sizeof end);
        for (int t = 0; t < n; t++) memcpy(end[t], x[t] + c, sizeof(float) * (size_t)(kc - c));
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            uint8_t bytes[4 * HD_LANES];
            memset(bytes, 0, sizeof bytes);
            memcpy(bytes, w[i] + width * c, (size_t)(width * (kc - c)));
            vf row = floats_at(bytes, type);
#pragma GCC unroll 6
            for (int t = 0; t < n; t++) acc[t][i] = v_fma(row, v_load(end[t]), acc[t][i]);
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < n; t++) sum[t] = _mm_add_ps(sum[t], totals(acc[t][0], acc[t][1], acc[t][2], acc[t][3]));
}

/* Few tokens, rows of the file as they are. */
HD_INLINE void floats_direct(const hd_product *p, int64_t r0, int64_t r1, const int32_t type, const int n)
{
    const int width = type == HD_F32 ? 4 : 2;
    for (int64_t r = r0; r < r1; r += 4) {
        const int rows = r1 - r < 4 ? (int)(r1 - r) : 4;
        const uint8_t *w[4], *ahead = p->w + (size_t)(r + 4) * p->row_bytes;
        const float *x[FLOAT_DIRECT];
        __m128 sum[FLOAT_DIRECT];
        for (int i = 0; i < 4; i++) w[i] = p->w + (size_t)(r + (i < rows ? i : 0)) * p->row_bytes;
        for (int t = 0; t < n; t++) x[t] = (const float *)(const void *)p->x[t], sum[t] = _mm_setzero_ps();
        for (int64_t k0 = 0; k0 < p->k; k0 += FLOAT_PIECE) {
            const int32_t kc = p->k - k0 < FLOAT_PIECE ? (int32_t)(p->k - k0) : FLOAT_PIECE;
            for (int i = 0; i < 4 * width * kc; i += 64) __builtin_prefetch(ahead + i);
            ahead += 4 * width * kc;
            float_block(sum, w, x, kc, type, n);
            for (int i = 0; i < 4; i++) w[i] += width * kc;
            for (int t = 0; t < n; t++) x[t] += kc;
        }
        for (int t = 0; t < n; t++) memcpy(p->out[t] + r, &sum[t], sizeof(float) * (size_t)rows);
    }
}

static int takes_float(const hd_product *p)
{
    return p->act == HD_ACT_F32 && HD_ISA(hd_unpackers)[p->type];
}

static size_t float_scratch(const hd_product *p)
{
    return FLOAT_ROWS * sizeof(float) * ((size_t)FLOAT_APART + (size_t)p->n);
}

/* sum[t][0 .. 3] += four rows of a piece times n tokens. A whole piece has a length that the compiler knows: the processor, too,
 * foresees where such a loop ends. */
static void float_group(float *sum, const float *const w[4], const float *const *x, int32_t kc, int32_t n)
{
    const uint8_t *rows[4] = {(const uint8_t *)w[0], (const uint8_t *)w[1], (const uint8_t *)w[2], (const uint8_t *)w[3]};
    __m128 s[FLOAT_TOKENS];
    for (int i = 0; i < n; i++) s[i] = _mm_loadu_ps(sum + i * FLOAT_ROWS);
    if (n == FLOAT_TOKENS && kc == FLOAT_PIECE) float_block(s, rows, x, FLOAT_PIECE, HD_F32, FLOAT_TOKENS);
    else if (n == 1) float_block(s, rows, x, kc, HD_F32, 1);
    else if (n == 2) float_block(s, rows, x, kc, HD_F32, 2);
#if HD_LANES == 16
    else if (n == 3) float_block(s, rows, x, kc, HD_F32, 3);
    else if (n == 4) float_block(s, rows, x, kc, HD_F32, 4);
    else if (n == 5) float_block(s, rows, x, kc, HD_F32, 5);
#endif
    else float_block(s, rows, x, kc, HD_F32, FLOAT_TOKENS);
    for (int i = 0; i < n; i++) _mm_storeu_ps(sum + i * FLOAT_ROWS, s[i]);
}

/* Many tokens: sum[t][row] += piece [FLOAT_ROWS][FLOAT_APART] times the tokens' kc columns from k0 on. Four rows and two groups
 * of tokens lie in the first-level cache at a time. */
static void floats_multiply(const hd_product *p, float *sum, const float *piece, int rows, int64_t k0, int32_t kc)
{
    for (int32_t t = 0, n; t < p->n; t += n, sum += n * FLOAT_ROWS) {
        const float *x[2 * FLOAT_TOKENS];
        n = hd_group_width(p->n - t, 2 * FLOAT_TOKENS);
        const int32_t half = hd_group_width(n, FLOAT_TOKENS);
        for (int32_t i = 0; i < n; i++) x[i] = (const float *)(const void *)p->x[t + i] + k0;
        for (int r = 0; r < rows; r += 4) {
            const float *w[4];
            for (int i = 0; i < 4; i++) w[i] = piece + (size_t)(r + i < rows ? r + i : r) * FLOAT_APART;
            float_group(sum + r, w, x, kc, half);
            if (half < n) float_group(sum + half * FLOAT_ROWS + r, w, x + half, kc, n - half);
        }
    }
}

static void float_product(const hd_product *p, int64_t r0, int64_t r1, void *scratch)
{
    if (is_float(p->type) && p->n <= FLOAT_DIRECT) {
#define DIRECT(type)                                                             \
    case type:                                                                   \
        if (p->n == 1) floats_direct(p, r0, r1, type, 1);                        \
        else if (p->n == 2) floats_direct(p, r0, r1, type, 2);                   \
        else floats_direct(p, r0, r1, type, 3);                                  \
        return;
        switch (p->type) {
            DIRECT(HD_F32)
            DIRECT(HD_F16)
            DIRECT(HD_BF16)
        }
#undef DIRECT
    }
    const hd_type_info *info = &hd_types[p->type];
    float *piece = scratch, *sum = piece + FLOAT_ROWS * FLOAT_APART;
    for (int64_t r = r0; r < r1; r += FLOAT_ROWS) {
        const int rows = r1 - r < FLOAT_ROWS ? (int)(r1 - r) : FLOAT_ROWS;
        memset(sum, 0, (size_t)p->n * FLOAT_ROWS * sizeof(float));
        for (int64_t k0 = 0; k0 < p->k; k0 += FLOAT_PIECE) {
            const int32_t kc = p->k - k0 < FLOAT_PIECE ? (int32_t)(p->k - k0) : FLOAT_PIECE;
            const size_t bytes = (size_t)kc / (size_t)info->block * (size_t)info->bytes;
            const uint8_t *w = p->w + (size_t)r * p->row_bytes + (size_t)k0 / (size_t)info->block * (size_t)info->bytes;
            for (int i = 0; i < rows; i++, w += p->row_bytes) {
                const uint8_t *ahead = w + FLOAT_ROWS * p->row_bytes;
                for (size_t b = 0; b < bytes; b += 64) __builtin_prefetch(ahead + b);
                HD_ISA(hd_unpackers)[p->type](w, piece + i * FLOAT_APART, kc);
            }
            floats_multiply(p, sum, piece, rows, k0, kc);
        }
        for (int32_t t = 0; t < p->n; t++) {
            if (rows == FLOAT_ROWS) memcpy(p->out[t] + r, sum + t * FLOAT_ROWS, FLOAT_ROWS * sizeof(float));
            else memcpy(p->out[t] + r, sum + t * FLOAT_ROWS, (size_t)rows * sizeof(float));
        }
    }
}
