/* Attention in plain C, one row's head at a time: the meaning that the wide versions are tested against. */
#include <math.h>

#include "attend.h"
#include "half.h"

size_t hd_attend_scratch_c(const hd_attend *a)
{
    return ((size_t)(a->dv + HD_KV_BLOCK) * sizeof(float) + 63) & ~(size_t)63;
}

static void attend_head(const hd_attend *a, int32_t row, int32_t head, float *sum, float *weight)
{
    const float *q = a->q[row] + (size_t)head * a->q_stride;
    float *out = a->out[row] + (size_t)head * a->out_stride;
    int64_t end = (int64_t)a->pos[row] + 1;
    int64_t begin = a->window > 0 && end > a->window ? end - a->window : 0;
    float top = -INFINITY, total = 0;
    for (int32_t j = 0; j < a->dv; j++) sum[j] = 0;

    for (int64_t base = begin - begin % HD_KV_BLOCK; base < end; base += HD_KV_BLOCK) {
        const uint16_t *k = a->k[base / HD_KV_BLOCK], *v = a->v[base / HD_KV_BLOCK];
        int32_t from = base < begin ? (int32_t)(begin - base) : 0;
        int32_t to = end - base < HD_KV_BLOCK ? (int32_t)(end - base) : HD_KV_BLOCK;
        float before = top;
        for (int32_t i = from; i < to; i++) {
            const uint16_t *key = k + (size_t)i * a->k_stride;
            float s = 0;
            for (int32_t j = 0; j < a->dk; j++) s += q[j] * hd_half_widen(key[j]);
            s *= a->scale;
            if (a->softcap > 0) s = a->softcap * tanhf(s / a->softcap);
            weight[i] = s;
            top = s > top ? s : top;
        }
        /* What was summed so far was relative to the old maximum. */
        float fade = expf(before - top);
        total *= fade;
        for (int32_t j = 0; j < a->dv; j++) sum[j] *= fade;
        for (int32_t i = from; i < to; i++) {
            const uint16_t *value = v + (size_t)i * a->v_stride;
            float w = expf(weight[i] - top);
            total += w;
            for (int32_t j = 0; j < a->dv; j++) sum[j] += w * hd_half_widen(value[j]);
        }
    }
    float scale = 1.0f;
    if (a->sinks) {
        float sink = a->sinks[head], both = sink > top ? sink : top;
        scale = expf(top - both);
        total = total * scale + expf(sink - both);
    }
    scale /= total;
    for (int32_t j = 0; j < a->dv; j++) out[j] = sum[j] * scale;
}

void hd_attend_c(const hd_attend *a, void *scratch)
{
    float *sum = scratch, *weight = sum + a->dv;
    for (int32_t row = 0; row < a->rows; row++)
        for (int32_t head = 0; head < a->group; head++) attend_head(a, row, head, sum, weight);
}
