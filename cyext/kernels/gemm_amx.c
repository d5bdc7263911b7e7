/* Products for many tokens with AMX: signed int8 tiles multiply 16 tokens x 16 rows x 16 or 32 columns exactly; the scales of
 * those columns are applied to the tile's sums in f32 with AVX-512. Half a panel is worked at a time, so that the totals of
 * its 16 tokens stay in registers through a chunk of columns, and tiles run two blocks ahead of the scales, so that both
 * units work. Every rounding is the AVX-512 set's.
 * Tiles are this thread's only while a product runs: they are released at its end, and a kernel gives them up for the
 * handler of a signal, so a fault that jumps out of here leaves none behind. */
#include <immintrin.h>
#include <string.h>

#include "gemm_unpack.h"
#include "lanes.h"

#define WIDTH 16
#define INLINE static inline __attribute__((always_inline))

/* --- tiles: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18 --------------------------- */

typedef struct tile_config { /* the 64 bytes that LDTILECFG reads */
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_config;

/* Written out, since what the compilers' own say of the memory that they touch differs from version to version (GCC 12's
 * LDTILECFG reads 8 bytes). */
#define TILE_CONFIGURE(c) __asm__ volatile("ldtilecfg %0" : : "m"(*(c)))
#define TILE_RELEASE() __asm__ volatile("tilerelease" : : : "memory")
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : : :)
#define TILE_LOAD(t, p, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(t, p, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(p), "r"((int64_t)(stride)) : "memory")
/* c += a x b, both signed */
#define TILE_DOT(c, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : :)

/* Sums of one block of columns for 16 tokens x 16 rows. */
typedef int32_t sums[WIDTH][16] __attribute__((aligned(64)));

#define BLOCK_SUMS(c, a, b, x, stride, w, to) \
    do {                                      \
        TILE_LOAD(a, x, stride);              \
        TILE_LOAD(b, w, 128);                 \
        TILE_ZERO(c);                         \
        TILE_DOT(c, a, b);                    \
        TILE_STORE(c, to, 64);                \
    } while (0)

/* --- the scales ------------------------------------------------------------------------------------------------------- */

/* total[t] += d[t] x scale x sums[t] - lift[t] x min, for one block of 32 columns, or two of 16 (of and of + 1). */
INLINE void settle(__m512 *total, const sums *of, const float *ws, const float *wm, const float *d, const int sub,
                   const int mins, const int n)
{
    const int parts = 32 / sub;
    const __m512 none = _mm512_setzero_ps(), s0 = _mm512_load_ps(ws), s1 = sub == 16 ? _mm512_load_ps(ws + 32) : none;
    const __m512 m0 = mins ? _mm512_load_ps(wm) : none, m1 = mins && sub == 16 ? _mm512_load_ps(wm + 32) : none;
#pragma GCC unroll 16
    for (int t = 0; t < n; t++) {
        __m512 f = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(of[0][t])), s0);
        if (sub == 16) f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(of[1][t])), s1, f);
        if (sub == 16 && mins) total[t] = _mm512_fnmadd_ps(m0, _mm512_set1_ps(d[WIDTH + t]), total[t]);
        total[t] = _mm512_fmadd_ps(f, _mm512_set1_ps(d[t]), total[t]);
        if (mins) total[t] = _mm512_fnmadd_ps(sub == 16 ? m1 : m0, _mm512_set1_ps(d[parts * WIDTH + t]), total[t]);
    }
}

/* Tiles for the even and the odd block of a pair. */
#define EVEN(x, w, stride, to)                                                             \
    do {                                                                                   \
        BLOCK_SUMS(0, 4, 6, x, stride, w, (to)[0]);                                        \
        if (sub == 16) BLOCK_SUMS(1, 5, 7, (x) + 16, stride, (w) + 512, (to)[1]);          \
    } while (0)
#define ODD(x, w, stride, to)                                                              \
    do {                                                                                   \
        BLOCK_SUMS(2, 5, 7, (x) + 32, stride, (w) + 1024, (to)[2]);                        \
        if (sub == 16) BLOCK_SUMS(3, 4, 6, (x) + 48, stride, (w) + 1536, (to)[3]);         \
    } while (0)

/* sum[t][16g .. 16g + 15] += half g of a panel x tokens, n of them computed and `real` of them kept. */
INLINE void half(float *sum, const int32_t g, const uint8_t *w, const float *ws, const hd_panel_tokens *tokens,
                 const int32_t real, const int32_t kc, const int32_t lines, const int sub, const int mins, const int n)
{
    const int parts = 32 / sub, floats = WIDTH * (1 + mins * parts), scales = 32 * parts;
    const int32_t blocks = kc / 32;
    const float *wm = ws + scales * blocks, *d = tokens->gathered;
    const int8_t *x = tokens->x[0];
    const uint8_t *ahead = tokens->ahead;
    const size_t stride = tokens->stride;
    sums ring[2][4], *here = ring[0], *next = ring[1];
    __m512 total[WIDTH];
    /* Outputs of a token lie far from the next token's: they are asked for before they are wanted. */
    for (int32_t t = 0; tokens->out && t < real; t++) __builtin_prefetch(tokens->out[t] + tokens->row + 16 * g, 1, 3);
    sum += 16 * g, w += 64 * g, ws += 16 * g, wm += 16 * g;
#pragma GCC unroll 16
    for (int t = 0; t < n; t++) total[t] = tokens->begins ? _mm512_setzero_ps() : _mm512_load_ps(sum + 32 * t);
    EVEN(x, w, stride, here);
    if (blocks > 1) ODD(x, w, stride, here);
    for (int32_t left = blocks; left > 0; left -= 2) {
        x += 64, w += 2048;
        for (const uint8_t *end = ahead + 128 * (ptrdiff_t)lines; ahead < end; ahead += 64) __builtin_prefetch(ahead, 0, 2);
        if (left > 2) EVEN(x, w, stride, next);
        settle(total, here, ws, wm, d, sub, mins, n);
        if (left > 3) ODD(x, w, stride, next);
        if (left > 1) settle(total, here + 2, ws + scales, wm + scales, d + floats, sub, mins, n);
        ws += 2 * scales, wm += 2 * scales, d += 2 * floats;
        sums *swap = here;
        here = next, next = swap;
    }
#pragma GCC unroll 16
    for (int t = 0; t < n; t++)
        if (t < real) _mm512_storeu_ps(tokens->out ? tokens->out[t] + tokens->row + 16 * g : sum + 32 * t, total[t]);
}

typedef void half_fn(float *sum, int32_t g, const uint8_t *w, const float *ws, const hd_panel_tokens *tokens,
                     int32_t real, int32_t kc, int32_t lines);
#define HALF(sub, mins, n)                                                                                             \
    static void half_##sub##_##mins##_##n(float *sum, int32_t g, const uint8_t *w, const float *ws,                    \
                                          const hd_panel_tokens *tokens, int32_t real, int32_t kc, int32_t lines)      \
    {                                                                                                                  \
        half(sum, g, w, ws, tokens, real, kc, lines, sub, mins, n);                                                    \
    }
#define HALVES(sub, mins) HALF(sub, mins, 4) HALF(sub, mins, 8) HALF(sub, mins, 12) HALF(sub, mins, 16)
HALVES(32, 0)
HALVES(32, 1)
HALVES(16, 0)
HALVES(16, 1)
#define NAMES(sub, mins) {half_##sub##_##mins##_4, half_##sub##_##mins##_8, half_##sub##_##mins##_12, half_##sub##_##mins##_16}
static half_fn *const halves[2][2][WIDTH / 4] = {{NAMES(32, 0), NAMES(32, 1)}, {NAMES(16, 0), NAMES(16, 1)}};

/* Tokens that are computed for a group of n: whole fours. */
static inline int32_t tile_rows(int32_t n) { return (n + 3) & ~3; }

static void multiply(float *sum, const uint8_t *w, const hd_panel_kind *kind, const hd_panel_tokens *tokens, int32_t n,
                     int32_t kc)
{
    half_fn *run = halves[kind->sub == 16][kind->mins][tile_rows(n) / 4 - 1];
    const float *ws = (const float *)(const void *)(w + 32 * kc);
    run(sum, 0, w, ws, tokens, n, kc, tokens->lines);
    run(sum, 1, w, ws, tokens, n, kc, 0);
}

/* Dwords i < n of 16 tokens' rows, turned: out[i] has the tokens side by side. */
INLINE void turned(__m512 out[WIDTH], const uint8_t *const *rows, size_t at, int32_t width, int32_t n)
{
    const __mmask16 there = n < WIDTH ? (__mmask16)((1u << n) - 1) : 0xffff;
#pragma GCC unroll 16
    for (int t = 0; t < WIDTH; t++) out[t] = t < width ? _mm512_maskz_loadu_ps(there, rows[t] + at) : _mm512_setzero_ps();
    v_transpose(out);
}

static void gather(float *to, const hd_product *p, const hd_panel_kind *kind, int32_t t, int32_t width)
{
    const int32_t step = hd_gathered_floats(kind), blocks = (int32_t)(p->k / 32);
    const uint8_t *const *rows = p->x + t;
    const size_t k = (size_t)p->k;
    for (int32_t b = 0; b < blocks; b += WIDTH) {
        const int32_t n = blocks - b < WIDTH ? blocks - b : WIDTH;
        const size_t at = k + 4 * (size_t)b; /* of d; then come the sums times d, and the sums: act.h */
        __m512 d[WIDTH], more[WIDTH];
        turned(d, rows, at, width, n);
        if (kind->mins) turned(more, rows, at + (kind->sub == 32 ? k / 8 : k / 4), width, n);
        for (int32_t i = 0; i < n; i++, to += step) {
            _mm512_store_ps(to, d[i]);
            if (!kind->mins) continue;
            if (kind->sub == 32) {
                _mm512_store_ps(to + WIDTH, more[i]);
            } else { /* two sums, the earlier 16 columns' low */
                const __m512i two = _mm512_castps_si512(more[i]), low = _mm512_srai_epi32(_mm512_slli_epi32(two, 16), 16);
                _mm512_store_ps(to + WIDTH, _mm512_mul_ps(d[i], _mm512_cvtepi32_ps(low)));
                _mm512_store_ps(to + 2 * WIDTH, _mm512_mul_ps(d[i], _mm512_cvtepi32_ps(_mm512_srai_epi32(two, 16))));
            }
        }
    }
}

#define LEAST 5 /* tokens; for fewer memory is slower than the direct products */

static const hd_panel_kind *takes(const hd_product *p)
{
    return p->act == HD_ACT_Q8 && p->n >= LEAST ? hd_panel_kind_signed(p->type) : NULL;
}

int hd_gemm_amx(const hd_product *p, int64_t r0, int64_t r1, void *scratch)
{
    const hd_panel_kind *kind = takes(p);
    if (!kind) return 0;
    /* One shape for the whole call: the widest group's; narrower ones compute tokens more that nobody keeps. */
    const int32_t tokens = tile_rows(hd_group_width(p->n, WIDTH));
    const hd_panel_way way = {.multiply = multiply, .width = WIDTH, .direct = 1, .gather = gather};
    tile_config config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int t = 0; t < 8; t++) { /* 0 to 3 take sums, 4 and 5 the tokens, 6 and 7 the weights */
        config.rows[t] = (uint8_t)(t < 6 ? tokens : kind->sub / 4);
        config.bytes[t] = (uint16_t)(t == 4 || t == 5 ? kind->sub : 64);
    }
    TILE_CONFIGURE(&config);
    hd_panel_product(p, r0, r1, scratch, kind, &way);
    TILE_RELEASE();
    return 1;
}

size_t hd_gemm_scratch_amx(const hd_product *p)
{
    const hd_panel_kind *kind = takes(p);
    return kind ? hd_panel_scratch_gathered(p, kind) : 0;
}
