/* What the parts of the populate queue share: its order, who reads what, its slots in the arena, its workers. Private to them.
 * Everything here is called, and every field touched, under the queue's lock unless a line says otherwise. */
#pragma once
#include "../arena.h"
#include "../populate_queue.h"

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
    int32_t nodes, n_workers, n_waited_for, started, nice, layers, window, layer, closing;
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
    hd_places places;              /* files 0: none */
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

/* Whose workers read a span. */
static inline int32_t hdq_node_of(const hd_queue *q, int32_t span) {
    uint64_t end;
    if (q->node) return q->node[span];
    int32_t owner = hd_places_at(&q->places, q->file[span], q->offset[span], &end);
    return owner < 0 ? 0 : owner;
}

/* order.c */
int hdq_enqueue(hd_queue *q, enum hd_class cls, int32_t span);
int32_t hdq_next_planned(hd_queue *q, int32_t node, int take);
void hdq_leave(hd_queue *q, int32_t span);
int hdq_take(hd_queue *q, int32_t node, enum hd_class cls, job *j);

/* owners.c */
int hdq_find(hd_queue *q, int32_t node, enum hd_class cls, job *j);

/* slots.c */
void hdq_drop_slot(hd_queue *q, int32_t span);
int hdq_take_slots(hd_queue *q, const job *j);
int hdq_read_apart(hd_queue *q, const job *j, float cover, hd_populated *got); /* without the lock */
