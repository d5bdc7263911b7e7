/* Owns the populate workers and the order in which spans are read. Decides nothing about which span is worth it. */
#define _GNU_SOURCE
#include "populate_queue.h"
#include "arena.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE ((uint64_t)4096)
#define NOWHERE 255        /* class of a span that nobody has asked for */
#define MERGE 16           /* spans that one piece may hold */
#define RETRY_SECONDS 1.0  /* a failed span asked for again after this is tried again: disks recover */

typedef struct ring {      /* grows, never shrinks; entries whose span has moved to another class are skipped */
    int32_t *item;
    int64_t head, tail, room;
} ring;

typedef struct plan {
    int32_t *item;         /* by layer, the given order within one */
    int32_t *begin;        /* [layers + 2] layer -1 first */
    int32_t *at;           /* [layers + 1] next to be taken */
} plan;

/* What a worker does next: bytes of one file that belong to one or more whole spans, or to a part of one. */
typedef struct job {
    int32_t n, span[MERGE], file;
    uint64_t begin, end;
    enum hd_class cls;
    int32_t owner;         /* whose memory the pages belong in, -1: anybody's */
} job;

typedef struct handed {    /* jobs that another node's worker took, for this node's workers */
    job *item;
    int64_t head, tail, room;
} handed;

typedef struct worker {
    struct hd_queue *q;
    pthread_t thread;
    int32_t node, waited_for;  /* serves demand and routed only, at the process's own priority */
} worker;

struct hd_queue {
    hd_spans *spans;
    const hd_mapping *mapping;
    const int32_t *file, *node;
    const uint64_t *offset;
    uint64_t piece;
    int32_t nodes, n_workers, started, nice, layers, window, layer, closing;
    uint32_t paused;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    ring (*waiting)[HD_CLASSES];   /* [nodes] */
    plan *cursor;                  /* [nodes] */
    uint8_t *cls, *parked;         /* [n] class, NOWHERE; class to return to after an eviction, NOWHERE */
    uint16_t *busy;                /* [n] pieces in flight */
    uint64_t *issued;              /* [n] bytes handed to workers */
    int32_t *error;                /* [n] */
    uint64_t *error_at;            /* [n] */
    double *error_time;            /* [n] */
    int64_t count[HD_CLASSES];     /* spans waiting in the rings, each once */
    int64_t planned;               /* entries of all plans not taken yet */
    int32_t in_flight[HD_CLASSES];
    hd_class_counts total[HD_CLASSES];
    float cover[HD_CLASSES];
    double rate, next_background;
    hd_arena *arena;               /* or NULL */
    int32_t *victim, n_victims;    /* whose slots go first */
    int64_t mapping_room;
    int32_t next_victim[16];       /* per size of slot */
    uint64_t arena_used, replaced, full;
    worker *workers;
    cpu_set_t **cpus;              /* [nodes] or NULL */
    size_t cpus_bytes;
    int32_t *memory;               /* [nodes] or NULL */
    uint64_t interleave;
    hd_places places;              /* files 0: none */
    handed (*handed)[HD_CLASSES];  /* [nodes] */
    uint64_t wrong, left;          /* pages found on a wrong node; of them, those that stayed there */
    int32_t elsewhere;             /* something was handed over: wake the others */
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void sleep_until(pthread_cond_t *cond, pthread_mutex_t *lock, double when) {
    struct timespec t = {(time_t)when, (long)((when - floor(when)) * 1e9)};
    pthread_cond_timedwait(cond, lock, &t);
}

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

static int32_t node_of(const hd_queue *q, int32_t span) {
    uint64_t end;
    if (q->node) return q->node[span];
    int32_t owner = hd_places_at(&q->places, q->file[span], q->offset[span], &end);
    return owner < 0 ? 0 : owner;
}
static uint8_t state_of(const hd_queue *q, int32_t span) { return atomic_load(&q->spans->state[span]); }

/* Under the lock. Move a span into a class; 1 if a worker should look. */
static int enqueue(hd_queue *q, enum hd_class cls, int32_t span) {
    uint8_t state = state_of(q, span);
    if (state == HD_READY || q->cls[span] <= cls) return 0;
    if (state == HD_FAILED) {
        if (now() - q->error_time[span] < RETRY_SECONDS) return 0;
        q->issued[span] = 0;
        atomic_store(&q->spans->state[span], HD_ABSENT);
    }
    if (state == HD_EVICTING) {
        if (cls < q->parked[span]) q->parked[span] = (uint8_t)cls;
        return 0;
    }
    if (q->spans->nbytes[span] == 0) {
        atomic_store(&q->spans->state[span], HD_READY);
        return 0;
    }
    if (state == HD_LOADING && q->issued[span] >= q->spans->nbytes[span]) return 0; /* its last pieces are in flight */
    if (push(&q->waiting[node_of(q, span)][cls], span)) return 0;
    if (q->cls[span] != NOWHERE) q->count[q->cls[span]]--;
    q->cls[span] = (uint8_t)cls;
    q->count[cls]++;
    return 1;
}

void hd_queue_submit(hd_queue *q, enum hd_class cls, const int32_t *spans, int32_t n) {
    int any = 0;
    pthread_mutex_lock(&q->lock);
    for (int32_t i = 0; i < n; i++)
        if (spans[i] >= 0 && spans[i] < q->spans->n) any |= enqueue(q, cls, spans[i]);
    if (any) pthread_cond_broadcast(&q->work);
    pthread_mutex_unlock(&q->lock);
}

int32_t hd_queue_wait_any(hd_queue *q, const int32_t *spans, int32_t n, const _Atomic int32_t *stop) {
    int32_t found = -1;
    pthread_mutex_lock(&q->lock);
    for (;;) {
        int any = 0;
        for (int32_t i = 0; i < n && found < 0; i++) {
            uint8_t state = state_of(q, spans[i]);
            if (state == HD_READY || state == HD_FAILED) found = i;
        }
        if (found >= 0 || q->closing || (stop && atomic_load(stop))) break;
        /* Again each time round: an eviction that was under way or a cancelled class may have dropped them. */
        for (int32_t i = 0; i < n; i++) any |= enqueue(q, HD_DEMAND, spans[i]);
        if (any) pthread_cond_broadcast(&q->work);
        sleep_until(&q->done, &q->lock, now() + 0.02);
    }
    pthread_mutex_unlock(&q->lock);
    return found;
}

/* Under the lock. A slot goes back; whoever read the span there must have gone. */
static void drop_slot(hd_queue *q, int32_t span) {
    if (!q->arena || !hd_arena_has(q->arena, span)) return;
    atomic_store(&q->spans->at[span], q->spans->home[span]);
    hd_arena_put(q->arena, span);
    q->arena_used -= q->spans->nbytes[span];
}

void hd_queue_cancel(hd_queue *q, enum hd_class cls) {
    pthread_mutex_lock(&q->lock);
    for (int32_t node = 0; node < q->nodes; node++) {
        ring *r = &q->waiting[node][cls];
        for (int64_t i = r->head; i < r->tail; i++) {
            int32_t span = r->item[i];
            if (q->cls[span] != cls) continue;
            q->cls[span] = NOWHERE;
            q->count[cls]--;
            /* What has been read of a big span stays; it is asked for again from its beginning, which costs a mapping. */
            if (state_of(q, span) == HD_LOADING && q->busy[span] == 0) {
                q->issued[span] = 0;
                drop_slot(q, span);
                atomic_store(&q->spans->state[span], HD_ABSENT);
            }
        }
        r->head = r->tail = 0;
        if (cls == HD_CURSOR && q->cursor[node].item) {
            plan *p = &q->cursor[node];
            for (int32_t l = 0; l <= q->layers; l++) p->at[l] = p->begin[l + 1];
        }
    }
    if (cls == HD_CURSOR) q->planned = 0;
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
static int32_t next_planned(hd_queue *q, int32_t node, int take) {
    plan *p = &q->cursor[node];
    if (!p->item) return -1;
    int32_t from = q->layer < 0 ? 0 : q->layer, to = q->layer + q->window;
    for (int32_t l = -1; l <= to && l < q->layers; l = l < 0 ? from : l + 1) {
        int32_t *at = &p->at[l + 1];
        while (*at < p->begin[l + 2]) {
            int32_t span = p->item[*at];
            uint8_t state = state_of(q, span);
            int wanted = (state == HD_ABSENT || state == HD_LOADING) && q->cls[span] >= HD_CURSOR &&
                         !(state == HD_LOADING && q->issued[span] >= q->spans->nbytes[span]);
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
    for (int32_t node = 0; node < q->nodes && idle; node++) idle = next_planned(q, node, 0) < 0;
    pthread_mutex_unlock(&q->lock);
    return idle;
}

int hd_queue_error(hd_queue *q, int32_t span, uint64_t *file_offset) {
    pthread_mutex_lock(&q->lock);
    int error = state_of(q, span) == HD_FAILED ? q->error[span] : 0;
    if (file_offset) *file_offset = q->error_at[span];
    pthread_mutex_unlock(&q->lock);
    return error;
}

/* Under the lock. The first span of a class that is still wanted there, without taking it; -1 if none. */
static int32_t head_of(hd_queue *q, int32_t node, enum hd_class cls) {
    ring *r = &q->waiting[node][cls];
    while (r->head < r->tail) {
        int32_t span = r->item[r->head];
        uint8_t state = state_of(q, span);
        if (q->cls[span] == cls && state != HD_READY && state != HD_EVICTING && q->issued[span] < q->spans->nbytes[span])
            return span;
        r->head++;
        if (q->cls[span] == cls) {
            q->cls[span] = NOWHERE;
            q->count[cls]--;
            if (state == HD_EVICTING && cls < q->parked[span]) q->parked[span] = (uint8_t)cls;
        }
    }
    r->head = r->tail = 0;
    return -1;
}

static void leave(hd_queue *q, int32_t span) {
    q->count[q->cls[span]]--;
    q->cls[span] = NOWHERE;
}

/* Under the lock. Fill a job from a class; 0 if the class has nothing. */
static int take(hd_queue *q, int32_t node, enum hd_class cls, job *j) {
    const uint64_t *nbytes = q->spans->nbytes;
    int32_t span = head_of(q, node, cls);
    if (span < 0 && cls == HD_CURSOR) {
        span = next_planned(q, node, 1);
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
        /* Cut at 2 MiB boundaries of the file, which are those of the mapping: two pieces never share a block. */
        uint64_t cut = (j->begin + q->piece) / HD_HUGE * HD_HUGE;
        j->end = cut > j->begin ? cut : j->begin + q->piece;
    } else {
        leave(q, span);
        r->head++;
        /* Neighbours in the file that were asked for together are one read. */
        while (j->n < MERGE) {
            int32_t next = head_of(q, node, cls);
            if (next < 0 && cls == HD_CURSOR) next = next_planned(q, node, 0);
            if (next < 0 || q->file[next] != j->file || q->issued[next] || state_of(q, next) == HD_LOADING) break;
            uint64_t at = q->offset[next];
            if (at < j->end || at - j->end >= PAGE || at + nbytes[next] - j->begin > q->piece) break;
            if (q->cls[next] == cls) {
                leave(q, next);
                r->head++;
            } else {
                next_planned(q, node, 1);
                if (q->cls[next] != NOWHERE) leave(q, next);
            }
            j->span[j->n++] = next;
            j->end = at + nbytes[next];
        }
    }
    for (int32_t i = 0; i < j->n; i++) {
        int32_t s = j->span[i];
        q->busy[s]++;
        q->issued[s] = j->n > 1 ? nbytes[s] : j->end - q->offset[s];
        atomic_store(&q->spans->state[s], HD_LOADING);
    }
    q->in_flight[cls]++;
    return 1;
}

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
static int find(hd_queue *q, int32_t node, enum hd_class cls, job *j) {
    handed *h = &q->handed[node][cls];
    for (;;) {
        if (h->head < h->tail) {
            *j = h->item[h->head++];
            return 1;
        }
        if (!take(q, node, cls, j)) return 0;
        int ours = divide(q, node, j);
        if (q->elsewhere) {
            q->elsewhere = 0;
            pthread_cond_broadcast(&q->work);
        }
        if (ours) return 1;
    }
}

/* Under the lock. The best job for a worker; *when is set to the time at which the brake allows the next. */
static int choose(hd_queue *q, const worker *w, job *j, double *when) {
    *when = 0;
    /* Two sets of threads: a demand never stands behind a sweep, nor is it read at the sweep's low priority. */
    int single = q->n_workers == 1;
    for (int c = single || w->waited_for ? 0 : HD_LOOKAHEAD; c <= (single || !w->waited_for ? HD_SWEEP : HD_ROUTED); c++) {
        if (q->paused >> c & 1) continue;
        if (c >= HD_CURSOR && q->rate > 0) {
            double t = now();
            if (t < q->next_background) {
                *when = q->next_background;
                return 0;
            }
        }
        if (find(q, w->node, (enum hd_class)c, j)) return 1;
    }
    return 0;
}

/* Under the lock. Take the slot of the first victim of this size that nobody reads or wants. */
static int make_room(hd_queue *q, int32_t size) {
    for (int32_t *i = &q->next_victim[size]; *i < q->n_victims;) {
        int32_t s = q->victim[(*i)++];
        if (!hd_arena_has(q->arena, s) || hd_arena_size_of(q->arena, s) != size || q->cls[s] != NOWHERE) continue;
        uint8_t ready = HD_READY;
        if (!atomic_compare_exchange_strong(&q->spans->state[s], &ready, HD_EVICTING)) continue;
        if (atomic_load(&q->spans->users[s])) {
            atomic_store(&q->spans->state[s], HD_READY);
            continue;
        }
        drop_slot(q, s);
        q->issued[s] = 0;
        atomic_store(&q->spans->state[s], HD_ABSENT);
        q->replaced++;
        return 1;
    }
    return 0;
}

/* Under the lock. Slots for a job's spans, as far as there are any. */
static int take_slots(hd_queue *q, const job *j) {
    int any = 0;
    if (!q->arena) return 0;
    for (int32_t i = 0; i < j->n; i++) {
        int32_t s = j->span[i];
        if (hd_arena_has(q->arena, s)) {
            any = 1;
            continue;
        }
        /* One that is half populated in the mapping is finished there, as one that began in a slot is in its slot. */
        if (q->cover[j->cls] <= 1 || !hd_arena_member(q->arena, s) || j->begin > q->offset[s]) continue;
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
static int read_apart(hd_queue *q, const job *j, float cover, hd_populated *got) {
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

/* Under the lock. */
static void finish(hd_queue *q, const job *j, const hd_populated *got, int error, double seconds) {
    hd_class_counts *total = &q->total[j->cls];
    total->read += got->read;
    total->cached += got->cached;
    total->seconds += seconds;
    q->in_flight[j->cls]--;
    for (int32_t i = 0; i < j->n; i++) {
        int32_t s = j->span[i];
        uint64_t begin = q->offset[s], end = begin + q->spans->nbytes[s];
        q->busy[s]--;
        /* Of merged spans, those before the failing byte are sound: hd_populate works upwards. */
        if (error && got->failed_at < end) {
            if (state_of(q, s) != HD_FAILED) total->failed++;
            q->error[s] = error;
            q->error_at[s] = got->failed_at;
            q->error_time[s] = now();
            atomic_store(&q->spans->state[s], HD_FAILED);
            if (q->cls[s] != NOWHERE) leave(q, s);
            q->issued[s] = q->spans->nbytes[s];
        }
        if (q->busy[s]) continue;
        if (state_of(q, s) == HD_FAILED) {
            q->issued[s] = 0;
            drop_slot(q, s);
        } else if (q->issued[s] >= q->spans->nbytes[s]) {
            q->issued[s] = 0;
            total->spans++;
            if (q->arena && hd_arena_has(q->arena, s)) atomic_store(&q->spans->at[s], hd_arena_at(q->arena, s));
            atomic_store(&q->spans->state[s], HD_READY);
            if (q->cls[s] != NOWHERE) leave(q, s);
        } else if (q->cls[s] == NOWHERE) { /* cancelled half-way */
            q->issued[s] = 0;
            drop_slot(q, s);
            atomic_store(&q->spans->state[s], HD_ABSENT);
        }
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
        int apart = take_slots(q, &j);
        pthread_mutex_unlock(&q->lock);
        hd_populated got;
        double start = now();
        int error = apart ? read_apart(q, &j, cover, &got)
                          : hd_populate(q->mapping, j.file, j.begin, j.end - j.begin, cover, &got);
        uint64_t wrong = 0, left = 0;
        if (!error && j.owner >= 0 && q->memory && q->memory[j.owner] >= 0) {
            hd_populated again;
            error = hd_settle(q->mapping, j.file, j.begin, j.end, q->memory[j.owner], &wrong, &left, &again);
            got.read += again.read;
            got.failed_at = again.failed_at;
        }
        double end = now();
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
    q->n_workers = o->workers > 1 ? 2 * o->workers : 1;
    q->piece = o->piece < PAGE ? PAGE : o->piece > 2 * HD_HUGE ? 2 * HD_HUGE : o->piece / PAGE * PAGE;
    q->nice = o->nice;
    q->layer = -1;
    q->window = 1;
    for (size_t i = 0; i < n; i++)
        if (spans->layer[i] >= q->layers) q->layers = spans->layer[i] + 1;
    /* Whoever picks single experts wants those and no neighbours; whoever reads on and on wants whole blocks. */
    q->cover[HD_DEMAND] = q->cover[HD_ROUTED] = q->cover[HD_LOOKAHEAD] = 0.75f;
    pthread_mutex_init(&q->lock, NULL);
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
    q->workers = calloc(nodes * (size_t)q->n_workers, sizeof *q->workers);
    int error = !q->waiting || !q->cursor || !q->handed || !q->cls || !q->parked || !q->busy || !q->issued || !q->error ||
                !q->error_at || !q->error_time || !q->workers ? ENOMEM : 0;
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
        q->workers[i] = (worker){.q = q, .node = i / q->n_workers, .waited_for = i % q->n_workers < q->n_workers / 2};
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

void hd_queue_free(hd_queue *q) {
    if (!q) return;
    pthread_mutex_lock(&q->lock);
    q->closing = 1;
    pthread_cond_broadcast(&q->work);
    pthread_cond_broadcast(&q->done);
    pthread_mutex_unlock(&q->lock);
    for (int32_t i = 0; i < q->started; i++) pthread_join(q->workers[i].thread, NULL);
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
    free(q->workers);
    free(q->cpus);
    free(q->memory);
    pthread_cond_destroy(&q->work);
    pthread_cond_destroy(&q->done);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

int hd_queue_plan(hd_queue *q, const int32_t *spans, int32_t n, int32_t window) {
    int error = 0;
    size_t layers = (size_t)q->layers;
    for (int32_t node = 0; node < q->nodes; node++) {
        plan fresh = {malloc(sizeof(int32_t) * (size_t)(n + 1)), calloc(layers + 2, sizeof(int32_t)),
                      calloc(layers + 1, sizeof(int32_t))};
        if (!fresh.item || !fresh.begin || !fresh.at) {
            free(fresh.item);
            free(fresh.begin);
            free(fresh.at);
            return ENOMEM;
        }
        /* Counting sort by layer keeps the given order within one. */
        for (int32_t i = 0; i < n; i++)
            if (node_of(q, spans[i]) == node) fresh.begin[q->spans->layer[spans[i]] + 2]++;
        for (size_t l = 0; l <= layers; l++) fresh.begin[l + 1] += fresh.begin[l];
        memcpy(fresh.at, fresh.begin, sizeof(int32_t) * (layers + 1));
        for (int32_t i = 0; i < n; i++)
            if (node_of(q, spans[i]) == node) fresh.item[fresh.at[q->spans->layer[spans[i]] + 1]++] = spans[i];
        memcpy(fresh.at, fresh.begin, sizeof(int32_t) * (layers + 1));
        pthread_mutex_lock(&q->lock);
        plan old = q->cursor[node];
        for (size_t l = 0; old.item && l <= layers; l++) q->planned -= old.begin[l + 1] - old.at[l];
        q->cursor[node] = fresh;
        q->planned += fresh.begin[layers + 1];
        q->window = window;
        pthread_cond_broadcast(&q->work);
        pthread_mutex_unlock(&q->lock);
        free(old.item);
        free(old.begin);
        free(old.at);
    }
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
    q->rate = bytes_per_second;
    q->next_background = 0;
    pthread_cond_broadcast(&q->work);
    pthread_mutex_unlock(&q->lock);
}

void hd_queue_place(hd_queue *q, const hd_places *places) {
    pthread_mutex_lock(&q->lock);
    q->places = places ? *places : (hd_places){0};
    pthread_mutex_unlock(&q->lock);
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
            uint8_t was = state_of(q, s);
            if ((was != HD_READY && was != HD_ABSENT && was != HD_FAILED) || q->cls[s] != NOWHERE) {
                if (count) break;
                continue;
            }
            /* Announce first, look at the readers afterwards (spans.h). */
            atomic_store(&q->spans->state[s], HD_EVICTING);
            if (atomic_load(&q->spans->users[s])) {
                atomic_store(&q->spans->state[s], was);
                if (count) break;
                continue;
            }
            if (q->arena && hd_arena_has(q->arena, s)) {
                drop_slot(q, s);
                bytes += q->spans->nbytes[s];
                taken++;
                q->issued[s] = 0;
                atomic_store(&q->spans->state[s], HD_ABSENT);
                continue;
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
            q->issued[s] = 0;
            atomic_store(&q->spans->state[s], HD_ABSENT);
            if (parked != NOWHERE && enqueue(q, (enum hd_class)parked, s)) pthread_cond_broadcast(&q->work);
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
        uint8_t ready = HD_READY;
        if (q->arena && hd_arena_has(q->arena, s)) continue; /* the kernel takes nothing from there */
        if (!atomic_compare_exchange_strong(&q->spans->state[s], &ready, HD_EVICTING)) continue;
        int used = atomic_load(&q->spans->users[s]) != 0;
        atomic_store(&q->spans->state[s], used ? HD_READY : HD_ABSENT);
        forgotten += !used;
    }
    pthread_mutex_unlock(&q->lock);
    return forgotten;
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
    double until = now() + seconds;
    pthread_mutex_lock(&q->lock);
    int empty;
    while (!(empty = q->count[cls] == 0 && q->in_flight[cls] == 0 && (cls != HD_CURSOR || q->planned == 0)) &&
           !q->closing && now() < until)
        sleep_until(&q->done, &q->lock, until);
    pthread_mutex_unlock(&q->lock);
    return empty;
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
