/* Keys and values into the pool, and attention over them. */
#include "step.h"
#include <string.h>

#define OP(s) (&(s)->p->ops[(s)->pc])

static uint16_t *stream_at(const hd_step *s, int32_t stream, int32_t session, int32_t block, int32_t head) {
    const hd_stream *st = &s->p->streams[stream];
    return (uint16_t *)(s->p->pool + (size_t)s->sessions[session].blocks[block] * s->p->block_bytes + st->offset) +
           (size_t)head * HD_KV_BLOCK * st->width;
}

static void store_rows(hd_step *s, hd_worker *w, const hd_item *item) {
    (void)w;
    const hd_op *op = OP(s);
    int32_t stream = op->i[0], heads = op->i[1], width = op->i[2], offset = op->i[3], stride = op->i[4], at = op->i[5];
    int32_t whole = s->p->streams[stream].width;
    for (int32_t r = item->r0; r < item->r1; r++) {
        int32_t block = s->pos[r] / HD_KV_BLOCK, within = s->pos[r] % HD_KV_BLOCK;
        for (int32_t h = 0; h < heads; h++)
            s->p->kernels->to_f16(stream_at(s, stream, s->session[r], block, h) + (size_t)within * whole + at,
                                  hd_row(s, op->in[0], r) + offset + (size_t)h * stride, width);
    }
}

/* Write i1 heads of i2 floats of in0 (from i3, i4 apart) into stream i0 at the row's position, from element i5 on. */
int hd_op_store(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage == 0 && hd_share_rows(s, store_rows, s->n, (int64_t)op->i[1] * op->i[2]) == HD_SHARE) return HD_SHARE;
    return HD_DONE;
}

/* How many queries one item may have: enough to reuse a key block that is in cache, few enough to share out. */
#define QUERIES 128

static void attend_item(hd_step *s, hd_worker *w, const hd_item *item) {
    const hd_program *p = s->p;
    const hd_op *op = OP(s);
    int32_t heads = op->i[0], kv = op->i[1], dk = op->i[2], dv = op->i[3], window = op->i[4];
    int32_t group = heads / kv, parts = s->sub, part_heads = group / parts;
    int32_t row0 = item->what, rows = item->r0, kv_head = item->r1 / parts, part = item->r1 % parts;
    int32_t session = s->session[row0], first_head = kv_head * group + part * part_heads;
    int32_t blocks = s->pos[row0 + rows - 1] / HD_KV_BLOCK + 1;
    size_t head = (sizeof(void *) * 2 * ((size_t)rows + blocks) + 63) & ~(size_t)63;
    hd_attend a = {
        .rows = rows, .group = part_heads, .dk = dk, .dv = dv, .q_stride = (size_t)op->i[7], .out_stride = (size_t)dv,
        .pos = s->pos + row0, .k_stride = (size_t)p->streams[op->i[5]].width,
        .v_stride = (size_t)p->streams[op->i[6]].width, .scale = op->f[0], .softcap = op->f[1], .window = window,
        .sinks = op->w[0] < 0 ? NULL : hd_vector(s, op, 0) + first_head};
    uint8_t *scratch = hd_worker_scratch(w, head);
    /* The kernel's own need depends on nothing in the pointer arrays, so one allocation serves both. */
    size_t more = p->kernels->attend_scratch(&a);
    scratch = hd_worker_scratch(w, head + more);
    const float **q = (const float **)scratch;
    float **out = (float **)(q + rows);
    const uint16_t **k = (const uint16_t **)(out + rows), **v = k + blocks;
    for (int32_t r = 0; r < rows; r++) {
        q[r] = hd_row(s, op->in[0], row0 + r) + op->i[8] + (size_t)first_head * op->i[7];
        out[r] = hd_row(s, op->out[0], row0 + r) + (size_t)first_head * dv;
    }
    for (int32_t b = 0; b < blocks; b++) {
        k[b] = stream_at(s, op->i[5], session, b, kv_head);
        v[b] = stream_at(s, op->i[6], session, b, kv_head);
    }
    a.q = q;
    a.out = out;
    a.k = k;
    a.v = v;
    p->kernels->attend(&a, scratch + head);
}

/* out0[head][dv] = softmax(f0 * q k) v for i0 heads on i1 key heads, widths i2 and i3, window i4, streams i5 (keys) and
 * i6 (values), query heads i7 floats apart from i8 on; w0 sinks, f1 softcap. */
int hd_op_attend(hd_step *s, const hd_op *op, int32_t stage) {
    if (stage > 0) {
        hd_written(s, op->out[0]);
        return HD_DONE;
    }
    int32_t kv = op->i[1], group = op->i[0] / kv, each = QUERIES / group > 0 ? QUERIES / group : 1;
    int32_t tiles = 0;
    for (int32_t pass = 0; pass < 2; pass++) {
        int32_t parts = 1;
        int32_t teams = hd_teams_count(s->p->teams), ends[64];
        if (pass) {
            /* Few rows, many threads: divide the heads that share a key head as well. */
            int32_t threads = hd_teams_threads(s->p->teams);
            while ((tiles * kv * parts < threads || kv * parts < teams) && group % (2 * parts) == 0) parts *= 2;
            s->sub = parts;
            hd_items_clear(s, attend_item);
        }
        /* A team takes the heads whose keys lie on its node (State.reserve). */
        for (int32_t team = 0; team < (pass ? teams : 1); team++) {
            int64_t h0, h1;
            hd_teams_share(s->p->teams, team, kv * parts, &h0, &h1);
            /* Longest first: the last rows of a prompt see the most keys. */
            for (int32_t end = s->n; end > 0;) {
                int32_t first = end - 1;
                while (first > 0 && s->session[first - 1] == s->session[end - 1] && end - first < each) first--;
                if (pass) {
                    for (int64_t h = h0; h < h1; h++)
                        if (hd_items_add(s, first, end - first, (int32_t)h)) return HD_FAIL;
                } else {
                    tiles++;
                }
                end = first;
            }
            if (pass) ends[team] = s->n_items;
        }
        if (pass) return hd_items_publish_by_team(s, ends);
    }
    return HD_FAIL;
}
