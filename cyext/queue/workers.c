/* Owns the populate workers: what each does next, how it reads, what follows; their start and end. */
#define _GNU_SOURCE
#include "state.h"

#include <math.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void sleep_until(pthread_cond_t *cond, pthread_mutex_t *lock, double when) {
    struct timespec t = {(time_t)when, (long)((when - floor(when)) * 1e9)};
    pthread_cond_timedwait(cond, lock, &t);
}

/* Under the lock. The best job for a worker; *when is set to the time at which the brake allows the next. */
static int choose(hd_queue *q, const worker *w, job *j, double *when) {
    *when = 0;
    /* Two sets of threads: a demand never stands behind a sweep, nor is it read at the sweep's low priority. */
    int single = q->n_workers == 1;
    int first = single || w->waited_for ? HD_DEMAND : HD_LOOKAHEAD, last = single || !w->waited_for ? HD_SWEEP : HD_ROUTED;
    for (int c = first; c <= last; c++) {
        /* Pause and brake hold what nobody has taken. What was handed over is part of a job that was. */
        if (hdq_handed_over(q, w->node, (enum hd_class)c, j)) return 1;
        if (q->paused >> c & 1) continue;
        if (c >= HD_CURSOR && q->rate > 0 && hdq_now() < q->next_background) {
            *when = q->next_background;
            continue;
        }
        if (hdq_find(q, w->node, (enum hd_class)c, j)) return 1;
    }
    return 0;
}

/* Under the lock. What became of a span's bytes, when the last of its pieces has come back. */
static void settle(hd_queue *q, int32_t s, enum hd_class cls) {
    uint8_t fate = q->fate[s];
    q->fate[s] = FINE;
    if (fate == BROKEN) {
        q->again[s] = 0;
        q->error_time[s] = hdq_now();
        q->issued[s] = 0;
        hdq_drop_slot(q, s);
        hdq_become(q, s, HD_FAILED);
    } else if (fate == UNTRIED) {
        hdq_give_up(q, s);
        if (hdq_enqueue(q, cls, s)) pthread_cond_broadcast(&q->work);
    } else if (q->issued[s] >= q->spans->nbytes[s]) {
        q->total[cls].spans++;
        q->issued[s] = 0;
        if (q->arena && hd_arena_has(q->arena, s)) atomic_store(&q->spans->at[s], hd_arena_at(q->arena, s));
        hdq_become(q, s, HD_READY);
    } else if (q->cls[s] == NOWHERE) { /* cancelled half-way */
        hdq_give_up(q, s);
    }
}

/* Under the lock. */
static void finish(hd_queue *q, const job *j, const hd_populated *got, int error, double seconds) {
    hd_class_counts *total = &q->total[j->cls];
    total->read += got->read;
    total->cached += got->cached;
    total->seconds += seconds;
    hdq_in_flight(q, j, -1);
    for (int32_t i = 0; i < j->n; i++) {
        int32_t s = j->span[i];
        uint64_t begin = q->offset[s], end = begin + q->spans->nbytes[s];
        /* Of merged spans, those before the failing byte are sound: hd_populate works upwards. Those in pages behind it
         * have not been tried: again, without the failing one. A span fails when all its pieces are back, not before:
         * while one is read its slot is taken. */
        if (error && got->failed_at < end && q->fate[s] != BROKEN) {
            q->fate[s] = got->failed_at + PAGE <= begin ? UNTRIED : BROKEN;
            if (q->fate[s] == BROKEN) {
                total->failed++;
                q->error[s] = error;
                q->error_at[s] = got->failed_at;
                if (q->cls[s] != NOWHERE) hdq_leave(q, s);
                q->issued[s] = q->spans->nbytes[s]; /* no more of it */
            }
        }
        if (!q->busy[s]) settle(q, s, j->cls);
    }
    pthread_cond_broadcast(&q->done);
}

/* A worker runs for microseconds between two reads, and the disk idles until it does: ask for short slices, which earn an
 * early turn beside threads that compute without end (EEVDF, Linux 6.12; older kernels ignore it). */
static void ask_for_short_slices(void) {
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } wish = {.size = sizeof wish, .nice = getpriority(PRIO_PROCESS, 0), .runtime = 100000 /* ns */};
    syscall(SYS_sched_setattr, 0, &wish, 0);
}

static void settle_in(const worker *w) {
    hd_queue *q = w->q;
    ask_for_short_slices();
    if (q->cpus) sched_setaffinity(0, q->cpus_bytes, q->cpus[w->node]);
    if (q->memory && q->memory[w->node] >= 0) {
        /* Pages of a file go where the reading thread's policy says; mbind on the mapping is ignored. */
        if (q->memory[w->node] < 64) hd_thread_policy(HD_POLICY_PREFERRED, 1ULL << q->memory[w->node]);
    }
    if (q->interleave) hd_thread_policy(HD_POLICY_INTERLEAVE, q->interleave);
    if (!w->waited_for && q->n_workers > 1) {
        pid_t self = (pid_t)syscall(SYS_gettid);
        setpriority(PRIO_PROCESS, (id_t)self, getpriority(PRIO_PROCESS, (id_t)self) + q->nice);
        syscall(SYS_ioprio_set, 1 /* process */, self, 2 << 13 | 6 /* best effort, low */);
    }
}

static void *work(void *argument) {
    worker *w = argument;
    hd_queue *q = w->q;
    job j;
    settle_in(w);
    pthread_mutex_lock(&q->lock);
    while (!q->closing) {
        double when;
        if (!choose(q, w, &j, &when)) {
            if (when > 0)
                sleep_until(&q->work, &q->lock, when);
            else
                pthread_cond_wait(&q->work, &q->lock);
            continue;
        }
        float cover = q->cover[j.cls];
        int apart = hdq_take_slots(q, &j);
        pthread_mutex_unlock(&q->lock);
        hd_populated got;
        double start = hdq_now();
        int error = apart ? hdq_read_apart(q, &j, cover, &got)
                          : hd_populate(q->mapping, j.file, j.begin, j.end - j.begin, cover, &got);
        uint64_t wrong = 0, left = 0;
        if (!error && j.owner >= 0 && q->memory && q->memory[j.owner] >= 0) {
            hd_populated again;
            error = hd_settle(q->mapping, j.file, j.begin, j.end, q->memory[j.owner], &wrong, &left, &again);
            got.read += again.read;
            got.failed_at = again.failed_at;
        }
        double end = hdq_now();
        pthread_mutex_lock(&q->lock);
        q->wrong += wrong;
        q->left += left;
        if (j.cls >= HD_CURSOR && q->rate > 0) {
            double due = q->next_background > start ? q->next_background : start;
            q->next_background = due + (double)got.read / q->rate;
        }
        finish(q, &j, &got, error, end - start);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

hd_queue *hd_queue_new(hd_spans *spans, const hd_mapping *mapping, const int32_t *file, const uint64_t *offset,
                       const hd_queue_options *o) {
    size_t n = (size_t)spans->n, nodes = (size_t)(o->nodes > 0 ? o->nodes : 1);
    hd_queue *q = calloc(1, sizeof *q);
    if (!q) return NULL;
    q->spans = spans;
    q->mapping = mapping;
    q->file = file;
    q->offset = offset;
    q->node = o->node;
    q->interleave = o->interleave;
    q->nodes = (int32_t)nodes;
    q->n_waited_for = o->workers;
    q->n_workers = o->workers > 1 ? o->workers + (o->background > 0 ? o->background : o->workers) : 1;
    q->piece = o->piece < PAGE ? PAGE : o->piece > 2 * HD_HUGE ? 2 * HD_HUGE : o->piece / PAGE * PAGE;
    q->nice = o->nice;
    q->layer = -1;
    q->window = 1;
    for (size_t i = 0; i < n; i++)
        if (spans->layer[i] >= q->layers) q->layers = spans->layer[i] + 1;
    /* Whoever picks single experts wants those and no neighbours; whoever reads on and on wants whole blocks. */
    q->cover[HD_DEMAND] = q->cover[HD_ROUTED] = q->cover[HD_LOOKAHEAD] = 0.75f;
    pthread_mutex_init(&q->lock, NULL);
    pthread_mutex_init(&q->placing, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&q->work, &attr);
    pthread_cond_init(&q->done, &attr);
    pthread_condattr_destroy(&attr);
    q->waiting = calloc(nodes, sizeof *q->waiting);
    q->cursor = calloc(nodes, sizeof *q->cursor);
    q->handed = calloc(nodes, sizeof *q->handed);
    q->cls = malloc(n + 1);
    q->parked = malloc(n + 1);
    q->busy = calloc(n + 1, sizeof *q->busy);
    q->issued = calloc(n + 1, sizeof *q->issued);
    q->error = calloc(n + 1, sizeof *q->error);
    q->error_at = calloc(n + 1, sizeof *q->error_at);
    q->error_time = calloc(n + 1, sizeof *q->error_time);
    q->again = calloc(n + 1, sizeof *q->again);
    q->fate = calloc(n + 1, sizeof *q->fate);
    q->waiting_parts = calloc(n + 1, sizeof *q->waiting_parts);
    q->workers = calloc(nodes * (size_t)q->n_workers, sizeof *q->workers);
    int error = !q->waiting || !q->cursor || !q->handed || !q->cls || !q->parked || !q->busy || !q->issued || !q->error ||
                !q->error_at || !q->error_time || !q->again || !q->fate || !q->waiting_parts || !q->workers ? ENOMEM : 0;
    if (!error) {
        memset(q->cls, NOWHERE, n + 1);
        memset(q->parked, NOWHERE, n + 1);
    }
    if (!error && o->cpus && o->n_cpus > 0) {
        q->cpus = calloc(nodes, sizeof *q->cpus);
        q->cpus_bytes = CPU_ALLOC_SIZE(o->n_cpus);
        for (size_t k = 0; k < nodes && q->cpus && !error; k++) {
            if (!(q->cpus[k] = CPU_ALLOC(o->n_cpus))) error = ENOMEM;
            if (error) break;
            CPU_ZERO_S(q->cpus_bytes, q->cpus[k]);
            for (int32_t c = 0; c < o->n_cpus; c++)
                if (o->cpus[k * (size_t)o->n_cpus + (size_t)c]) CPU_SET_S(c, q->cpus_bytes, q->cpus[k]);
        }
        if (!q->cpus) error = ENOMEM;
    }
    if (!error && o->memory) {
        q->memory = malloc(nodes * sizeof *q->memory);
        if (q->memory)
            memcpy(q->memory, o->memory, nodes * sizeof *q->memory);
        else
            error = ENOMEM;
    }
    for (int32_t i = 0; i < q->nodes * q->n_workers && !error; i++) {
        q->workers[i] = (worker){.q = q, .node = i / q->n_workers,
                                 .waited_for = q->n_workers > 1 && i % q->n_workers < q->n_waited_for};
        error = pthread_create(&q->workers[i].thread, NULL, work, &q->workers[i]);
        if (!error) {
            char name[16] = "hd-populate";
            pthread_setname_np(q->workers[i].thread, name);
            q->started++;
        }
    }
    if (error) {
        hd_queue_free(q);
        errno = error;
        return NULL;
    }
    return q;
}

/* The table outlives the queue: nobody loads any more, and what lay in the arena lies nowhere. */
static void leave_behind(hd_queue *q, int32_t span) {
    if (q->arena && hd_arena_has(q->arena, span)) {
        atomic_store(&q->spans->at[span], q->spans->home[span]);
        atomic_store(&q->spans->state[span], HD_ABSENT);
    }
    if (hdq_state(q, span) == HD_LOADING) atomic_store(&q->spans->state[span], HD_ABSENT);
}

void hd_queue_free(hd_queue *q) {
    if (!q) return;
    pthread_mutex_lock(&q->lock);
    q->closing = 1;
    pthread_cond_broadcast(&q->work);
    pthread_cond_broadcast(&q->done);
    pthread_mutex_unlock(&q->lock);
    for (int32_t i = 0; i < q->started; i++) pthread_join(q->workers[i].thread, NULL);
    for (int32_t i = 0; q->started && i < q->spans->n; i++) leave_behind(q, i);
    for (int32_t k = 0; k < q->nodes; k++) {
        for (int c = 0; q->waiting && c < HD_CLASSES; c++) free(q->waiting[k][c].item);
        for (int c = 0; q->handed && c < HD_CLASSES; c++) free(q->handed[k][c].item);
        if (q->cursor) {
            free(q->cursor[k].item);
            free(q->cursor[k].begin);
            free(q->cursor[k].at);
        }
        if (q->cpus && q->cpus[k]) CPU_FREE(q->cpus[k]);
    }
    free(q->waiting);
    free(q->handed);
    free(q->cursor);
    free(q->cls);
    free(q->parked);
    free(q->busy);
    free(q->issued);
    free(q->error);
    free(q->error_at);
    free(q->error_time);
    free(q->again);
    free(q->fate);
    free(q->waiting_parts);
    free(q->workers);
    hd_arena_free(q->arena);
    free(q->victim);
    free(q->cpus);
    free(q->memory);
    pthread_cond_destroy(&q->work);
    pthread_cond_destroy(&q->done);
    pthread_mutex_destroy(&q->lock);
    pthread_mutex_destroy(&q->placing);
    free(q);
}

int32_t hd_queue_wait_any(hd_queue *q, const int32_t *spans, int32_t n, const _Atomic int32_t *stop) {
    int32_t found = -1;
    pthread_mutex_lock(&q->lock);
    for (;;) {
        int any = 0;
        for (int32_t i = 0; i < n && found < 0; i++) {
            uint8_t state = hdq_state(q, spans[i]);
            if (state == HD_READY || state == HD_FAILED) found = i;
        }
        if (found >= 0 || q->closing || (stop && atomic_load(stop))) break;
        /* Again each time round: an eviction that was under way or a cancelled class may have dropped them. */
        for (int32_t i = 0; i < n; i++) any |= hdq_enqueue(q, HD_DEMAND, spans[i]);
        if (any) pthread_cond_broadcast(&q->work);
        sleep_until(&q->done, &q->lock, hdq_now() + 0.02);
    }
    pthread_mutex_unlock(&q->lock);
    return found;
}

void hd_queue_rows(hd_queue *q, int32_t span, uint64_t offset, uint64_t row_bytes, const int32_t *rows, int32_t n) {
    if (hdq_state(q, span) == HD_READY) return;
    for (int32_t i = 0; i < n; i++) {
        uint64_t begin = q->offset[span] + offset + (uint64_t)rows[i] * row_bytes;
        hd_read_ahead(q->mapping, q->file[span], begin, begin + row_bytes);
    }
}

int hd_queue_error(hd_queue *q, int32_t span, uint64_t *file_offset) {
    pthread_mutex_lock(&q->lock);
    int error = hdq_state(q, span) == HD_FAILED ? q->error[span] : 0;
    if (file_offset) *file_offset = q->error_at[span];
    pthread_mutex_unlock(&q->lock);
    return error;
}

void hd_queue_pause(hd_queue *q, uint32_t classes) {
    pthread_mutex_lock(&q->lock);
    q->paused = classes;
    pthread_cond_broadcast(&q->work);
    pthread_mutex_unlock(&q->lock);
}

void hd_queue_rate(hd_queue *q, double bytes_per_second) {
    pthread_mutex_lock(&q->lock);
    if (q->rate != bytes_per_second) { /* told again, it must not let another piece through */
        q->rate = bytes_per_second;
        q->next_background = 0;
        pthread_cond_broadcast(&q->work);
    }
    pthread_mutex_unlock(&q->lock);
}

void hd_queue_place(hd_queue *q, const hd_places *places) {
    pthread_mutex_lock(&q->placing);
    pthread_mutex_lock(&q->lock);
    q->places = places ? *places : (hd_places){0};
    pthread_mutex_unlock(&q->lock);
    pthread_mutex_unlock(&q->placing);
}

void hd_queue_settled(hd_queue *q, uint64_t *wrong, uint64_t *left) {
    pthread_mutex_lock(&q->lock);
    *wrong = q->wrong;
    *left = q->left;
    pthread_mutex_unlock(&q->lock);
}

void hd_queue_cover(hd_queue *q, enum hd_class cls, float cover) {
    pthread_mutex_lock(&q->lock);
    q->cover[cls] = cover;
    pthread_mutex_unlock(&q->lock);
}

void hd_queue_wake(hd_queue *q) {
    pthread_mutex_lock(&q->lock);
    pthread_cond_broadcast(&q->done);
    pthread_mutex_unlock(&q->lock);
}

void hd_queue_counts(hd_queue *q, hd_class_counts counts[HD_CLASSES], int64_t waiting[HD_CLASSES],
                     int32_t in_flight[HD_CLASSES]) {
    pthread_mutex_lock(&q->lock);
    memcpy(counts, q->total, sizeof q->total);
    memcpy(waiting, q->count, sizeof q->count);
    waiting[HD_CURSOR] += q->planned;
    memcpy(in_flight, q->in_flight, sizeof q->in_flight);
    pthread_mutex_unlock(&q->lock);
}

int hd_queue_drain(hd_queue *q, enum hd_class cls, double seconds) {
    double until = hdq_now() + seconds;
    pthread_mutex_lock(&q->lock);
    int empty;
    while (!(empty = q->count[cls] == 0 && q->in_flight[cls] == 0 && (cls != HD_CURSOR || q->planned == 0)) &&
           !q->closing && hdq_now() < until)
        sleep_until(&q->done, &q->lock, until);
    pthread_mutex_unlock(&q->lock);
    return empty;
}
