/* Products with few tokens, and the unpacking of any type to floats, per instruction set. Owns the way from a plane of
 * weights to a sum; many tokens per expert are the affair of gemm.h. */
#pragma once
#include "act.h"

typedef void (*hd_unpack_fn)(const void *blocks, float *out, int64_t n);

/* NULL where the number is no type or holds no weights. */
extern const hd_unpack_fn hd_unpackers_c[HD_TYPE_COUNT];
extern const hd_unpack_fn hd_unpackers_avx2[HD_TYPE_COUNT];
extern const hd_unpack_fn hd_unpackers_avx512[HD_TYPE_COUNT];

/* Any type that has an unpacker, any activations, any n; needs no scratch. */
void hd_product_c(const hd_product *p, int64_t r0, int64_t r1);
void hd_product_avx2(const hd_product *p, int64_t r0, int64_t r1);
void hd_product_avx512(const hd_product *p, int64_t r0, int64_t r1);

/* Direct kernels of quantised types for HD_ACT_Q8: the rows' sums for n <= HD_DOT_MOST tokens from t0 on; from there on panels
 * have fewer instructions for a weight. NULL: none. */
#define HD_DOT_MOST 6
typedef void (*hd_dot_fn)(const hd_product *p, int64_t r0, int64_t r1, int32_t t0, int32_t n);
extern const hd_dot_fn hd_dots_avx2[HD_TYPE_COUNT];
extern const hd_dot_fn hd_dots_avx512[HD_TYPE_COUNT];
extern const hd_dot_fn hd_dots_by_hand_avx2[HD_TYPE_COUNT], hd_dots_by_hand_avx512[HD_TYPE_COUNT];
