/* A guess, made at one layer, of the experts that the next will use: the next layer's router on this layer's state. */
#include "step.h"
#include <string.h>

#define OP(s) (&(s)->p->ops[(s)->pc])

static void logits_item(hd_step *s, hd_worker *w, const hd_item *item) {
    const hd_program *p = s->p;
    const hd_op *op = OP(s);
    const hd_weight *m = &p->weights[op->w[1]];
    const uint8_t *x[HD_LOOKAHEAD_ROWS];
    float *out[HD_LOOKAHEAD_ROWS];
    for (int32_t r = 0; r < s->n; r++) {
        x[r] = (const uint8_t *)hd_row(s, op->out[0], r);
        out[r] = hd_row(s, op->out[1], r);
    }
    hd_product product = {.type = m->type, .act = HD_ACT_F32, .w = hd_weight_at(p, m, 0, w->team), .row_bytes = m->row_bytes,
                          .k = m->cols, .n = s->n, .x = x, .out = out};
    p->kernels->product(&product, item->r0, item->r1, hd_worker_scratch(w, p->kernels->product_scratch(&product)));
    hd_scale_sums(m, 0, s->n, out, item->r0, item->r1);
    const float *bias = hd_vector(s, op, 6);
    for (int32_t t = 0; bias && t < s->n; t++)
        for (int32_t r = item->r0; r < item->r1; r++) out[t][r] += bias[r];
}

static void guess(hd_step *s, const hd_op *op) {
    const hd_program *p = s->p;
    hd_lookahead *a = s->lookahead;
    int32_t chosen[HD_LOOKAHEAD_USED], used = op->i[0];
    float weights[HD_LOOKAHEAD_USED];
    a->latest ^= 1;
    hd_guess *g = &a->guess[a->latest];
    memset(g->guessed, 0, (size_t)p->n_experts);
    memset(g->asked, 0, (size_t)p->n_experts);
    for (int32_t r = 0; r < s->n; r++) {
        if (!hd_wanted(s, op, r)) continue;
        hd_choose(hd_row(s, op->out[1], r), hd_vector(s, op, 2), p->n_experts, op, chosen, weights, s->work);
        for (int32_t k = 0; k < used; k++) g->guessed[chosen[k]] = 1;
    }
    g->layer = op->i[5];
    g->step = s->number;
    if (!a->read || !p->queue || !hd_queue_idle(p->queue)) return;
    for (int32_t e = 0; e < p->n_experts; e++) {
        if (!g->guessed[e]) continue;
        for (int32_t which = 3; which < 6; which++) {
            if (op->w[which] < 0) continue;
            int32_t span = p->weights[op->w[which]].spans[e];
            if (atomic_load(&p->spans->state[span]) == HD_READY) continue;
            hd_queue_submit(p->queue, HD_LOOKAHEAD, &span, 1);
            g->asked[e] = 1;
            a->read_bytes += p->spans->nbytes[span];
        }
    }
}

/* in0: this layer's state; w0 norm and w1 router (w2 bias of the choice, w6
 * of the logits) of layer i5, w3 to w5 its experts; i0 to i4, f0 as for route,
 * f1 epsilon; out0, out1: scratch for the normed state and the logits. Only for a few rows, and few experts of each: more
 * use nearly all. */
int hd_op_lookahead(hd_step *s, const hd_op *op, int32_t stage) {
    const hd_program *p = s->p;
    hd_lookahead *a = s->lookahead;
    if (stage > 0) {
        guess(s, op);
        return HD_DONE;
    }
    if (!a || s->n > HD_LOOKAHEAD_ROWS || op->i[0] > HD_LOOKAHEAD_USED || (!a->read && (a->every <= 0 || s->number % (uint64_t)a->every))) return HD_DONE;
    const hd_weight *m = &p->weights[op->w[1]];
    if (p->queue && atomic_load(&p->spans->state[m->spans[0]]) != HD_READY) return HD_DONE;
    for (int32_t r = 0; r < s->n; r++)
        p->kernels->rms_norm(hd_row(s, op->out[0], r), hd_row(s, op->in[0], r), hd_vector(s, op, 0), m->cols, op->f[1]);
    hd_items_clear(s, logits_item);
    int32_t chunk = hd_chunk(p, m->rows, 1), teams = hd_teams_count(p->teams), ends[64];
    for (int32_t team = 0; team < teams; team++) {
        int32_t r0, r1;
        hd_team_rows(p, team, m->rows, &r0, &r1);
        for (int32_t r = r0; r < r1; r += chunk)
            if (hd_items_add(s, 0, r, r + chunk < r1 ? r + chunk : r1)) return HD_FAIL;
        ends[team] = s->n_items;
    }
    return hd_items_publish_by_team(s, ends);
}

void hd_lookahead_check(hd_step *s, const hd_op *op) {
    hd_lookahead *a = s->lookahead;
    if (!a || hd_rows(s, op) != s->n) return; /* guessed for all rows, used by some */
    for (int32_t k = 0; k < 2; k++) {
        hd_guess *g = &a->guess[k];
        if (g->layer != op->layer || g->step != s->number) continue;
        for (int32_t u = 0; u < s->n_uses; u++) {
            int32_t e = s->uses[u].expert;
            a->n_used++;
            a->n_right += g->guessed[e];
            g->asked[e] = 0;
        }
        for (int32_t e = 0; e < s->p->n_experts; e++) {
            a->n_guessed += g->guessed[e];
            if (g->asked[e])
                for (int32_t which = 0; which < 3; which++)
                    if (op->w[which] >= 0) a->wasted_bytes += s->p->spans->nbytes[s->p->weights[op->w[which]].spans[e]];
        }
        g->layer = -1;
    }
}
