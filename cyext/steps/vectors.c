/* Operations that go row by row: embedding, norms, rotation, sums, activations. */
#include "step.h"
#include <math.h>
#include <string.h>

#define OP(s) (&(s)->p->ops[(s)->pc])

static void embed_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    const hd_weight *m = &s->p->weights[op->w[0]];
    const uint8_t *base = hd_weight_at(s->p, m, 0, 0);
    for (int32_t r = item->r0; r < item->r1; r++) {
        float *out = hd_row(s, op->out[0], r);
        s->p->kernels->unpack[m->type](base + (size_t)s->token[r] * m->row_bytes, out, m->cols);
        hd_scale_sums(m, 0, 1, &out, 0, m->cols);
        if (op->f[0] != 1.0f)
            for (int64_t j = 0; j < m->cols; j++) out[j] *= op->f[0];
    }
}

/* out0 = f0 * row `token` of w0, whose scale it takes as products do. Does not wait for the tensor: a step reads a few of its rows only. */
int hd_op_embed(hd_step *s, const hd_op *op, int32_t stage) {
    const hd_weight *m = &s->p->weights[op->w[0]];
    if (stage == 0 && s->p->queue) hd_queue_rows(s->p->queue, m->spans[0], m->offset, m->row_bytes, s->token, s->n);
    if (stage == 0 && hd_share_rows(s, embed_rows, s->n, m->cols) == HD_SHARE) return HD_SHARE;
    hd_written(s, op->out[0]);
    return HD_DONE;
}

enum { NORM_RMS = 0, NORM_L2 = 1 };

static void norm_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    int32_t pieces = op->i[0], width = op->i[1], stride = op->i[2], offset = op->i[3], kind = op->i[4];
    const float *weight = hd_vector(s, op, 0);
    for (int32_t r = item->r0; r < item->r1; r++)
        for (int32_t k = 0; k < pieces; k++) {
            const float *x = hd_row(s, op->in[0], r) + offset + (size_t)k * stride;
            float *out = hd_row(s, op->out[0], r) + offset + (size_t)k * stride;
            if (kind == NORM_RMS) {
                s->p->kernels->rms_norm(out, x, weight, width, op->f[0]);
            } else {
                /* x / max(|x|, eps), as torch.nn.functional.normalize */
                double sum = 0;
                for (int32_t j = 0; j < width; j++) sum += (double)x[j] * x[j];
                float length = (float)sqrt(sum), scale = 1.0f / (length < op->f[0] ? op->f[0] : length); /* NaN stays */
                for (int32_t j = 0; j < width; j++) out[j] = x[j] * scale;
            }
        }
}

/* i0 pieces of i1 floats, i2 apart, from i3 on; i4 kind; w0 weight of one piece; f0 epsilon. May be in place. */
int hd_op_norm(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage == 0 && hd_share_rows(s, norm_rows, hd_rows(s, op), (int64_t)op->i[0] * op->i[1]) == HD_SHARE) return HD_SHARE;
    hd_written(s, op->out[0]);
    return HD_DONE;
}

static void rotate_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    const hd_rope *rope = &s->p->ropes[op->i[0]];
    int32_t heads = op->i[1], stride = op->i[2], offset = op->i[3], halves = op->i[4], half = rope->n_rot / 2;
    for (int32_t r = item->r0; r < item->r1; r++)
        for (int32_t h = 0; h < heads; h++)
            s->p->kernels->rope(hd_row(s, op->in[0], r) + offset + (size_t)h * stride, rope->cosine + (size_t)r * half,
                                rope->sine + (size_t)r * half, rope->n_rot, halves);
}

/* Rotate i1 heads of in0, i2 floats apart, from i3 on, by rope i0; i4: NeoX order. In place. */
int hd_op_rope(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage == 0 && hd_share_rows(s, rotate_rows, s->n, (int64_t)op->i[1] * s->p->ropes[op->i[0]].n_rot * 2) == HD_SHARE)
        return HD_SHARE;
    hd_written(s, op->in[0]);
    return HD_DONE;
}

static void add_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    for (int32_t r = item->r0; r < item->r1; r++)
        s->p->kernels->add(hd_row(s, op->out[0], r), hd_row(s, op->in[0], r), hd_row(s, op->in[1], r),
                           s->p->buffers[op->out[0]].width);
}

int hd_op_add(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage == 0 && hd_share_rows(s, add_rows, hd_rows(s, op), s->p->buffers[op->out[0]].width) == HD_SHARE) return HD_SHARE;
    hd_written(s, op->out[0]);
    return HD_DONE;
}

static void activate_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    int32_t pieces = op->i[1], width = op->i[2];
    for (int32_t r = item->r0; r < item->r1; r++)
        for (int32_t k = 0; k < pieces; k++) {
            const float *gate = hd_row(s, op->in[0], r) + op->i[3] + (size_t)k * op->i[4];
            const float *up = op->in[1] < 0 ? gate : hd_row(s, op->in[1], r) + op->i[5] + (size_t)k * op->i[6];
            s->p->kernels->activate(op->i[0], op->f[0], op->f[1], hd_row(s, op->out[0], r) + (size_t)k * width, gate, up,
                                    width);
        }
}

/* out0 = activation i0 of in0, times in1; i1 pieces of i2 floats: of in0 from i3 on, i4 apart, of in1 from i5, i6 apart. */
int hd_op_activate(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage == 0 && hd_share_rows(s, activate_rows, hd_rows(s, op), 8 * (int64_t)op->i[1] * op->i[2]) == HD_SHARE)
        return HD_SHARE;
    hd_written(s, op->out[0]);
    return HD_DONE;
}

static void scale_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    int32_t width = s->p->buffers[op->out[0]].width;
    for (int32_t r = item->r0; r < item->r1; r++) {
        const float *x = hd_row(s, op->in[0], r);
        float *out = hd_row(s, op->out[0], r);
        for (int32_t k = 0, piece = width / op->i[0]; k < op->i[0]; k++) {
            float by = op->f[0] * (op->in[1] < 0 ? 1.0f : hd_row(s, op->in[1], r)[k]);
            for (int32_t j = k * piece; j < (k + 1) * piece; j++) out[j] = x[j] * by;
        }
    }
}

/* out0 = f0 * in0; each of its i0 equal pieces times the float of in1 that is its own, where in1 is given. */
int hd_op_scale(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage == 0 && hd_share_rows(s, scale_rows, hd_rows(s, op), s->p->buffers[op->out[0]].width) == HD_SHARE)
        return HD_SHARE;
    hd_written(s, op->out[0]);
    return HD_DONE;
}

/* out0 = the rows of in0 that want logits. */
int hd_op_select(hd_step *s, const hd_op *op, int32_t stage) {
    (void)stage;
    for (int32_t k = 0; k < s->n_selected; k++)
        memcpy(hd_row(s, op->out[0], k), hd_row(s, op->in[0], s->selected[k]),
               sizeof(float) * (size_t)s->p->buffers[op->out[0]].width);
    hd_written(s, op->out[0]);
    return HD_DONE;
}

static void copy_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    for (int32_t r = item->r0; r < item->r1; r++)
        for (int32_t k = 0; k < op->i[0]; k++)
            memcpy(hd_row(s, op->out[0], r) + op->i[4] + (size_t)k * op->i[5],
                   hd_row(s, op->in[0], r) + op->i[2] + (size_t)k * op->i[3], sizeof(float) * (size_t)op->i[1]);
}

/* i0 pieces of i1 floats: from in0 at i2, i3 apart, to out0 at i4, i5 apart. */
int hd_op_copy(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage == 0 && hd_share_rows(s, copy_rows, hd_rows(s, op), (int64_t)op->i[0] * op->i[1]) == HD_SHARE) return HD_SHARE;
    hd_written(s, op->out[0]);
    return HD_DONE;
}
