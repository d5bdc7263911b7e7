/* Owns who reads what where pages have owners: a job is divided, and the other nodes' workers are handed their parts, which
 * rise when a span of theirs does. */
#include "state.h"

/* Room for one more job; 0 when out of memory. */
static int room_for(handed *h) {
    if (h->head == h->tail) h->head = h->tail = 0;
    if (h->tail < h->room) return 1;
    if (h->head) {
        memmove(h->item, h->item + h->head, sizeof(job) * (size_t)(h->tail - h->head));
        h->tail -= h->head;
        h->head = 0;
        return 1;
    }
    int64_t room = h->room ? 2 * h->room : 16;
    job *item = realloc(h->item, sizeof(job) * (size_t)room);
    if (!item) return 0;
    h->item = item;
    h->room = room;
    return 1;
}

/* As much as its workers hold in their hands may wait for a node in one of the background's classes. More would only hide
 * from pause, brake and cancel, which hold what nobody has taken. */
static int is_full(const hd_queue *q, const handed *h) {
    return h->bytes >= q->piece * (uint64_t)(q->n_workers - q->n_waited_for > 0 ? q->n_workers - q->n_waited_for : 1);
}

static void note(hd_queue *q, handed *h, const job *part, int sign) {
    uint64_t bytes = part->end - part->begin;
    h->bytes = sign > 0 ? h->bytes + bytes : h->bytes - bytes;
    for (int32_t i = 0; i < part->n; i++) q->waiting_parts[part->span[i]] += (uint32_t)sign;
}

/* [begin, end) of a job, with the spans that have bytes there: a span waits for its own parts only. */
static job part_of(const hd_queue *q, const job *whole, uint64_t begin, uint64_t end, int32_t owner) {
    job part = {.file = whole->file, .begin = begin, .end = end, .cls = whole->cls, .owner = owner};
    for (int32_t i = 0; i < whole->n; i++) {
        int32_t s = whole->span[i];
        if (q->offset[s] < end && q->offset[s] + q->spans->nbytes[s] > begin) part.span[part.n++] = s;
    }
    return part;
}

/* Under the lock. Divide a job by owner: our part stays in *j, the others' parts go to their workers. 0: nothing is ours. */
static int divide(hd_queue *q, int32_t node, job *j) {
    job whole = *j;
    int ours = 0;
    uint64_t begin = whole.begin / PAGE * PAGE, end = (whole.end + PAGE - 1) / PAGE * PAGE, stop;
    j->owner = -1;
    if (!q->places.files || q->arena) return 1; /* there is an arena only where there is one node */
    if (end > q->mapping->size[whole.file]) end = q->mapping->size[whole.file];
    hdq_in_flight(q, &whole, -1);
    for (uint64_t at = begin; at < end; at = stop) {
        int32_t owner = hd_places_at(&q->places, whole.file, at, &stop);
        if (owner >= q->nodes) owner = -1;
        if (stop > end) stop = end;
        job part = part_of(q, &whole, at, stop, owner);
        if (!part.n) continue; /* between two spans */
        int32_t to = owner < 0 ? node : owner;
        handed *h = &q->handed[to][whole.cls];
        if (!ours && to == node) {
            ours = 1;
            *j = part;
            continue;
        }
        if (!room_for(h)) {
            /* Better on a wrong node than not at all: the rest is ours. */
            *j = part_of(q, &whole, ours ? j->begin : at, end, -1);
            ours = 1;
            break;
        }
        h->item[h->tail++] = part;
        note(q, h, &part, 1);
        hdq_in_flight(q, &part, 1);
        if (to != node) q->elsewhere = 1;
    }
    if (ours) hdq_in_flight(q, j, 1);
    return ours;
}

/* Under the lock. A job of a class that was handed to this node; 0 if there is none. */
int hdq_handed_over(hd_queue *q, int32_t node, enum hd_class cls, job *j) {
    handed *h = &q->handed[node][cls];
    if (h->head == h->tail) return 0;
    int was_full = is_full(q, h);
    *j = h->item[h->head++];
    note(q, h, j, -1);
    /* The others' workers may have stopped for want of room. */
    if (was_full && !is_full(q, h)) pthread_cond_broadcast(&q->work);
    return 1;
}

/* Under the lock. A job for this node from a class that nobody has taken yet. */
int hdq_find(hd_queue *q, int32_t node, enum hd_class cls, job *j) {
    for (;;) {
        for (int32_t other = 0; cls >= HD_LOOKAHEAD && other < q->nodes; other++)
            if (other != node && is_full(q, &q->handed[other][cls])) return 0;
        if (!hdq_take(q, node, cls, j)) return 0;
        int ours = divide(q, node, j);
        if (q->elsewhere) {
            q->elsewhere = 0;
            pthread_cond_broadcast(&q->work);
        }
        if (ours) return 1;
    }
}

/* Under the lock. Parts of a span that wait in lower classes, on whatever node, move up; 1 if any did. Spans that share a
 * part with it come along. Without memory they stay, and are read in their turn. */
int hdq_raise(hd_queue *q, enum hd_class cls, int32_t span) {
    int raised = 0;
    for (int32_t node = 0; node < q->nodes; node++) {
        handed *to = &q->handed[node][cls];
        for (int c = cls + 1; c < HD_CLASSES; c++) {
            handed *from = &q->handed[node][c];
            int64_t kept = from->head;
            for (int64_t i = from->head; i < from->tail; i++) {
                job part = from->item[i];
                int has = 0;
                for (int32_t k = 0; k < part.n; k++) has |= part.span[k] == span;
                if (!has || !room_for(to)) {
                    from->item[kept++] = part;
                    continue;
                }
                note(q, from, &part, -1);
                hdq_in_flight(q, &part, -1);
                part.cls = cls;
                to->item[to->tail++] = part;
                note(q, to, &part, 1);
                hdq_in_flight(q, &part, 1);
                raised = 1;
            }
            from->tail = kept;
        }
    }
    if (raised) pthread_cond_broadcast(&q->done); /* a class may have become empty */
    return raised;
}
