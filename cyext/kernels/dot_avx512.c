/* Direct products with few tokens for AVX-512 VNNI of the types that people run, straight from the file's blocks. */
#include "eight_blocks.h"

#define EIGHT_DOT(name, bytes, ...) DOT_BY(name, eight_##name, piece_##name, 32, 256, 8 * (bytes), __VA_ARGS__)

DOT(q4_k, 256, 144, 32, 1, 0)
DOT(q5_k, 256, 176, 32, 1, 0)
DOT(q6_k, 256, 210, 16, 0, 32)
DOT(q2_k, 256, 84, 16, 1, 0)
DOT(q3_k, 256, 110, 16, 0, 4)
DOT(iq4_xs, 256, 136, 32, 0, 128)
EIGHT_DOT(q8_0, 34, 32, 0, 128)
EIGHT_DOT(q4_0, 18, 32, 0, 8)
EIGHT_DOT(q4_1, 20, 32, 1, 0)
EIGHT_DOT(q5_0, 22, 32, 0, 16)
EIGHT_DOT(q5_1, 24, 32, 1, 0)
EIGHT_DOT(iq4_nl, 18, 32, 0, 128)
EIGHT_DOT(mxfp4, 17, 32, 0, 12)

const hd_dot_fn hd_dots_avx512[HD_TYPE_COUNT] = {
    [HD_Q4_K] = dot_q4_k, [HD_Q5_K] = dot_q5_k, [HD_Q6_K] = dot_q6_k,     [HD_Q2_K] = dot_q2_k,
    [HD_Q3_K] = dot_q3_k, [HD_Q8_0] = dot_q8_0, [HD_IQ4_XS] = dot_iq4_xs, [HD_Q4_0] = dot_q4_0,
    [HD_Q4_1] = dot_q4_1, [HD_Q5_0] = dot_q5_0, [HD_Q5_1] = dot_q5_1,     [HD_IQ4_NL] = dot_iq4_nl,
    [HD_MXFP4] = dot_mxfp4,
};
