/* Packing of activations, compiled once per instruction set (HD_NAME from the including file). The plain C lines say what
 * the wide ones must repeat byte for byte: the order of comparisons also settles what a NaN's q becomes.
 * A block that holds a NaN or an infinity has such a scale: q could not tell of them, and a sum without them would be a
 * number where the model has none. */
#include "act.h"

#include <math.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* Below this the inverse overflows; such a block counts as zero. */
#define HD_LEAST_TOP 0x1p-118f

/* The largest of |x|, a NaN where there is one. Compared as whole numbers: without their signs floats keep their order
 * there, with infinity and NaN above all, whereas comparisons of floats pass a NaN over. */
static inline float HD_NAME(top_of)(const float *x) {
#if defined(__AVX512F__)
    const __m512i size = _mm512_set1_epi32(0x7fffffff);
    __m512i a = _mm512_and_si512(size, _mm512_loadu_si512(x)), b = _mm512_and_si512(size, _mm512_loadu_si512(x + 16));
    a = _mm512_max_epi32(a, b);
    __m256i e = _mm256_max_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(e), _mm256_extracti128_si256(e, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1))));
#elif defined(__AVX2__)
    const __m256i size = _mm256_set1_epi32(0x7fffffff), *v = (const __m256i *)(const void *)x;
    __m256i a = _mm256_and_si256(size, _mm256_loadu_si256(v)), b = _mm256_and_si256(size, _mm256_loadu_si256(v + 1));
    __m256i c = _mm256_and_si256(size, _mm256_loadu_si256(v + 2)), d = _mm256_and_si256(size, _mm256_loadu_si256(v + 3));
    a = _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1))));
#else
    int32_t bits = 0;
    for (int64_t i = 0; i < HD_ACT_BLOCK; i++) {
        int32_t a;
        memcpy(&a, x + i, 4);
        a &= 0x7fffffff;
        bits = a > bits ? a : bits;
    }
    float top;
    memcpy(&top, &bits, 4);
    return top;
#endif
}

/* One block of 32 values: q, the sums of its groups of 16, and the returned scale. */
static inline float HD_NAME(quantise)(const float *restrict x, int8_t *restrict q, int16_t *restrict sums) {
    float top = HD_NAME(top_of)(x), inverse = 0.0f, d = 0.0f;
    if (!(top < HD_LEAST_TOP)) inverse = 127.0f / top, d = top / 127.0f; /* a NaN, too */
#if defined(__AVX512F__)
    const __m512 scale = _mm512_set1_ps(inverse), most = _mm512_set1_ps(127.0f), least = _mm512_set1_ps(-127.0f);
    for (int64_t i = 0; i < HD_ACT_BLOCK; i += 16) {
        __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), scale);
        __m512i whole = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(v, most), least));
        _mm_storeu_si128((__m128i *)(void *)(q + i), _mm512_cvtepi32_epi8(whole));
        sums[i / 16] = (int16_t)_mm512_reduce_add_epi32(whole);
    }
#elif defined(__AVX2__)
    const __m256 scale = _mm256_set1_ps(inverse), most = _mm256_set1_ps(127.0f), least = _mm256_set1_ps(-127.0f);
    for (int64_t i = 0; i < HD_ACT_BLOCK; i += 16) {
        __m256 a = _mm256_mul_ps(_mm256_loadu_ps(x + i), scale), b = _mm256_mul_ps(_mm256_loadu_ps(x + i + 8), scale);
        __m256i u = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(a, most), least));
        __m256i v = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(b, most), least));
        __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(u, v), 0xd8);
        _mm_storeu_si128((__m128i *)(void *)(q + i),
                         _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
        u = _mm256_add_epi32(u, v);
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        sums[i / 16] = (int16_t)_mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
    }
#else
    for (int64_t i = 0; i < HD_ACT_BLOCK; i += 16) {
        int sum = 0;
        for (int64_t j = i; j < i + 16; j++) {
            float v = x[j] * inverse;
            v = v < 127.0f ? v : 127.0f;
            v = v > -127.0f ? v : -127.0f;
            q[j] = (int8_t)lrintf(v); /* to nearest even, as the vector conversions do */
            sum += q[j];
        }
        sums[i / 16] = (int16_t)sum;
    }
#endif
    return d;
}

void HD_NAME(hd_act_pack)(hd_act kind, const float *x, int64_t k, void *out) {
    uint8_t *row = out;
    size_t used = 0, bytes = hd_act_bytes(kind, k);
    switch (kind) {
    case HD_ACT_F32:
        used = 4 * (size_t)k;
        memcpy(out, x, used);
        break;
    case HD_ACT_Q8: {
        float *d = (float *)(void *)(row + k), *s = (float *)(void *)(row + k + k / 8);
        int16_t *sums = (int16_t *)(void *)(row + k + k / 4);
        for (int64_t b = 0; b < k / 32; b++) {
            d[b] = HD_NAME(quantise)(x + 32 * b, (int8_t *)row + 32 * b, sums + 2 * b);
            s[b] = d[b] * (float)(sums[2 * b] + sums[2 * b + 1]);
        }
        used = (size_t)(k + 3 * (k / 8));
        break;
    }
    default: return;
    }
    memset(row + used, 0, bytes - used);
}
