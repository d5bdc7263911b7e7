/* The panel unpackers per instruction set and the tables that they share; layout in gemm_panel.h. */
#pragma once
#include "gemm_panel.h"

/* Values of IQ4_NL's nibbles plus 128, and of MXFP4's doubled plus 12 (ggml-common.h: kvalues_iq4nl, kvalues_mxfp4). */
static const uint8_t hd_iq4_bytes[16] __attribute__((aligned(16))) = {1,   24,  45,  63,  79,  93,  106, 118,
                                                                     129, 141, 153, 166, 181, 197, 217, 241};
static const uint8_t hd_mxfp4_bytes[16] __attribute__((aligned(16))) = {12, 13, 14, 15, 16, 18, 20, 24,
                                                                       12, 11, 10, 9,  8,  6,  4,  0};

/* NULL: the type has no panels. */
const hd_panel_kind *hd_panel_kind_avx2(int32_t type);
const hd_panel_kind *hd_panel_kind_avx512(int32_t type);
const hd_panel_kind *hd_panel_kind_signed(int32_t type); /* by AVX-512; no offsets */
