/* Products of all rows with dense matrices. */
#include "step.h"
#include <string.h>

#define OP(s) (&(s)->p->ops[(s)->pc])

enum { EXACT = 0, TO_LOGITS = 3 };   /* ints of a matmul: its inputs stay floats; its output is the step's logits */

static hd_act act_of(const hd_step *s, const hd_op *op, const hd_weight *m) {
    return op->i[EXACT] ? HD_ACT_F32 : s->p->kernels->act_for(m->type);
}

static float *out_row(const hd_step *s, const hd_op *op, int32_t k, int32_t row) {
    if (op->i[TO_LOGITS]) return s->logits[row];
    return hd_row(s, op->out[k], row);
}

static void matmul_item(hd_step *s, hd_worker *w, const hd_item *item) {
    const hd_program *p = s->p;
    const hd_op *op = OP(s);
    int32_t k = item->what, n = hd_rows(s, op);
    const hd_weight *m = &p->weights[op->w[k]];
    hd_product product = {
        .type = m->type, .act = (int32_t)act_of(s, op, m), .w = hd_weight_at(p, m, 0, w->team),
        .row_bytes = m->row_bytes, .k = m->cols, .n = n,
        .x = s->x + (size_t)k * p->max_rows, .out = s->out0 + (size_t)k * p->max_rows};
    void *scratch = hd_worker_scratch(w, p->kernels->product_scratch(&product));
    p->kernels->product(&product, item->r0, item->r1, scratch);
    hd_scale_sums(m, 0, n, product.out, item->r0, item->r1);
    hd_count_read(p, w->team, m->spans[0], (size_t)(item->r1 - item->r0) * m->row_bytes);
    const float *bias = hd_vector(s, op, 4 + k);
    if (bias)
        for (int32_t t = 0; t < n; t++)
            for (int32_t r = item->r0; r < item->r1; r++) product.out[t][r] += bias[r];
}

/* out[k] = w[k] in0 (+ w[4 + k]) for up to four matrices that read the same rows. */
int hd_op_matmul(hd_step *s, const hd_op *op, int32_t stage) {
    (void)stage;
    const hd_program *p = s->p;
    int32_t n = hd_rows(s, op), matrices = 0;
    while (matrices < 4 && op->w[matrices] >= 0) matrices++;
    if (s->sub == 0) {
        for (int32_t k = 0; k < matrices; k++)
            if (hd_need_spans(s, p->weights[op->w[k]].spans, 1)) return HD_FAIL;
        for (int32_t k = 0; k < matrices; k++) {
            int answer = hd_pack(s, op->in[0], act_of(s, op, &p->weights[op->w[k]]), n);
            if (answer != HD_DONE) return answer;
        }
        int64_t rows = 0;
        for (int32_t k = 0; k < matrices; k++) {
            const hd_weight *m = &p->weights[op->w[k]];
            hd_act kind = act_of(s, op, m);
            for (int32_t t = 0; t < n; t++) {
                s->x[(size_t)k * p->max_rows + t] = hd_packed_row(s, op->in[0], kind, t);
                s->out0[(size_t)k * p->max_rows + t] = out_row(s, op, k, t);
            }
            rows += m->rows;
        }
        int32_t chunk = hd_chunk(p, rows, 1), teams = hd_teams_count(p->teams);
        int32_t ends[64];
        hd_items_clear(s, matmul_item);
        for (int32_t team = 0; team < teams; team++) {
            for (int32_t k = 0; k < matrices; k++) {
                int32_t r0, r1;
                hd_team_rows(p, team, p->weights[op->w[k]].rows, &r0, &r1);
                for (int32_t r = r0; r < r1; r += chunk)
                    if (hd_items_add(s, k, r, r + chunk < r1 ? r + chunk : r1)) return HD_FAIL;
            }
            ends[team] = s->n_items;
        }
        s->sub = 1;
        return hd_items_publish_by_team(s, ends);
    }
    for (int32_t k = 0; k < matrices; k++)
        if (!op->i[TO_LOGITS]) hd_written(s, op->out[k]);
    return HD_DONE;
}

/* Per head h: out[h * i4 + i5 ..] = W_h in[h * i2 + i3 ..], W_h the i1 x i6 matrix that begins at row h * i7 + i8 of w0.
 * i9: what begins there is W_h transposed, i6 x i1. For the absorbed form of multi-head latent attention (DeepSeek-V2, arXiv
 * 2405.04434, section 2.1). */
static void heads_item(hd_step *s, hd_worker *w, const hd_item *item) {
    const hd_program *p = s->p;
    const hd_op *op = OP(s);
    const hd_weight *m = &p->weights[op->w[0]];
    int32_t rows = op->i[1], cols = op->i[6], n = hd_rows(s, op);
    hd_product product = {.type = m->type, .act = HD_ACT_F32, .row_bytes = m->row_bytes, .k = cols, .n = n};
    size_t pointers = sizeof(void *) * 2 * (size_t)n, aligned = ((size_t)cols * sizeof(float) + 63) & ~(size_t)63;
    pointers = (pointers + 63) & ~(size_t)63;
    size_t head = pointers + aligned * (size_t)n;
    uint8_t *scratch = hd_worker_scratch(w, head + p->kernels->product_scratch(&product));
    const uint8_t **x = (const uint8_t **)scratch;
    float **out = (float **)(scratch + sizeof(void *) * (size_t)n);
    product.x = x;
    product.out = out;
    for (int32_t h = item->r0; h < item->r1; h++) {
        product.w = hd_weight_at(p, m, 0, w->team) + ((size_t)h * op->i[7] + op->i[8]) * m->row_bytes;
        for (int32_t t = 0; t < n; t++) {
            uint8_t *copy = scratch + pointers + aligned * (size_t)t;
            memcpy(copy, hd_row(s, op->in[0], t) + op->i[3] + (size_t)h * op->i[2], sizeof(float) * (size_t)cols);
            x[t] = copy;
            out[t] = hd_row(s, op->out[0], t) + op->i[5] + (size_t)h * op->i[4];
        }
        p->kernels->product(&product, 0, rows, scratch + head);
        hd_scale_sums(m, 0, n, out, 0, rows);
        hd_count_read(p, w->team, m->spans[0], (size_t)rows * m->row_bytes);
    }
}

/* The same with W_h transposed: its rows, unpacked, are added up one after the other, weighted by the input. */
static void turned_heads_item(hd_step *s, hd_worker *w, const hd_item *item) {
    const hd_program *p = s->p;
    const hd_op *op = OP(s);
    const hd_weight *m = &p->weights[op->w[0]];
    int32_t rows = op->i[1], cols = op->i[6], n = hd_rows(s, op);
    float *matrix = hd_worker_scratch(w, sizeof(float) * (size_t)cols * (size_t)rows);
    for (int32_t h = item->r0; h < item->r1; h++) {
        const uint8_t *head = hd_weight_at(p, m, 0, w->team) + ((size_t)h * op->i[7] + op->i[8]) * m->row_bytes;
        for (int32_t j = 0; j < cols; j++)
            p->kernels->unpack[m->type](head + (size_t)j * m->row_bytes, matrix + (size_t)j * rows, rows);
        for (int32_t t = 0; t < n; t++) {
            const float *x = hd_row(s, op->in[0], t) + op->i[3] + (size_t)h * op->i[2];
            float *out = hd_row(s, op->out[0], t) + op->i[5] + (size_t)h * op->i[4];
            memset(out, 0, sizeof(float) * (size_t)rows);
            for (int32_t j = 0; j < cols; j++) p->kernels->axpy(out, x[j], matrix + (size_t)j * rows, rows);
            hd_scale_sums(m, 0, 1, &out, 0, rows);
        }
        hd_count_read(p, w->team, m->spans[0], (size_t)cols * m->row_bytes);
    }
}

int hd_op_heads_matmul(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage == 0) {
        if (hd_need_spans(s, s->p->weights[op->w[0]].spans, 1)) return HD_FAIL;
        hd_items_clear(s, op->i[9] ? turned_heads_item : heads_item);
        for (int32_t h = 0; h < op->i[0]; h++)
            if (hd_items_add(s, 0, h, h + 1)) return HD_FAIL;
        return hd_items_publish(s);
    }
    hd_written(s, op->out[0]);
    return HD_DONE;
}
