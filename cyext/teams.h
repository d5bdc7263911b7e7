/* Teams of pinned threads that run a job phase by phase. Owns threads, the barrier between phases and the sharing out of
 * items; knows nothing of what an item is.
 *
 * A job is a sequence of phases. Between two phases every thread has arrived; the last to arrive calls next(), alone,
 * which may do small work itself and publishes the items of the next phase. So a phase costs one barrier, and work too
 * small to share costs none. Items belong to teams; inside a team threads take the next free one. */
#pragma once
#include <setjmp.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef struct hd_teams hd_teams;

typedef struct hd_worker {
    int32_t index, team;
    uint8_t *scratch;            /* 64-byte aligned, grown by hd_worker_scratch */
    size_t scratch_bytes;
} hd_worker;

typedef struct hd_job {
    int (*next)(void *context, hd_worker *w);                  /* 1: a phase is published; 0: the job is over */
    void (*run)(void *context, hd_worker *w, int32_t item);
    void (*fault)(void *context, const void *address);         /* a read of mapped memory failed (SIGBUS): ends the job */
    void *context;
    /* It failed in an item. 1: that item is given up, and the others go on; 0, or NULL: see fault. */
    int (*item_fault)(void *context, int32_t item, const void *address);
} hd_job;

/* cpus: for each thread the processor to pin it to, -1 for none; team_of: its team, ascending; shares: by which items are
 * dealt out to the teams, above 0 each (NULL: by their threads). NULL when out of memory. */
hd_teams *hd_teams_new(int32_t threads, const int32_t *cpus, const int32_t *team_of, const int32_t *shares, int32_t spin);
void hd_teams_free(hd_teams *t);
int32_t hd_teams_count(const hd_teams *t);
int32_t hd_teams_threads(const hd_teams *t);
int32_t hd_teams_size(const hd_teams *t, int32_t team);

/* Items [*a, *b) of n are this team's, when items are dealt out in proportion to the teams' shares. */
void hd_teams_share(const hd_teams *t, int32_t team, int64_t n, int64_t *a, int64_t *b);

/* Run a job and return when it is over. One job at a time; the caller sleeps. */
void hd_teams_run(hd_teams *t, const hd_job *job);

/* From next(): items [begin[k], end[k]) are team k's in the coming phase. */
void hd_teams_publish(hd_teams *t, int32_t team, int32_t begin, int32_t end);

/* Scratch memory of at least so many bytes, contents undefined. NULL when out of memory. */
void *hd_worker_scratch(hd_worker *w, size_t bytes);
