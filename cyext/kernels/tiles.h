/* The few tile operations that gemm_amx.c needs: AMX instructions, or with HD_AMX_EMULATED the same in C, so that the
 * arithmetic around them is tested on machines without tiles. Owns no policy. Semantics: Intel 64 and IA-32 Architectures
 * Software Developer's Manual, LDTILECFG, TILELOADD, TDPBSUD, TILESTORED. */
#pragma once
#include <stdint.h>
#include <string.h>

#define TILES 8
typedef struct tile_config { /* the 64 bytes that LDTILECFG reads */
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) tile_config;

#ifndef HD_AMX_EMULATED
#include <immintrin.h>
static inline void tiles_begin(const tile_config *config)
{
    /* GCC 12 believes that LDTILECFG reads 8 bytes only, and would drop the stores to the others. */
    __asm__ volatile("" : : "r"(config) : "memory");
    _tile_loadconfig(config);
}
#define tiles_end() _tile_release()
#define tile_zero(t) _tile_zero(t)
#define tile_load(t, p, stride) _tile_loadd(t, p, stride)
#define tile_store(t, p, stride) _tile_stored(t, p, stride)
#define tile_dot_su(c, a, b) _tile_dpbsud(c, a, b)
#else
static _Thread_local struct {
    tile_config config;
    uint8_t data[TILES][16][64];
} tiles;

static inline void tiles_begin(const tile_config *config)
{
    memset(&tiles, 0, sizeof tiles);
    tiles.config = *config;
}

static inline void tiles_end(void) { memset(&tiles, 0, sizeof tiles); }
static inline void tile_zero(int t) { memset(tiles.data[t], 0, sizeof tiles.data[t]); }

static inline void tile_load(int t, const void *p, int64_t stride)
{
    tile_zero(t);
    for (int i = 0; i < tiles.config.rows[t]; i++)
        memcpy(tiles.data[t][i], (const char *)p + i * stride, tiles.config.colsb[t]);
}

static inline void tile_store(int t, void *p, int64_t stride)
{
    for (int i = 0; i < tiles.config.rows[t]; i++)
        memcpy((char *)p + i * stride, tiles.data[t][i], tiles.config.colsb[t]);
}

/* c[m][n] += sum over k, i of signed a[m][4k + i] * unsigned b[k][4n + i]; b must have a quarter of a's columns as rows. */
static inline void tile_dot_su(int c, int a, int b)
{
    const tile_config *g = &tiles.config;
    if (g->colsb[a] / 4 != g->rows[b] || g->colsb[b] != g->colsb[c] || g->rows[a] != g->rows[c]) __builtin_trap();
    for (int m = 0; m < g->rows[c]; m++)
        for (int n = 0; n < g->colsb[c] / 4; n++) {
            int32_t sum;
            memcpy(&sum, &tiles.data[c][m][4 * n], 4);
            for (int k = 0; k < g->rows[b]; k++)
                for (int i = 0; i < 4; i++) sum += (int8_t)tiles.data[a][m][4 * k + i] * (int32_t)tiles.data[b][k][4 * n + i];
            memcpy(&tiles.data[c][m][4 * n], &sum, 4);
        }
}
#endif
