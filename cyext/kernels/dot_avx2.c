/* Direct products with few tokens for AVX2 of the types that people run: their bytes from one row at a time
 * (dot_bytes_avx2.h), their scales from eight (turned_heads.h). */
#include "dot_eight.h"
#include "dot_bytes_avx2.h"

#define PLAIN(name) \
    TURN weights spread_##name(const uint8_t *p, int i) { return (weights){bytes_##name(p, i), _mm256_setzero_si256()}; }
#define SIGNED(name)                                                        \
    TURN weights spread_##name(const uint8_t *p, int i)                     \
    {                                                                       \
        const vi w = bytes_##name(p, i);                                    \
        return (weights){_mm256_abs_epi8(w), w};                            \
    }
PLAIN(q4_k) PLAIN(q5_k) PLAIN(q6_k) PLAIN(q2_k) PLAIN(q3_k) PLAIN(q4_0) PLAIN(q4_1) PLAIN(q5_0) PLAIN(q5_1) PLAIN(mxfp4)
SIGNED(iq4_xs) SIGNED(iq4_nl) SIGNED(q8_0)

/* columns and bytes of a piece; columns under one scale, minima, offset; depth, signs, by room */
DOT(q4_k, 256, 144, 32, 1, 0, 8, 0, 0)
DOT(q5_k, 256, 176, 32, 1, 0, 4, 0, 0)
DOT(q6_k, 256, 210, 16, 0, 32, 2, 0, 0)
DOT(q2_k, 256, 84, 16, 1, 0, 4, 0, 0)
DOT(q3_k, 256, 110, 16, 0, 4, 4, 0, 0)
DOT(q4_0, 32, 18, 32, 0, 8, 8, 0, 0)
DOT(q4_1, 32, 20, 32, 1, 0, 8, 0, 0)
DOT(q5_0, 32, 22, 32, 0, 16, 4, 0, 0)
DOT(q5_1, 32, 24, 32, 1, 0, 4, 0, 0)
DOT(mxfp4, 32, 17, 32, 0, 12, 4, 0, 0)
DOT(q8_0, 32, 34, 32, 0, 0, 1, 1, 0)
DOT(iq4_xs, 256, 136, 32, 0, 0, 1, 1, 0)
DOT(iq4_nl, 32, 18, 32, 0, 0, 1, 1, 0)

const hd_dot_fn hd_dots_avx2[HD_TYPE_COUNT] = {
    [HD_Q4_K] = dot_q4_k, [HD_Q5_K] = dot_q5_k, [HD_Q6_K] = dot_q6_k,     [HD_Q2_K] = dot_q2_k,
    [HD_Q3_K] = dot_q3_k, [HD_Q8_0] = dot_q8_0, [HD_IQ4_XS] = dot_iq4_xs, [HD_Q4_0] = dot_q4_0,
    [HD_Q4_1] = dot_q4_1, [HD_Q5_0] = dot_q5_0, [HD_Q5_1] = dot_q5_1,     [HD_IQ4_NL] = dot_iq4_nl,
    [HD_MXFP4] = dot_mxfp4,
};
