/* What a gated delta net keeps and does: a short causal convolution and the recurrent scan. Rows of a session are
 * consecutive in a step and come in order of position; what the session keeps is read, what it will keep is written
 * elsewhere (hd_session), so a step that fails has changed nothing. */
#include "step.h"
#include <math.h>
#include <string.h>

#define OP(s) (&(s)->p->ops[(s)->pc])

static const hd_session *session_of(const hd_step *s, int32_t row) { return &s->sessions[s->session[row]]; }

/* The run of rows of one session that begins at row. */
static int32_t run_end(const hd_step *s, int32_t row) {
    int32_t end = row + 1;
    while (end < s->n && s->session[end] == s->session[row]) end++;
    return end;
}

static void convolve_item(hd_step *s, hd_worker *w, const hd_item *item) {
    const hd_op *op = OP(s);
    int32_t taps = op->i[0], offset = op->i[1] + item->r0, channels = s->p->buffers[op->in[0]].width, first = item->r0;
    size_t n = (size_t)(item->r1 - first), bytes = sizeof(float) * n;
    const float *weight = hd_vector(s, op, 0) + (size_t)first * taps;   /* [channels][taps], the last tap is the row itself */
    const float *tail = session_of(s, item->what)->tail + offset;       /* [taps - 1][channels], oldest first */
    float *next = session_of(s, item->what)->tail_next + offset;
    const float **x = hd_worker_scratch(w, bytes * (size_t)taps + sizeof(float *) * (size_t)taps);
    float *turned = (float *)(x + taps);
    for (int32_t k = 0; k < taps; k++)
        for (size_t c = 0; c < n; c++) turned[(size_t)k * n + c] = weight[c * (size_t)taps + (size_t)k];
    int32_t begin = item->what, rows = run_end(s, begin) - begin;
    for (int32_t t = 0; t < rows; t++) {
        for (int32_t k = 0; k < taps; k++) {
            int32_t from = t + k - (taps - 1);   /* before the run: in the tail */
            x[k] = from < 0 ? tail + (size_t)(from + taps - 1) * channels : hd_row(s, op->in[0], begin + from) + first;
        }
        s->p->kernels->convolve(hd_row(s, op->out[0], begin + t) + first, x, turned, taps, (int64_t)n);
    }
    for (int32_t k = 0; k < taps - 1; k++) {
        int32_t from = rows + k - (taps - 1);
        const float *last = from < 0 ? tail + (size_t)(from + taps - 1) * channels : hd_row(s, op->in[0], begin + from) + first;
        memcpy(next + (size_t)k * channels, last, bytes);
    }
}

/* out0 = silu(causal convolution of in0 over the session's rows), w0 [channels][i0 taps], tail at float i1. */
int hd_op_convolve(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage > 0) {
        hd_written(s, op->out[0]);
        return HD_DONE;
    }
    int32_t channels = s->p->buffers[op->in[0]].width, each = channels / (4 * hd_teams_threads(s->p->teams));
    each = each < 64 ? 64 : each;
    hd_items_clear(s, convolve_item);
    for (int32_t r = 0; r < s->n; r = run_end(s, r))
        for (int32_t c = 0; c < channels; c += each)
            if (hd_items_add(s, r, c, c + each < channels ? c + each : channels)) return HD_FAIL;
    return hd_items_publish(s);
}

static void decay_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    int32_t heads = op->i[0];
    const float *a = hd_vector(s, op, 0), *bias = hd_vector(s, op, 1);
    for (int32_t r = item->r0; r < item->r1; r++) {
        const float *alpha = hd_row(s, op->in[0], r), *beta = hd_row(s, op->in[1], r);
        float *out = hd_row(s, op->out[0], r);
        for (int32_t h = 0; h < heads; h++) {
            float x = alpha[op->i[1] + h / op->i[5] * op->i[2] + h % op->i[5]] + bias[h];
            float softplus = x > 20.0f ? x : log1pf(expf(x));
            float write = beta[op->i[3] + h / op->i[5] * op->i[4] + h % op->i[5]];
            /* Plus nothing: where exp and sigmoid would make a number of an infinity, it is NaN. */
            out[h] = expf(a[h] * softplus) + 0.0f * x + 0.0f * a[h];
            out[heads + h] = 1.0f / (1.0f + expf(-write)) + 0.0f * write;
        }
    }
}

/* out0 [2][i0 heads] = exp(w0 softplus(alpha + w1)) and sigmoid(beta): how far a head forgets, how far it writes. Head h
 * finds alpha in in0 at i1 + (h / i5) i2 + h % i5, beta in in1 at i3 + (h / i5) i4 + h % i5. */
int hd_op_decay(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage == 0 && hd_share_rows(s, decay_rows, s->n, 16 * (int64_t)op->i[0]) == HD_SHARE) return HD_SHARE;
    hd_written(s, op->out[0]);
    return HD_DONE;
}

/* Tokens whose pointers fit the stack. */
#define PIECE 64

static void delta_item(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    const hd_session *session = session_of(s, item->what);
    int32_t value_heads = op->i[0], dk = op->i[2], dv = op->i[3];
    int32_t h = item->r0, key_head = op->i[5] ? h % op->i[1] : h / (value_heads / op->i[1]);
    size_t state = (size_t)op->i[4] + (size_t)h * (size_t)dk * (size_t)dv;
    size_t tail = (size_t)op->i[6] + (size_t)h * hd_delta_tail((size_t)dk, (size_t)dv);
    const float *q[PIECE], *k[PIECE], *v[PIECE];
    float *out[PIECE], decay[PIECE], beta[PIECE];
    hd_delta d = {.dk = dk, .dv = dv, .held = session->state + state, .next = session->state_next + state,
                  .tail = session->tail + tail, .tail_next = session->tail_next + tail, .q = q, .k = k, .v = v,
                  .decay = decay, .beta = beta, .out = out};
    int32_t end = run_end(s, item->what);
    /* A piece ends where a group does, so that the next one needs no tail. */
    for (int32_t r = item->what; r < end; r += d.rows) {
        d.before = s->pos[r] % HD_DELTA_TOKENS;
        d.rows = end - r < PIECE - d.before ? end - r : PIECE - d.before;
        for (int32_t t = 0; t < d.rows; t++) {
            const float *x = hd_row(s, op->in[0], r + t), *gates = hd_row(s, op->in[1], r + t);
            q[t] = x + (size_t)key_head * dk;
            k[t] = x + (size_t)(op->i[1] + key_head) * dk;
            v[t] = x + (size_t)2 * op->i[1] * dk + (size_t)h * dv;
            out[t] = hd_row(s, op->out[0], r + t) + (size_t)h * dv;
            decay[t] = gates[h];
            beta[t] = gates[value_heads + h];
        }
        s->p->kernels->delta(&d);
        if (d.before + d.rows >= HD_DELTA_TOKENS) d.held = d.next;
    }
}

/* out0 [i0 value heads][i3]: the gated delta rule over in0 = [q, k: i1 heads of i2 each; v], with in1 as hd_op_decay makes
 * it; state at float i4, tail at i6. i5: value head h reads key head h % i1, else h / (i0 / i1). */
int hd_op_delta(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage > 0) {
        hd_written(s, op->out[0]);
        return HD_DONE;
    }
    hd_items_clear(s, delta_item);
    for (int32_t r = 0; r < s->n; r = run_end(s, r))
        for (int32_t h = 0; h < op->i[0]; h++)
            if (hd_items_add(s, r, h, h + 1)) return HD_FAIL;
    return hd_items_publish(s);
}
