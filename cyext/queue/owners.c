/* Owns who reads what where pages have owners: a job is divided, and the other nodes' workers are handed their parts. */
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

/* Under the lock. Divide a job by owner: our part stays in *j, the others' parts go to their workers. 0: nothing is ours. */
static int divide(hd_queue *q, int32_t node, job *j) {
    job whole = *j;
    int ours = 0;
    uint64_t begin = whole.begin / PAGE * PAGE, end = (whole.end + PAGE - 1) / PAGE * PAGE, stop;
    j->owner = -1;
    if (!q->places.files) return 1;
    if (end > q->mapping->size[whole.file]) end = q->mapping->size[whole.file];
    for (uint64_t at = begin; at < end; at = stop) {
        job part = whole;
        part.owner = hd_places_at(&q->places, whole.file, at, &stop);
        if (stop > end) stop = end;
        part.begin = at;
        part.end = stop;
        int32_t to = part.owner < 0 || part.owner >= q->nodes ? node : part.owner;
        handed *h = &q->handed[to][whole.cls];
        if (!ours && to == node) {
            ours = 1;
            *j = part;
            continue;
        }
        if (!room_for(h)) {
            /* Better on a wrong node than not at all: the rest is ours. */
            part.end = end;
            part.owner = -1;
            if (ours) part.begin = j->begin;
            *j = part;
            return 1;
        }
        h->item[h->tail++] = part;
        q->in_flight[whole.cls]++;
        for (int32_t i = 0; i < whole.n; i++) q->busy[whole.span[i]]++;
        if (to != node) q->elsewhere = 1;
    }
    if (!ours) {
        q->in_flight[whole.cls]--;
        for (int32_t i = 0; i < whole.n; i++) q->busy[whole.span[i]]--;
    }
    return ours;
}

/* Under the lock. A job for this node from a class: one that was handed over, else a new one. */
int hdq_find(hd_queue *q, int32_t node, enum hd_class cls, job *j) {
    handed *h = &q->handed[node][cls];
    for (;;) {
        if (h->head < h->tail) {
            *j = h->item[h->head++];
            return 1;
        }
        if (!hdq_take(q, node, cls, j)) return 0;
        int ours = divide(q, node, j);
        if (q->elsewhere) {
            q->elsewhere = 0;
            pthread_cond_broadcast(&q->work);
        }
        if (ours) return 1;
    }
}
