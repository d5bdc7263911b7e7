/* Background populate workers under one queue of five classes. The program calls these without the GIL.
 * Mechanism only: which span in which class is decided by the caller. */
#pragma once
#include "spans.h"

enum hd_class { HD_DEMAND = 0, HD_ROUTED = 1, HD_LOOKAHEAD = 2, HD_CURSOR = 3, HD_SWEEP = 4, HD_CLASSES = 5 };

typedef struct hd_queue hd_queue;

/* Ask for spans; one that is ready or already queued as high is left as it is, one queued lower moves up. */
void hd_queue_submit(hd_queue *q, enum hd_class cls, const int32_t *spans, int32_t n);

/* Raise the spans to demand and sleep until at least one of them is READY or FAILED, or *stop becomes non-zero.
 * Returns its index in spans, -1 when stopped. */
int32_t hd_queue_wait_any(hd_queue *q, const int32_t *spans, int32_t n, const _Atomic int32_t *stop);

/* Drop what is still waiting in a class (pieces in flight end). */
void hd_queue_cancel(hd_queue *q, enum hd_class cls);

/* The step has reached this layer: the cursor's window moves with it. -1 between steps. */
void hd_queue_progress(hd_queue *q, int32_t layer);

/* 1 when nothing above the sweep is waiting or in flight: a guess may use the disk. */
int hd_queue_idle(hd_queue *q);

/* errno of a failed span and the byte in the file where it failed. */
int hd_queue_error(hd_queue *q, int32_t span, uint64_t *file_offset);
