/* What the parts of the populate queue share: its order, who reads what, its slots in the arena, its workers. Private to them.
 * Everything here is called, and every field touched, under the queue's lock unless a line says otherwise.
 *
 * What a span can be, and what happens to it. tests/queue_walk.c walks this table at random.
 *
 *   absent    ABSENT, in no class                         whole   LOADING, all of it issued, in no class, busy
 *   waiting   ABSENT, in a class                          orphan  LOADING, cancelled after a piece of it was taken, busy
 *   partly    LOADING, in a class, some of it issued      ready, evicting, failed: READY, EVICTING, FAILED; in no class
 *
 * |                    | absent   | waiting  | partly   | whole    | orphan   | ready     | evicting | failed   |
 * | ------------------ | -------- | -------- | -------- | -------- | -------- | --------- | -------- | -------- |
 * | asked for higher   | waiting 1| moves up | moves up2| parts up2| partly 2 | -         | parked   | waiting 3|
 * | asked for no higher| waiting 1| -        | -        | -        | partly   | -         | parked   | waiting 3|
 * | the plan's turn    | taken 1  | taken 4  | taken 4  | -        | taken    | -         | -  5     | -        |
 * | taken              | no 6     | partly/whole, as much as a piece  | no 6     | no 6      | no 6     | no 6     |
 * | piece read, not last| no 7    | no 7     | -        | -        | -        | no 7      | no 7     | no 7     |
 * | piece read, last   | no 7     | no 7     | -        | ready 8  | absent   | no 7      | no 7     | no 7     |
 * | piece failed in it | no 7     | no 7     | whole 8  | BROKEN 8 | whole 8  | no 7      | no 7     | no 7     |
 * | ... before it      | no 7     | no 7     | no 9     | UNTRIED 8| no 9     | no 7      | no 7     | no 7     |
 * | evict begins       | evicting | left     | left     | left     | left     | evicting10| left     | evicting |
 * | evict ends         | no       | no       | no       | no       | no       | no        | absent 11| no       |
 * | forget             | left     | left     | left     | left     | left     | absent 10 | left     | left     |
 * | come home          | left     | left     | left     | left     | left     | at home 10| left     | left     |
 * | slot wanted        | no 12    | no 12    | left     | left     | left     | absent 10 | left     | no 12    |
 * | its class cancelled| no       | absent   | orphan 13| no       | no       | no        | unparked | no       |
 * | retry              | -        | -        | -        | -        | -        | -         | -        | may 3    |
 * | class paused, brake| -        | stays    | stays 14 | -  14    | -  14    | -         | -        | -        |
 * | close              | -        | absent   | absent   | absent   | absent   | as it is15| no 15    | -        |
 * | a step announces itself, or leaves: changes `users` alone, whatever the state                              |
 *
 *  1  Without bytes: ready at once.
 *  2  Parts of it that were handed to a node and wait there, in a lower class, move up with it, and with them spans that have
 *     bytes in the same part. A piece that a worker reads stays with that worker. So no demand stands behind a pause.
 *  3  By demand and routed RETRY_SECONDS after it failed, by everybody once it was told to be tried again; else stays failed.
 *  4  From the sweep (or as what the plan itself began); what has been asked for higher is left there.
 *  5  It was given back on purpose. A step that needs it asks.
 *  6  Only what stands in a class is taken: head_of asserts it.
 *  7  Only what is LOADING is busy: hdq_become and hdq_claim assert it. So whoever evicts or drops a slot need not ask.
 *  8  The last piece that comes back decides, whatever the others were: one BROKEN, failed; else one UNTRIED, absent and in
 *     the piece's class again; else ready. Of a BROKEN span no more is issued. One FAILED with a piece in flight would lose
 *     its slot under that worker's hands.
 *  9  Only whole spans are merged behind another.
 * 10  Unless `users` says that somebody reads it: then as it was. forget and come_home look at spans without, or with, a slot.
 * 11  Then in the class in which it was parked, if any.
 * 12  Only LOADING and READY have a slot (EVICTING for as long as the lock is held).
 * 13  absent when it is not busy. Pieces in flight, handed over or not, end.
 * 14  What was handed over is part of a job that was taken, and is read all the same; how much may wait so is bounded.
 * 15  absent if it was in the arena. Nobody may be in a call when the queue is closed. */
#pragma once
#include "../arena.h"
#include "../populate_queue.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE ((uint64_t)4096)
#define NOWHERE 255        /* class of a span that nobody has asked for */
#define MERGE 16           /* spans that one piece may hold */
#define RETRY_SECONDS 1.0  /* a failed span that somebody waits for after this is tried again: disks recover */

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

typedef struct handed {    /* parts of jobs that another node's worker took, for this node's workers */
    job *item;
    int64_t head, tail, room;
    uint64_t bytes;
} handed;

/* What is known of a span that is LOADING, before its last piece is back. */
enum fate { FINE = 0, UNTRIED = 1, BROKEN = 2 };

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
    int32_t nodes, n_workers, n_waited_for, started, nice, layers, window, layer, closing;
    uint32_t paused;
    pthread_mutex_t lock;
    pthread_mutex_t placing;       /* taken before the lock; held by whoever reads places, or changes them, at length */
    pthread_cond_t work, done;
    ring (*waiting)[HD_CLASSES];   /* [nodes] */
    plan *cursor;                  /* [nodes] */
    uint8_t *cls, *parked;         /* [n] class, NOWHERE; class to return to after an eviction, NOWHERE */
    uint32_t *busy;                /* [n] pieces in flight: with a worker, or handed over */
    uint32_t *waiting_parts;       /* [n] of these, what was handed over and waits */
    uint8_t *fate;                 /* [n] enum fate */
    uint64_t *issued;              /* [n] bytes handed to workers */
    int32_t *error;                /* [n] */
    uint64_t *error_at;            /* [n] */
    double *error_time;            /* [n] */
    uint8_t *again;                /* [n] 1: a failed span is tried again by whoever asks next */
    int64_t count[HD_CLASSES];     /* spans waiting in the rings, each once */
    int64_t planned;               /* entries of all plans not taken yet */
    int32_t in_flight[HD_CLASSES];
    hd_class_counts total[HD_CLASSES];
    float cover[HD_CLASSES];
    double rate, next_background;
    hd_arena *arena;               /* or NULL */
    uint32_t direct;               /* bit k: class k reads into it */
    int32_t *victim, n_victims;    /* whose slots go first */
    int64_t mapping_room;
    int32_t next_victim[16];       /* per size of slot */
    uint64_t arena_used, replaced, full;
    worker *workers;
    cpu_set_t **cpus;              /* [nodes] or NULL */
    size_t cpus_bytes;
    int32_t *memory;               /* [nodes] or NULL */
    uint64_t interleave;
    hd_places places;              /* files 0: none; changed under both locks */
    handed (*handed)[HD_CLASSES];  /* [nodes] */
    uint64_t wrong, left;          /* pages found on a wrong node; of them, those that stayed there */
    int32_t elsewhere;             /* something was handed over: wake the others */
};

static inline double hdq_now(void) { /* seconds, monotonic; needs no lock */
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
static inline uint8_t hdq_state(const hd_queue *q, int32_t span) { return atomic_load(&q->spans->state[span]); }

/* Every change of a state but the one to EVICTING. Only a span that is LOADING has pieces in flight, an address of which
 * something has been read, or a fate; only one that is ABSENT or LOADING waits in a class. */
static inline void hdq_become(hd_queue *q, int32_t span, enum hd_span_state to) {
    assert(to == HD_LOADING || (q->busy[span] == 0 && q->issued[span] == 0 && q->fate[span] == FINE));
    assert(to == HD_LOADING || to == HD_ABSENT || q->cls[span] == NOWHERE);
    atomic_store(&q->spans->state[span], (uint8_t)to);
}

/* Announce that a span goes, look at its readers afterwards (spans.h); 0: it is in another state, or somebody reads it. */
static inline int hdq_claim(hd_queue *q, int32_t span, enum hd_span_state was) {
    if (hdq_state(q, span) != was) return 0;
    assert(q->busy[span] == 0 && q->issued[span] == 0 && q->cls[span] == NOWHERE);
    atomic_store(&q->spans->state[span], HD_EVICTING);
    if (!atomic_load(&q->spans->users[span])) return 1;
    atomic_store(&q->spans->state[span], (uint8_t)was);
    return 0;
}

/* A job begins (1) or ends (-1) to be in flight. */
static inline void hdq_in_flight(hd_queue *q, const job *j, int sign) {
    q->in_flight[j->cls] += sign;
    for (int32_t i = 0; i < j->n; i++) q->busy[j->span[i]] += (uint32_t)sign;
}

/* Whose workers read a span. Under the lock, or under `placing`. */
static inline int32_t hdq_node_of(const hd_queue *q, int32_t span) {
    uint64_t end;
    if (q->node) return q->node[span];
    int32_t owner = hd_places_at(&q->places, q->file[span], q->offset[span], &end);
    return owner < 0 || owner >= q->nodes ? 0 : owner;
}

/* order.c */
int hdq_enqueue(hd_queue *q, enum hd_class cls, int32_t span);
int32_t hdq_next_planned(hd_queue *q, int32_t node, int take);
void hdq_leave(hd_queue *q, int32_t span);
int hdq_take(hd_queue *q, int32_t node, enum hd_class cls, job *j);

/* owners.c */
int hdq_handed_over(hd_queue *q, int32_t node, enum hd_class cls, job *j);
int hdq_find(hd_queue *q, int32_t node, enum hd_class cls, job *j);
int hdq_raise(hd_queue *q, enum hd_class cls, int32_t span);

/* slots.c */
void hdq_drop_slot(hd_queue *q, int32_t span);
int hdq_take_slots(hd_queue *q, const job *j);
int hdq_read_apart(hd_queue *q, const job *j, float cover, hd_populated *got); /* without the lock */

/* Nobody wants the rest of a span, or it has to be read anew: absent, from its beginning. Of a LOADING one, not busy. */
static inline void hdq_give_up(hd_queue *q, int32_t span) {
    q->issued[span] = 0;
    hdq_drop_slot(q, span);
    hdq_become(q, span, HD_ABSENT);
}
