/* Products of any weights with float activations for many tokens, once over lanes.h: a panel of 32 rows is turned to
 * [columns][32] f32, quantised types by their unpackers, then multiplied in register blocks. Nothing is rounded but the sums. Owned by the file
 * that includes it, gemm_avx2.c or gemm_avx512.c. */
#include "lanes.h"
#include "product.h"

#define FLOAT_CHUNK 256 /* whole blocks of every type */
#define FLOAT_TOKENS (HD_LANES == 16 ? 6 : 3)
#define FLOAT_VECTORS (32 / HD_LANES)

static inline float float_at(const uint8_t *row, int64_t i, int32_t type)
{
    uint32_t u = 0;
    float f;
    if (type == HD_F32) {
        memcpy(&f, row + 4 * i, 4);
        return f;
    }
    memcpy(&u, row + 2 * i, 2);
    if (type == HD_F16) return _cvtsh_ss((uint16_t)u);
    u <<= 16;
    memcpy(&f, &u, 4);
    return f;
}

static inline vf floats_at(const uint8_t *row, int64_t i, int32_t type)
{
    if (type == HD_F32) return v_load((const float *)(const void *)(row + 4 * i));
    if (type == HD_F16) return v_from_half((const uint16_t *)(const void *)(row + 2 * i));
#ifdef __AVX512F__
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * i));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
#else
    __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(row + 2 * i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
#endif
}

static int is_float(int32_t type) { return type == HD_F32 || type == HD_F16 || type == HD_BF16; }

/* panel[c][r] = row r, column k0 + c; rows from `rows` on are zero. `unpacked`: room for 32 rows of a chunk. */
static void float_panel(float *panel, const hd_product *p, int64_t r, int32_t rows, int64_t k0, int32_t kc, float *unpacked)
{
    const uint8_t *w = p->w + (size_t)r * p->row_bytes;
    size_t row_bytes = p->row_bytes;
    int32_t type = p->type;
    if (!is_float(type)) {
        w += (size_t)(k0 / hd_types[type].block) * (size_t)hd_types[type].bytes;
        for (int32_t i = 0; i < rows; i++, w += row_bytes) HD_ISA(hd_unpackers)[type](w, unpacked + i * FLOAT_CHUNK, kc);
        w = (const uint8_t *)unpacked, row_bytes = FLOAT_CHUNK * sizeof(float), type = HD_F32, k0 = 0;
    }
    for (int32_t g = 0; g < 32; g += HD_LANES) {
        int32_t c = 0;
        for (; c + HD_LANES <= kc; c += HD_LANES) {
            vf v[HD_LANES];
            for (int i = 0; i < HD_LANES; i++)
                v[i] = g + i < rows ? floats_at(w + (size_t)(g + i) * row_bytes, k0 + c, type) : v_zero();
            v_transpose(v);
            for (int i = 0; i < HD_LANES; i++) v_store(panel + (c + i) * 32 + g, v[i]);
        }
        for (; c < kc; c++)
            for (int i = 0; i < HD_LANES; i++)
                panel[c * 32 + g + i] = g + i < rows ? float_at(w + (size_t)(g + i) * row_bytes, k0 + c, type) : 0;
    }
}

INLINE void float_block(float *sum, const float *panel, const float *const *x, int32_t kc, const int n)
{
    vf acc[FLOAT_TOKENS][FLOAT_VECTORS];
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
#pragma GCC unroll 4
        for (int l = 0; l < FLOAT_VECTORS; l++) acc[t][l] = v_load(sum + 32 * t + l * HD_LANES);
    for (int32_t c = 0; c < kc; c++, panel += 32) {
        vf w[FLOAT_VECTORS];
#pragma GCC unroll 4
        for (int l = 0; l < FLOAT_VECTORS; l++) w[l] = v_load(panel + l * HD_LANES);
#pragma GCC unroll 6
        for (int t = 0; t < n; t++) {
            vf v = v_all(x[t][c]);
#pragma GCC unroll 4
            for (int l = 0; l < FLOAT_VECTORS; l++) acc[t][l] = v_fma(v, w[l], acc[t][l]);
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < n; t++)
#pragma GCC unroll 4
        for (int l = 0; l < FLOAT_VECTORS; l++) v_store(sum + 32 * t + l * HD_LANES, acc[t][l]);
}

static int takes_float(const hd_product *p)
{
    return p->act == HD_ACT_F32 && HD_ISA(hd_unpackers)[p->type];
}

static size_t float_scratch(const hd_product *p) { return 2 * FLOAT_CHUNK * 128 + (size_t)p->n * 128; }

static void float_product(const hd_product *p, int64_t r0, int64_t r1, void *scratch)
{
    float *panel = scratch, *unpacked = panel + FLOAT_CHUNK * 32, *sum = unpacked + FLOAT_CHUNK * 32;
    for (int64_t r = r0; r < r1; r += HD_GEMM_PANEL) {
        const int32_t rows = r1 - r < HD_GEMM_PANEL ? (int32_t)(r1 - r) : HD_GEMM_PANEL;
        memset(sum, 0, (size_t)p->n * 128);
        for (int64_t k0 = 0; k0 < p->k; k0 += FLOAT_CHUNK) {
            const int32_t kc = p->k - k0 < FLOAT_CHUNK ? (int32_t)(p->k - k0) : FLOAT_CHUNK;
            float_panel(panel, p, r, rows, k0, kc, unpacked);
            for (int32_t t = 0, n; t < p->n; t += n) {
                const float *x[FLOAT_TOKENS];
                n = p->n - t < FLOAT_TOKENS ? p->n - t : FLOAT_TOKENS;
                for (int32_t i = 0; i < n; i++) x[i] = (const float *)(const void *)p->x[t + i] + k0;
                switch (n) {
                case 1: float_block(sum + 32 * t, panel, x, kc, 1); break;
                case 2: float_block(sum + 32 * t, panel, x, kc, 2); break;
#if HD_LANES == 16
                case 3: float_block(sum + 32 * t, panel, x, kc, 3); break;
                case 4: float_block(sum + 32 * t, panel, x, kc, 4); break;
                case 5: float_block(sum + 32 * t, panel, x, kc, 5); break;
#endif
                default: float_block(sum + 32 * t, panel, x, kc, FLOAT_TOKENS); break;
                }
            }
        }
        for (int32_t t = 0; t < p->n; t++) {
            if (rows == HD_GEMM_PANEL) memcpy(p->out[t] + r, sum + t * 32, HD_GEMM_PANEL * sizeof(float));
            else memcpy(p->out[t] + r, sum + t * 32, (size_t)rows * sizeof(float));
        }
    }
}
