/* Products by panels: some weight rows are unpacked once into scratch, then multiplied with all tokens.
 * hd_gemm_* answers 0 when it does not take the case (type, activations, too few tokens) and has then written nothing.
 * Rows are worked in panels of HD_GEMM_PANEL; the caller's r0 is a multiple of it. An output element depends only on
 * its weight row and its token, never on n, r0, r1 or the neighbours. */
#pragma once
#include "kernels.h"

#define HD_GEMM_PANEL 32

#define HD_GEMM_SET(isa)                                                              \
    int hd_gemm_##isa(const hd_product *p, int64_t r0, int64_t r1, void *scratch);    \
    size_t hd_gemm_scratch_##isa(const hd_product *p);

HD_GEMM_SET(c)
HD_GEMM_SET(avx2)
HD_GEMM_SET(avx512)
HD_GEMM_SET(amx)
