/* A plane: up to 256 quantised weights of one row spread out as signed bytes with one scale and one minimum for each
 * group of 16. Every block type of ggml can be written so without loss (weight = scale * q - min), so one multiply and
 * one conversion to float per instruction set serve all of them. Owns no memory. */
#pragma once
#include "types.h"

#define HD_PLANE 256
#define HD_GROUP 16

typedef struct hd_plane {
    _Alignas(64) int8_t q[HD_PLANE];
    float scale[HD_PLANE / HD_GROUP];
    float min[HD_PLANE / HD_GROUP];   /* anything for types without one (hd_plane_has_min) */
} hd_plane;

/* Spread n <= 256 values (whole blocks, a multiple of 32) that begin at `blocks`. */
typedef void (*hd_plane_fn)(const uint8_t *blocks, int64_t n, hd_plane *plane);

/* NULL for types that are not block-quantised. */
extern const hd_plane_fn hd_planes_c[HD_TYPE_COUNT];
extern const hd_plane_fn hd_planes_avx2[HD_TYPE_COUNT];
extern const hd_plane_fn hd_planes_avx512[HD_TYPE_COUNT];

static inline int hd_plane_has_min(int32_t type) {
    return type == HD_Q4_1 || type == HD_Q5_1 || type == HD_Q2_K || type == HD_Q4_K || type == HD_Q5_K;
}

/* The code books of the IQ types, eight values of 2 bits or four of 4 bits to an entry (grids.c). */
extern const uint16_t hd_grid_iq2_xxs[256], hd_grid_iq2_xs[512], hd_grid_iq2_s[1024];
extern const uint16_t hd_grid_iq3_xxs[256], hd_grid_iq3_s[512];
extern const uint16_t hd_grid_iq1[2048];
/* The same as the bytes that planes hold, and NVFP4's scales; made when the library is loaded. */
extern uint64_t hd_bytes_iq2_xxs[256], hd_bytes_iq2_xs[512], hd_bytes_iq2_s[1024], hd_bytes_iq1[2048];
extern uint32_t hd_bytes_iq3_xxs[256], hd_bytes_iq3_s[512];
extern float hd_halves_ue4m3[256];
extern const int8_t hd_values_iq4[16], hd_values_e2m1[16];
