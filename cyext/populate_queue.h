/* Background populate workers under one queue of five classes. The program calls these without the GIL.
 * Mechanism only: which span in which class is decided by the caller. */
#pragma once
#include "spans.h"

enum hd_class { HD_DEMAND = 0, HD_ROUTED = 1, HD_LOOKAHEAD = 2, HD_CURSOR = 3, HD_SWEEP = 4, HD_CLASSES = 5 };

typedef struct hd_queue hd_queue;

/* Ask for spans; one that is ready or already queued as high is left as it is, one queued lower moves up, with those of its
 * parts that wait for another node's workers. */
void hd_queue_submit(hd_queue *q, enum hd_class cls, const int32_t *spans, int32_t n);

/* Raise the spans to demand and sleep until at least one of them is READY or FAILED, or *stop becomes non-zero.
 * Returns its index in spans, -1 when stopped. */
int32_t hd_queue_wait_any(hd_queue *q, const int32_t *spans, int32_t n, const _Atomic int32_t *stop);

/* Rows, of so many bytes from `offset` in the span on, that a step is about to read of a table it does not need whole: what
 * is not cached is asked of the disk at once. Otherwise each row's fault would read the 2 MiB around it, one by one. */
void hd_queue_rows(hd_queue *q, int32_t span, uint64_t offset, uint64_t row_bytes, const int32_t *rows, int32_t n);

/* Drop what is still waiting in a class (pieces in flight end, also those that wait for another node's workers). */
void hd_queue_cancel(hd_queue *q, enum hd_class cls);

/* The step has reached this layer: the cursor's window moves with it. -1 between steps. */
void hd_queue_progress(hd_queue *q, int32_t layer);

/* 1 when nothing above the sweep is waiting or in flight: a guess may use the disk. */
int hd_queue_idle(hd_queue *q);

/* Failed spans among these may be tried again at once. Otherwise they are tried only for demand and routed, a second after
 * they failed: cursor, sweep and lookahead leave them alone. */
void hd_queue_retry(hd_queue *q, const int32_t *spans, int32_t n);

/* errno of a failed span and the byte in the file where it failed. */
int hd_queue_error(hd_queue *q, int32_t span, uint64_t *file_offset);

/* ---- For the binding, not for the program ------------------------------------------------------------------------ */

#include "mapping.h"
#include "placement.h"

typedef struct hd_queue_options {
    int32_t workers;           /* per node: 1 thread for all, or so many for demand and routed, */
    int32_t background;        /* and so many for the rest; 0: as many */
    int32_t nodes;             /* sets of workers; 1 without NUMA */
    const int32_t *node;       /* [n] whose workers read a span, NULL: all node 0 */
    const uint8_t *cpus;       /* [nodes][n_cpus] 1: the node's workers may run there, NULL: anywhere */
    int32_t n_cpus;
    const int32_t *memory;     /* [nodes] kernel's number of the node whose memory to prefer, -1: any; NULL: any */
    uint64_t piece;            /* bytes, at most 4 MiB */
    int32_t nice;              /* of the background workers, above the process's own */
    uint64_t interleave;       /* bit k: kernel's node k; the workers spread what they read over these, 0: no */
} hd_queue_options;

typedef struct hd_class_counts {
    uint64_t read, cached;     /* bytes from disk, bytes that only had to be mapped */
    uint64_t spans, failed;
    double seconds;            /* of workers, added up */
} hd_class_counts;

/* file, offset: [n] where each span lies in the mapping. All arrays outlive the queue. NULL: errno says why. */
hd_queue *hd_queue_new(hd_spans *spans, const hd_mapping *mapping, const int32_t *file, const uint64_t *offset,
                       const hd_queue_options *options);
void hd_queue_free(hd_queue *q);

/* The cursor's plan: taken in layer order (the given order within a layer), only layers up to progress + window. */
int hd_queue_plan(hd_queue *q, const int32_t *spans, int32_t n, int32_t window);
/* Bit k: class k waits; what of it has been taken is read to the end. */
void hd_queue_pause(hd_queue *q, uint32_t classes);
/* Bytes per second that cursor and sweep may read from disk together; 0: as fast as they can. */
void hd_queue_rate(hd_queue *q, double bytes_per_second);
/* Whose pages are whose: what a worker takes is divided by owner, the other nodes' workers are handed their parts, and what
 * lies on a wrong node is brought to the right one. Owners number the sets of workers; any other number: nobody's, as all
 * are with NULL. The arrays live until they are replaced. */
void hd_queue_place(hd_queue *q, const hd_places *places);
/* Pages that workers found on another node than their owner's, and of them those that could not be brought home. */
void hd_queue_settled(hd_queue *q, uint64_t *wrong, uint64_t *left);
/* See hd_populate: from what share on a 2 MiB block is read whole, per class. */
void hd_queue_cover(hd_queue *q, enum hd_class cls, float cover);
/* Give spans back that nobody reads or has asked for; *freed bytes left the cache. Returns how many spans were taken. */
int32_t hd_queue_evict(hd_queue *q, const int32_t *spans, int32_t n, uint64_t *freed);
/* READY spans of which the kernel has taken pages become ABSENT again, unless somebody reads them; how many did. */
int32_t hd_queue_forget(hd_queue *q, const int32_t *spans, int32_t n);
/* Let every hd_queue_wait_any look at its stop flag. */
void hd_queue_wake(hd_queue *q);
void hd_queue_counts(hd_queue *q, hd_class_counts counts[HD_CLASSES], int64_t waiting[HD_CLASSES],
                     int32_t in_flight[HD_CLASSES]);
/* Sleep until nothing waits or is in flight in a class (paused counts as waiting), or the time is over. 1: empty. */
int hd_queue_drain(hd_queue *q, enum hd_class cls, double seconds);

/* ---- The arena: spans that some classes ask for are read there, past the page cache, instead of into the mapping ------ */

/* See hd_arena_new; once, and only without nodes. 0 or errno. */
int hd_queue_arena(hd_queue *q, const uint8_t *member, uint64_t bytes);
/* Bit k: what class k asks for goes to the arena while it has slots; else, and what is no member, to the mapping. */
void hd_queue_direct(hd_queue *q, uint32_t classes);
/* From now on these spans are read from the mapping, where the caller has populated them; their slots are free. Those that
 * somebody reads stay. Returns how many came home. */
int32_t hd_queue_come_home(hd_queue *q, const int32_t *spans, int32_t n);
/* Whose slot to take when none is free, in this order: the worker takes the first of the size that nobody reads. */
int hd_queue_victims(hd_queue *q, const int32_t *spans, int32_t n);
/* Spans of so many bytes go to the mapping, whose pages the kernel can take, before any goes to the arena. */
void hd_queue_mapping_room(hd_queue *q, int64_t bytes);
/* No more memory than this, see hd_arena_limit; returns what is taken now. */
uint64_t hd_queue_arena_limit(hd_queue *q, uint64_t bytes);
typedef struct hd_arena_counts { uint64_t capacity, taken, used, replaced, full; } hd_arena_counts;
/* Bytes; replaced: spans that gave their slot to another since the start; full: spans that found none. */
void hd_queue_arena_counts(hd_queue *q, hd_arena_counts *counts);
