/* The body of gemm_unpack_avx2.c, gemm_unpack_avx512.c and gemm_unpack_signed_avx512.c: unpacks weight blocks into panels
 * (gemm_panel.h). The types that people run are turned into lanes while still packed (turned_wide.h); the others go by
 * planes. */
#include <stdint.h>

struct turned {
    uint8_t *to, *scale, *min;
};
#define TURNED_APART 128
#include "turned_wide.h"
#include "plane.h"

#ifdef HD_PANEL_SIGNED
#define KIND hd_panel_kind_signed
#else
#define KIND HD_ISA(hd_panel_kind)
#endif

TURN void take(struct turned *t, int i, const vi *v)
{
    for (int j = 0; j < 8; j++) put(t->to + i * 1024 + j * 128, v[j]);
}

/* `bytes` hold a piece of `columns`, `scales` of them. */
#define PANEL(name, columns, bytes, scales)                                                                      \
    static void panel_##name(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)       \
    {                                                                                                            \
        (void)type;                                                                                              \
        uint8_t *scale = panel + 32 * kc, *min = scale + kc / (columns) * ((scales) * 128);                      \
        for (; kc > 0; kc -= (columns), w += (bytes), panel += 32 * (columns)) {                                 \
            for (int g = 0; g < 32 / HD_LANES; g++) {                                                            \
                struct turned t = {panel + WIDE * g, scale + WIDE * g, min + WIDE * g};                          \
                piece_##name(&t, w + (size_t)(HD_LANES * g) * row_bytes, row_bytes);                             \
            }                                                                                                    \
            scale += (scales) * 128, min += (scales) * 128;                                                      \
        }                                                                                                        \
    }
PANEL(q4_k, 256, 144, 8)
PANEL(q5_k, 256, 176, 8)
PANEL(q6_k, 256, 210, 16)
PANEL(q2_k, 256, 84, 16)
PANEL(q3_k, 256, 110, 16)
PANEL(iq4_xs, 256, 136, 8)
PANEL(q8_0, 32, 34, 1)
PANEL(q4_0, 32, 18, 1)
PANEL(q4_1, 32, 20, 1)
PANEL(q5_0, 32, 22, 1)
PANEL(q5_1, 32, 24, 1)
PANEL(iq4_nl, 32, 18, 1)
PANEL(mxfp4, 32, 17, 1)

/* Any type without minima that has planes: rows are spread one by one, then turned. Of a plane's scales, one for 16 columns,
 * those of 32 that share one are kept once. */
TURN void by_planes(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type, const int sub)
{
    const hd_plane_fn spread = HD_ISA(hd_planes)[type];
    const size_t step = (size_t)(HD_PLANE / hd_types[type].block) * (size_t)hd_types[type].bytes;
    const vi flip = ALL((int)(0x01010101u * FLIP));
    uint8_t *scales = panel + 32 * kc;
    hd_plane planes[HD_LANES];
    memset(planes, 0, sizeof planes);
    for (; kc > 0; kc -= HD_PLANE, w += step, panel += 8192, scales += HD_PLANE / sub * 128) {
        const int32_t m = kc < HD_PLANE ? kc : HD_PLANE;
        for (int g = 0; g < 32 / HD_LANES; g++) {
            for (size_t i = 0; i < HD_LANES; i++) spread(w + ((size_t)(HD_LANES * g) + i) * row_bytes, m, planes + i);
            for (int32_t c = 0; c < m / 16; c++) {
                vi v[4];
                turn(v, (const uint8_t *)planes->q + 16 * c, sizeof(hd_plane));
                for (int j = 0; j < 4; j++) put(panel + WIDE * g + c * 512 + j * 128, XOR(v[j], flip));
            }
            for (int32_t c = 0; c < m / 16; c += 4) {
                vi v[4];
                turn(v, (const uint8_t *)(planes->scale + c), sizeof(hd_plane));
                for (int j = 0; j < 4 && c + j < m / 16; j += sub / 16)
                    put(scales + WIDE * g + (c + j) / (sub / 16) * 128, v[j]);
            }
        }
    }
}
static void panel_planes_16(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    by_planes(panel, w, row_bytes, kc, type, 16);
}
static void panel_planes_32(uint8_t *panel, const uint8_t *w, size_t row_bytes, int32_t kc, int32_t type)
{
    by_planes(panel, w, row_bytes, kc, type, 32);
}

static const hd_panel_kind kinds[HD_TYPE_COUNT] = {
    [HD_Q4_K] = {panel_q4_k, 32, 0, 1, 15},
    [HD_Q5_K] = {panel_q5_k, 32, 0, 1, 31},
    [HD_Q6_K] = {panel_q6_k, 16, OFFSET(32), 0, 63},
    [HD_Q2_K] = {panel_q2_k, 16, 0, 1, 3},
    [HD_Q3_K] = {panel_q3_k, 16, OFFSET(4), 0, 7},
    [HD_Q8_0] = {panel_q8_0, 32, FLIP, 0, 255},
    [HD_Q4_0] = {panel_q4_0, 32, OFFSET(8), 0, 15},
    [HD_Q4_1] = {panel_q4_1, 32, 0, 1, 15},
    [HD_Q5_0] = {panel_q5_0, 32, OFFSET(16), 0, 31},
    [HD_Q5_1] = {panel_q5_1, 32, 0, 1, 31},
    [HD_IQ4_NL] = {panel_iq4_nl, 32, FLIP, 0, 255},
    [HD_IQ4_XS] = {panel_iq4_xs, 32, FLIP, 0, 255},
    [HD_MXFP4] = {panel_mxfp4, 32, OFFSET(12), 0, 24},
#define PLANES(sub) {panel_planes_##sub, sub, FLIP, 0, 255}
    [HD_IQ2_XXS] = PLANES(32), [HD_IQ2_XS] = PLANES(16), [HD_IQ2_S] = PLANES(16), [HD_IQ3_XXS] = PLANES(32),
    [HD_IQ3_S] = PLANES(32),   [HD_IQ1_S] = PLANES(32),  [HD_IQ1_M] = PLANES(16), [HD_TQ1_0] = PLANES(32),
    [HD_TQ2_0] = PLANES(32),   [HD_NVFP4] = PLANES(16),
};

const hd_panel_kind *KIND(int32_t type)
{
    return type >= 0 && type < HD_TYPE_COUNT && kinds[type].unpack ? &kinds[type] : NULL;
}
