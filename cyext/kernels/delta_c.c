/* The gated delta rule token by token, in plain C: the meaning that the wide ones are tested against. */
#include "delta.h"

#define DELTA_WIDTH 256

void hd_delta_c(const hd_delta *d) {
    int32_t dk = d->dk, dv = d->dv;
    for (int32_t first = 0; first < dv; first += DELTA_WIDTH) {
        int32_t n = dv - first < DELTA_WIDTH ? dv - first : DELTA_WIDTH;
        float held[DELTA_WIDTH], change[DELTA_WIDTH], out[DELTA_WIDTH];
        for (int32_t t = 0; t < d->rows; t++) {
            const float *restrict q = d->q[t], *restrict k = d->k[t], *restrict v = d->v[t] + first;
            float decay = d->decay[t], beta = d->beta[t];
            for (int32_t j = 0; j < n; j++) held[j] = 0.0f;
            for (int32_t i = 0; i < dk; i++) {
                const float *restrict s = d->state + (size_t)i * dv + first;
                float by = k[i] * decay;
                for (int32_t j = 0; j < n; j++) held[j] += by * s[j];
            }
            for (int32_t j = 0; j < n; j++) {
                change[j] = beta * (v[j] - held[j]);
                out[j] = 0.0f;
            }
            for (int32_t i = 0; i < dk; i++) {
                float *restrict s = d->state + (size_t)i * dv + first;
                float ki = k[i], qi = q[i];
                for (int32_t j = 0; j < n; j++) {
                    float now = decay * s[j] + ki * change[j];
                    s[j] = now;
                    out[j] += qi * now;
                }
            }
            for (int32_t j = 0; j < n; j++) d->out[t][first + j] = out[j];
        }
    }
}
