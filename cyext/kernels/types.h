/* Tensor types by ggml's numbers, their block sizes, and the small conversions that every file needs.
 * Numbers and layouts: ggml/include/ggml.h and ggml/src/ggml-common.h, gguf-py/gguf/constants.py. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum hd_type {
    HD_F32 = 0, HD_F16 = 1, HD_Q4_0 = 2, HD_Q4_1 = 3, HD_Q5_0 = 6, HD_Q5_1 = 7, HD_Q8_0 = 8, HD_Q8_1 = 9,
    HD_Q2_K = 10, HD_Q3_K = 11, HD_Q4_K = 12, HD_Q5_K = 13, HD_Q6_K = 14, HD_Q8_K = 15, HD_IQ2_XXS = 16,
    HD_IQ2_XS = 17, HD_IQ3_XXS = 18, HD_IQ1_S = 19, HD_IQ4_NL = 20, HD_IQ3_S = 21, HD_IQ2_S = 22, HD_IQ4_XS = 23,
    HD_I8 = 24, HD_I16 = 25, HD_I32 = 26, HD_I64 = 27, HD_F64 = 28, HD_IQ1_M = 29, HD_BF16 = 30, HD_TQ1_0 = 34,
    HD_TQ2_0 = 35, HD_MXFP4 = 39, HD_NVFP4 = 40, HD_TYPE_COUNT = 41
};

typedef struct hd_type_info {
    const char *name;  /* as gguf names it, NULL for a number that is no type */
    int32_t block;     /* values in a block */
    int32_t bytes;     /* bytes of a block */
} hd_type_info;

extern const hd_type_info hd_types[HD_TYPE_COUNT];
