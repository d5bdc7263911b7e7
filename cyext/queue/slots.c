/* Owns which spans are read into slots of the arena instead of the mapping. Memory and reads of the slots: arena.c. */
#include "state.h"

/* Under the lock. A slot goes back; whoever read the span there, or into it, must have gone. */
void hdq_drop_slot(hd_queue *q, int32_t span) {
    if (!q->arena || !hd_arena_has(q->arena, span)) return;
    assert(q->busy[span] == 0 && hdq_state(q, span) != HD_READY);
    atomic_store(&q->spans->at[span], q->spans->home[span]);
    hd_arena_put(q->arena, span);
    q->arena_used -= q->spans->nbytes[span];
}

/* Under the lock. Take the slot of the first victim of this size that nobody reads or wants. */
static int make_room(hd_queue *q, int32_t size) {
    for (int32_t *i = &q->next_victim[size]; *i < q->n_victims;) {
        int32_t s = q->victim[(*i)++];
        if (!hd_arena_has(q->arena, s) || hd_arena_size_of(q->arena, s) != size || q->cls[s] != NOWHERE) continue;
        if (!hdq_claim(q, s, HD_READY)) continue;
        hdq_drop_slot(q, s);
        hdq_become(q, s, HD_ABSENT);
        q->replaced++;
        return 1;
    }
    return 0;
}

/* Under the lock. Slots for a job's spans, as far as there are any. */
int hdq_take_slots(hd_queue *q, const job *j) {
    int any = 0;
    if (!q->arena) return 0;
    for (int32_t i = 0; i < j->n; i++) {
        int32_t s = j->span[i];
        if (hd_arena_has(q->arena, s)) {
            any = 1;
            continue;
        }
        /* One that is half populated in the mapping is finished there, as one that began in a slot is in its slot. */
        if (!(q->direct >> j->cls & 1) || !hd_arena_member(q->arena, s) || j->begin > q->offset[s]) continue;
        if (q->mapping_room >= (int64_t)q->spans->nbytes[s]) {
            q->mapping_room -= (int64_t)q->spans->nbytes[s];
            continue;
        }
        int got = hd_arena_take(q->arena, s);
        if (!got && make_room(q, hd_arena_size_of(q->arena, s))) got = hd_arena_take(q->arena, s);
        if (got) q->arena_used += q->spans->nbytes[s];
        else q->full++;
        any |= got;
    }
    return any;
}

/* Without the lock. Each span where it belongs: its slot, or the mapping. */
int hdq_read_apart(hd_queue *q, const job *j, float cover, hd_populated *got) {
    memset(got, 0, sizeof *got);
    for (int32_t i = 0; i < j->n; i++) {
        int32_t s = j->span[i];
        uint64_t begin = q->offset[s] > j->begin ? q->offset[s] : j->begin;
        uint64_t end = q->offset[s] + q->spans->nbytes[s] < j->end ? q->offset[s] + q->spans->nbytes[s] : j->end;
        int error;
        if (hd_arena_has(q->arena, s)) {
            error = hd_arena_read(q->arena, s, begin, end, &got->failed_at);
            if (!error) got->read += end - begin;
        } else {
            hd_populated one;
            error = hd_populate(q->mapping, j->file, begin, end - begin, cover, &one);
            got->read += one.read;
            got->cached += one.cached;
            got->failed_at = one.failed_at;
        }
        if (error) return error;
    }
    return 0;
}

int hd_queue_arena(hd_queue *q, const uint8_t *member, uint64_t bytes) {
    if (q->arena || q->nodes > 1 || q->spans->nodes > 1) return EBUSY;
    hd_arena *arena = hd_arena_new(q->mapping, q->spans->n, member, q->file, q->offset, q->spans->nbytes, bytes);
    if (!arena) return errno;
    pthread_mutex_lock(&q->lock);
    q->arena = arena;
    pthread_mutex_unlock(&q->lock);
    return 0;
}

int hd_queue_victims(hd_queue *q, const int32_t *spans, int32_t n) {
    int32_t *fresh = malloc(sizeof(int32_t) * (size_t)(n + 1));
    if (!fresh) return ENOMEM;
    memcpy(fresh, spans, sizeof(int32_t) * (size_t)n);
    pthread_mutex_lock(&q->lock);
    int32_t *old = q->victim;
    q->victim = fresh;
    q->n_victims = n;
    memset(q->next_victim, 0, sizeof q->next_victim);
    pthread_mutex_unlock(&q->lock);
    free(old);
    return 0;
}

void hd_queue_mapping_room(hd_queue *q, int64_t bytes) {
    pthread_mutex_lock(&q->lock);
    q->mapping_room = bytes;
    pthread_mutex_unlock(&q->lock);
}

uint64_t hd_queue_arena_limit(hd_queue *q, uint64_t bytes) {
    pthread_mutex_lock(&q->lock);
    uint64_t taken = q->arena ? hd_arena_limit(q->arena, bytes) : 0;
    pthread_mutex_unlock(&q->lock);
    return taken;
}

void hd_queue_arena_counts(hd_queue *q, hd_arena_counts *counts) {
    pthread_mutex_lock(&q->lock);
    *counts = (hd_arena_counts){0};
    if (q->arena)
        *counts = (hd_arena_counts){hd_arena_capacity(q->arena), hd_arena_taken(q->arena), q->arena_used, q->replaced, q->full};
    pthread_mutex_unlock(&q->lock);
}

void hd_queue_direct(hd_queue *q, uint32_t classes) {
    pthread_mutex_lock(&q->lock);
    q->direct = classes;
    pthread_mutex_unlock(&q->lock);
}

int32_t hd_queue_come_home(hd_queue *q, const int32_t *spans, int32_t n) {
    int32_t home = 0;
    pthread_mutex_lock(&q->lock);
    for (int32_t i = 0; q->arena && i < n; i++) {
        int32_t s = spans[i];
        /* A reader that looks in between asks us, and waits for the lock. */
        if (!hd_arena_has(q->arena, s) || !hdq_claim(q, s, HD_READY)) continue;
        hdq_drop_slot(q, s);
        hdq_become(q, s, HD_READY);
        home++;
    }
    pthread_cond_broadcast(&q->done);
    pthread_mutex_unlock(&q->lock);
    return home;
}
