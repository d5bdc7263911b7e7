/* Owns the order in which spans are read: five classes, the cursor's plan, what moves up. Reads nothing itself. */
#include "state.h"

static int push(ring *r, int32_t span) {
    if (r->tail == r->room) {
        if (r->head > r->room / 2) {
            memmove(r->item, r->item + r->head, sizeof(int32_t) * (size_t)(r->tail - r->head));
            r->tail -= r->head;
            r->head = 0;
        } else {
            int64_t room = r->room ? 2 * r->room : 256;
            int32_t *item = realloc(r->item, sizeof(int32_t) * (size_t)room);
            if (!item) return ENOMEM;
            r->item = item;
            r->room = room;
        }
    }
    r->item[r->tail++] = span;
    return 0;
}

/* Under the lock. Move a span into a class, and what of it was handed over with it; 1 if a worker should look. */
int hdq_enqueue(hd_queue *q, enum hd_class cls, int32_t span) {
    uint8_t state = hdq_state(q, span);
    if (state == HD_READY) return 0;
    /* Whoever asks may ask higher than those whose parts still lie with another node's workers. */
    int raised = q->waiting_parts[span] ? hdq_raise(q, cls, span) : 0;
    if (q->cls[span] <= cls) return raised;
    if (state == HD_EVICTING) {
        if (cls < q->parked[span]) q->parked[span] = (uint8_t)cls;
        return 0;
    }
    if (state == HD_FAILED) {
        /* Whoever reads in the background is told when: a plan that is made anew is no reason to try again. */
        int waited_for = cls <= HD_ROUTED && hdq_now() - q->error_time[span] >= RETRY_SECONDS;
        if (!waited_for && !q->again[span]) return 0;
        q->again[span] = 0;
        hdq_become(q, span, HD_ABSENT);
    }
    if (q->spans->nbytes[span] == 0) {
        hdq_become(q, span, HD_READY);
        return 0;
    }
    if (q->issued[span] >= q->spans->nbytes[span]) return raised; /* its last pieces are in flight */
    if (push(&q->waiting[hdq_node_of(q, span)][cls], span)) return raised;
    if (q->cls[span] != NOWHERE) q->count[q->cls[span]]--;
    q->cls[span] = (uint8_t)cls;
    q->count[cls]++;
    return 1;
}

void hd_queue_submit(hd_queue *q, enum hd_class cls, const int32_t *spans, int32_t n) {
    int any = 0;
    pthread_mutex_lock(&q->lock);
    for (int32_t i = 0; i < n; i++)
        if (spans[i] >= 0 && spans[i] < q->spans->n) any |= hdq_enqueue(q, cls, spans[i]);
    if (any) pthread_cond_broadcast(&q->work);
    pthread_mutex_unlock(&q->lock);
}

void hd_queue_retry(hd_queue *q, const int32_t *spans, int32_t n) {
    pthread_mutex_lock(&q->lock);
    for (int32_t i = 0; i < n; i++) q->again[spans[i]] = hdq_state(q, spans[i]) == HD_FAILED;
    pthread_mutex_unlock(&q->lock);
}

void hd_queue_cancel(hd_queue *q, enum hd_class cls) {
    pthread_mutex_lock(&q->lock);
    for (int32_t node = 0; node < q->nodes; node++) {
        ring *r = &q->waiting[node][cls];
        for (int64_t i = r->head; i < r->tail; i++) {
            int32_t span = r->item[i];
            if (q->cls[span] != cls) continue;
            hdq_leave(q, span);
            /* What has been read of a big span stays; it is asked for again from its beginning, which costs a mapping.
             * With a piece in flight, whoever ends that sees that nobody wants the rest. */
            if (hdq_state(q, span) == HD_LOADING && q->busy[span] == 0) hdq_give_up(q, span);
        }
        r->head = r->tail = 0;
        if (cls == HD_CURSOR && q->cursor[node].item) {
            plan *p = &q->cursor[node];
            for (int32_t l = 0; l <= q->layers; l++) p->at[l] = p->begin[l + 1];
        }
    }
    if (cls == HD_CURSOR) q->planned = 0;
    for (int32_t span = 0; span < q->spans->n; span++)
        if (q->parked[span] == cls) q->parked[span] = NOWHERE;
    pthread_cond_broadcast(&q->done);
    pthread_mutex_unlock(&q->lock);
}

void hd_queue_progress(hd_queue *q, int32_t layer) {
    pthread_mutex_lock(&q->lock);
    if (q->layer != layer) {
        q->layer = layer;
        if (q->planned) pthread_cond_broadcast(&q->work);
    }
    pthread_mutex_unlock(&q->lock);
}

/* Under the lock. The next planned span that the window admits and nobody has taken, or -1; taken if `take`. */
int32_t hdq_next_planned(hd_queue *q, int32_t node, int take) {
    plan *p = &q->cursor[node];
    if (!p->item) return -1;
    int32_t from = q->layer < 0 ? 0 : q->layer, to = q->layer + q->window;
    for (int32_t l = -1; l <= to && l < q->layers; l = l < 0 ? from : l + 1) {
        int32_t *at = &p->at[l + 1];
        while (*at < p->begin[l + 2]) {
            int32_t span = p->item[*at];
            uint8_t state = hdq_state(q, span);
            if (state == HD_ABSENT && q->spans->nbytes[span] == 0) hdq_become(q, span, HD_READY);
            /* One that is being given back is not: a step that needs it asks. */
            int wanted = (state == HD_ABSENT || state == HD_LOADING) && q->cls[span] >= HD_CURSOR &&
                         q->issued[span] < q->spans->nbytes[span];
            if (wanted && !take) return span;
            (*at)++;
            q->planned--;
            if (wanted) return span;
        }
    }
    return -1;
}

int hd_queue_idle(hd_queue *q) {
    pthread_mutex_lock(&q->lock);
    int idle = 1;
    for (int c = 0; c < HD_SWEEP; c++) idle &= q->count[c] == 0 && q->in_flight[c] == 0;
    for (int32_t node = 0; node < q->nodes && idle; node++) idle = hdq_next_planned(q, node, 0) < 0;
    pthread_mutex_unlock(&q->lock);
    return idle;
}

/* Under the lock. The first span of a class that is still wanted there, without taking it; -1 if none. */
static int32_t head_of(hd_queue *q, int32_t node, enum hd_class cls) {
    ring *r = &q->waiting[node][cls];
    while (r->head < r->tail) {
        int32_t span = r->item[r->head];
        if (q->cls[span] == cls) {
            assert(q->issued[span] < q->spans->nbytes[span]);
            assert(hdq_state(q, span) == HD_ABSENT || hdq_state(q, span) == HD_LOADING);
            return span;
        }
        r->head++; /* it has moved up since, or was cancelled */
    }
    r->head = r->tail = 0;
    return -1;
}

void hdq_leave(hd_queue *q, int32_t span) {
    q->count[q->cls[span]]--;
    q->cls[span] = NOWHERE;
}

/* Under the lock. Fill a job from a class; 0 if the class has nothing. */
int hdq_take(hd_queue *q, int32_t node, enum hd_class cls, job *j) {
    const uint64_t *nbytes = q->spans->nbytes;
    int32_t span = head_of(q, node, cls);
    if (span < 0 && cls == HD_CURSOR) {
        span = hdq_next_planned(q, node, 1);
        if (span < 0 || push(&q->waiting[node][cls], span)) return 0;
        if (q->cls[span] != NOWHERE) q->count[q->cls[span]]--;
        q->cls[span] = (uint8_t)cls;
        q->count[cls]++;
    }
    if (span < 0) return 0;
    ring *r = &q->waiting[node][cls];
    j->cls = cls;
    j->n = 1;
    j->span[0] = span;
    j->file = q->file[span];
    j->begin = q->offset[span] + q->issued[span];
    j->end = q->offset[span] + nbytes[span];
    if (j->end - j->begin > q->piece) {
        /* Cut at 2 MiB boundaries of the file, which are those of the mapping: two pieces never share a block, nor, where
         * pieces are smaller, a page. */
        uint64_t cut = (j->begin + q->piece) / HD_HUGE * HD_HUGE;
        j->end = cut > j->begin ? cut : (j->begin + q->piece) / PAGE * PAGE;
    } else {
        hdq_leave(q, span);
        r->head++;
        /* Neighbours in the file that were asked for together are one read. */
        while (j->n < MERGE) {
            int32_t next = head_of(q, node, cls);
            if (next < 0 && cls == HD_CURSOR) next = hdq_next_planned(q, node, 0);
            if (next < 0 || q->file[next] != j->file || q->issued[next] || hdq_state(q, next) == HD_LOADING) break;
            uint64_t at = q->offset[next];
            if (at < j->end || at - j->end >= PAGE || at + nbytes[next] - j->begin > q->piece) break;
            if (q->cls[next] == cls) {
                hdq_leave(q, next);
                r->head++;
            } else {
                hdq_next_planned(q, node, 1);
                if (q->cls[next] != NOWHERE) hdq_leave(q, next);
            }
            j->span[j->n++] = next;
            j->end = at + nbytes[next];
        }
    }
    for (int32_t i = 0; i < j->n; i++) {
        int32_t s = j->span[i];
        q->issued[s] = j->n > 1 ? nbytes[s] : j->end - q->offset[s];
        hdq_become(q, s, HD_LOADING);
    }
    hdq_in_flight(q, j, 1);
    return 1;
}

static void free_plans(plan *p, int32_t n) {
    for (int32_t i = 0; p && i < n; i++) {
        free(p[i].item);
        free(p[i].begin);
        free(p[i].at);
    }
}

/* Fill a node's plan: a counting sort by layer keeps the given order within one. */
static int lay_out(const hd_queue *q, plan *p, int32_t node, const int32_t *spans, const int32_t *of, int32_t n) {
    const int32_t *layer = q->spans->layer;
    size_t layers = (size_t)q->layers;
    int32_t ours = 0;
    for (int32_t i = 0; i < n; i++) ours += of[i] == node;
    p->item = malloc(sizeof(int32_t) * (size_t)(ours + 1));
    p->begin = calloc(layers + 2, sizeof(int32_t));
    p->at = calloc(layers + 1, sizeof(int32_t));
    if (!p->item || !p->begin || !p->at) return ENOMEM;
    for (int32_t i = 0; i < n; i++)
        if (of[i] == node) p->begin[layer[spans[i]] + 2]++;
    for (size_t l = 0; l <= layers; l++) p->begin[l + 1] += p->begin[l];
    memcpy(p->at, p->begin, sizeof(int32_t) * (layers + 1));
    for (int32_t i = 0; i < n; i++)
        if (of[i] == node) p->item[p->at[layer[spans[i]] + 1]++] = spans[i];
    memcpy(p->at, p->begin, sizeof(int32_t) * (layers + 1));
    return 0;
}

int hd_queue_plan(hd_queue *q, const int32_t *spans, int32_t n, int32_t window) {
    plan *fresh = calloc((size_t)q->nodes, sizeof *fresh), *old = calloc((size_t)q->nodes, sizeof *old);
    int32_t *of = malloc(sizeof(int32_t) * (size_t)(n + 1));
    int error = !fresh || !old || !of ? ENOMEM : 0;
    /* Owners stay what they are from the first question to the exchange; a demand need not wait for the sorting. */
    pthread_mutex_lock(&q->placing);
    for (int32_t i = 0; i < n && !error; i++) of[i] = hdq_node_of(q, spans[i]);
    for (int32_t node = 0; node < q->nodes && !error; node++) error = lay_out(q, &fresh[node], node, spans, of, n);
    if (!error) {
        pthread_mutex_lock(&q->lock);
        q->planned = 0;
        for (int32_t node = 0; node < q->nodes; node++) {
            old[node] = q->cursor[node];
            q->cursor[node] = fresh[node];
            q->planned += fresh[node].begin[q->layers + 1];
        }
        q->window = window;
        pthread_cond_broadcast(&q->work);
        pthread_cond_broadcast(&q->done); /* it may be shorter than the one before */
        pthread_mutex_unlock(&q->lock);
    }
    pthread_mutex_unlock(&q->placing);
    free_plans(error ? fresh : old, q->nodes);
    free(fresh);
    free(old);
    free(of);
    return error;
}
