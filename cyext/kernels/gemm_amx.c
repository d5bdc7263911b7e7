/* Products for many tokens with AMX: int8 tiles multiply 16 tokens x 16 rows x 16 or 32 columns exactly; the scales of
 * those columns are applied to the tile's sums in f32 with AVX-512, one step behind the tiles, so that both units work.
 * Panels and scales are those of the AVX-512 set, and so is every rounding. Built a second time over tiles in C
 * (HD_AMX_EMULATED), so that this arithmetic is tested anywhere. */
#include <immintrin.h>
#include <string.h>

#include "gemm_unpack.h"
#include "tiles.h"

#ifdef HD_AMX_EMULATED
#define NAME(x) x##_amx_emulated
#else
#define NAME(x) x##_amx
#endif
#define WIDTH 16

/* Sums of one group of columns: [half of the panel][token][16 rows]. */
typedef int32_t sums[2][WIDTH][16] __attribute__((aligned(64)));

/* Tiles 0, 1 and 2, 3 take sums in turn, 4 and 5 the tokens, 6 and 7 the weights. */
#define STEP(c0, c1, a, w, x, stride, to)   \
    do {                                    \
        tile_zero(c0);                      \
        tile_zero(c1);                      \
        tile_load(a, x, (int64_t)(stride)); \
        tile_load(6, w, 128);               \
        tile_load(7, (w) + 64, 128);        \
        tile_dot_su(c0, a, 6);              \
        tile_dot_su(c1, a, 7);              \
        tile_store(c0, (to)[0], 64);        \
        tile_store(c1, (to)[1], 64);        \
    } while (0)

/* sum[t] += scale x token's scale x (sums - offset x token's sum) - min x lift, for group b of columns, whose scales and
 * minima lie at ws and wm. */
static inline void settle(float *sum, sums of, const float *ws, const float *wm, const hd_panel_kind *kind,
                          const hd_panel_tokens *tokens, int32_t b, int32_t n)
{
    const int wide = kind->sub == 32, late = !wide && (b & 1), mins = kind->mins;
    const size_t at = 4 * (size_t)(wide ? b : b / 2);
    const __m512i taken = _mm512_set1_epi32(hd_taken(kind->offset, wide || !late, wide || late));
    for (int g = 0; g < 2; g++) {
        const __m512 s = _mm512_load_ps(ws + 16 * g), m = mins ? _mm512_load_ps(wm + 16 * g) : _mm512_setzero_ps();
        for (int32_t t = 0; t < n; t++) {
            const uint8_t *side = tokens->side[t] + at;
            const int32_t two = hd_side_sums(side + tokens->sums);
            const float d = hd_side_float(side);
            float *to = sum + 32 * t + 16 * g;
            const __m512i start = _mm512_madd_epi16(_mm512_set1_epi32(two), taken);
            const __m512i whole = _mm512_add_epi32(_mm512_load_si512(of[g][t]), start);
            __m512 total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_mul_ps(s, _mm512_set1_ps(d)), _mm512_load_ps(to));
            if (mins) {
                const float lift = wide ? hd_side_float(side + tokens->lift) : d * (float)(late ? two >> 16 : (int16_t)two);
                total = _mm512_fnmadd_ps(m, _mm512_set1_ps(lift), total);
            }
            _mm512_store_ps(to, total);
        }
    }
}

static void multiply(float *sum, const uint8_t *w, const hd_panel_kind *kind, const hd_panel_tokens *tokens, int32_t n,
                     int32_t kc)
{
    const int32_t sub = kind->sub, groups = kc / sub;
    const float *ws = (const float *)(const void *)(w + 32 * kc), *wm = ws + 32 * groups;
    const int8_t *x = tokens->x[0];
    const uint8_t *ahead = tokens->ahead;
    sums even, odd;
    __asm__ volatile("" : : : "memory"); /* tile loads do not tell the compiler what they read */
#define SETTLE(of, b) settle(sum, of, ws + 32 * (b), wm + 32 * (b), kind, tokens, b, n)
    for (int32_t b = 0; b < groups; b += 2) {
        for (int32_t i = 0; i < tokens->lines * (2 * sub / 32); i++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
        STEP(0, 1, 4, w + 32 * sub * b, x + sub * b, tokens->stride, even);
        if (b > 0) SETTLE(odd, b - 1);
        if (b + 1 < groups) STEP(2, 3, 5, w + 32 * sub * (b + 1), x + sub * (b + 1), tokens->stride, odd);
        SETTLE(even, b);
    }
    if (groups % 2 == 0) SETTLE(odd, groups - 1);
}

#define LEAST 4 /* tokens; fewer are the direct products' */

static const hd_panel_kind *takes(const hd_product *p)
{
    return p->act == HD_ACT_Q8 && p->n >= LEAST ? hd_panel_kind_avx512(p->type) : NULL;
}

int NAME(hd_gemm)(const hd_product *p, int64_t r0, int64_t r1, void *scratch)
{
    const hd_panel_kind *kind = takes(p);
    if (!kind) return 0;
    /* One shape for the whole call: the widest group's; narrower ones compute a row more that nobody reads. */
    const int32_t tokens = hd_group_width(p->n, WIDTH);
    const hd_panel_way way = {multiply, WIDTH, 1};
    tile_config config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int t = 0; t < TILES; t++) {
        config.rows[t] = (uint8_t)(t < 6 ? tokens : kind->sub / 4);
        config.colsb[t] = (uint16_t)(t == 4 || t == 5 ? kind->sub : 64);
    }
    tiles_begin(&config);
    hd_panel_product(p, r0, r1, scratch, kind, &way);
    tiles_end();
    return 1;
}

size_t NAME(hd_gemm_scratch)(const hd_product *p) { return takes(p) ? hd_panel_scratch(p) : 0; }

int32_t NAME(hd_gemm_act)(int32_t type, int32_t step_rows)
{
    (void)step_rows;
    return hd_panel_kind_avx512(type) ? HD_ACT_Q8 : -1;
}
