/* Owns how spans leave memory again: none that is read or asked for, and what the kernel took is noticed. */
#include "state.h"

int32_t hd_queue_evict(hd_queue *q, const int32_t *spans, int32_t n, uint64_t *freed) {
    int32_t taken = 0;
    uint64_t bytes = 0;
    for (int32_t i = 0; i < n;) {
        /* Neighbours go together: a page or a 2 MiB block that two of them share can only be freed whole. */
        int32_t run[256], count = 0;
        uint64_t begin = 0, end = 0;
        pthread_mutex_lock(&q->lock);
        for (; i < n && count < 256; i++) {
            int32_t s = spans[i];
            if (count && (q->file[s] != q->file[run[0]] || q->offset[s] < end || q->offset[s] - end >= PAGE)) break;
            uint8_t was = hdq_state(q, s);
            if ((was != HD_READY && was != HD_ABSENT && was != HD_FAILED) || q->cls[s] != NOWHERE ||
                !hdq_claim(q, s, (enum hd_span_state)was)) {
                if (count) break;
                continue;
            }
            if (q->arena && hd_arena_has(q->arena, s)) { /* its pages in the mapping may be cached besides */
                hdq_drop_slot(q, s);
                bytes += q->spans->nbytes[s];
            }
            if (!count) begin = q->offset[s];
            end = q->offset[s] + q->spans->nbytes[s];
            run[count++] = s;
        }
        pthread_mutex_unlock(&q->lock);
        if (!count) continue;
        uint64_t gone = 0;
        hd_evict(q->mapping, q->file[run[0]], begin, end - begin, &gone);
        bytes += gone;
        taken += count;
        pthread_mutex_lock(&q->lock);
        for (int32_t k = 0; k < count; k++) {
            int32_t s = run[k];
            uint8_t parked = q->parked[s];
            q->parked[s] = NOWHERE;
            hdq_become(q, s, HD_ABSENT);
            if (parked != NOWHERE && hdq_enqueue(q, (enum hd_class)parked, s)) pthread_cond_broadcast(&q->work);
        }
        pthread_mutex_unlock(&q->lock);
    }
    if (freed) *freed = bytes;
    return taken;
}

int32_t hd_queue_forget(hd_queue *q, const int32_t *spans, int32_t n) {
    int32_t forgotten = 0;
    pthread_mutex_lock(&q->lock);
    for (int32_t i = 0; i < n; i++) {
        int32_t s = spans[i];
        if (q->arena && hd_arena_has(q->arena, s)) continue; /* the kernel takes nothing from there */
        if (!hdq_claim(q, s, HD_READY)) continue;
        hdq_become(q, s, HD_ABSENT);
        forgotten++;
    }
    pthread_mutex_unlock(&q->lock);
    return forgotten;
}
