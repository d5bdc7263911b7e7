#define _GNU_SOURCE
#include "teams.h"
#include "fault.h"
#include <linux/futex.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ __volatile__("yield")
#else
#define PAUSE() ((void)0)
#endif

typedef struct range {
    _Alignas(64) _Atomic int32_t at;
    int32_t end;
} range;

typedef struct thread {
    hd_teams *teams;
    pthread_t handle;
    int32_t cpu;
    hd_worker worker;
} thread;

struct hd_teams {
    _Alignas(64) _Atomic uint32_t phase;     /* counts barriers passed; what arrivals wait on */
    _Alignas(64) _Atomic int32_t arrived;
    _Atomic int32_t sleepers;
    _Alignas(64) _Atomic uint32_t job_number;
    _Atomic uint32_t jobs_done;
    _Atomic int32_t quit;
    int32_t more;                            /* written by the last arrival before it moves `phase` */
    hd_job job;
    int32_t threads, teams, spin;
    range *ranges;                           /* [teams] */
    int32_t *before;                         /* [teams + 1] shares of the teams before */
    thread *all;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Spin first: a phase of decode lasts tens of microseconds, a sleep and a wake-up as long again. Then sleep: a thread that
 * waits for the disk must leave its processor to those who fetch the page. */
static void wait_change(hd_teams *t, _Atomic uint32_t *word, uint32_t seen) {
    for (int32_t i = 0; i < t->spin; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
        PAUSE();
    }
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(word) == seen) futex_wait(word, seen);
    atomic_fetch_sub(&t->sleepers, 1);
}

static int guarded_next(hd_teams *t, hd_worker *w) {
    int more;
    HD_GUARD(more = t->job.next(t->job.context, w), {
        t->job.fault(t->job.context, hd_fault_address());
        more = t->job.next(t->job.context, w);   /* sees the failure and ends the job */
    });
    return more;
}

static void run_items(hd_teams *t, hd_worker *w) {
    range *r = &t->ranges[w->team];
    volatile int32_t item = 0;                   /* read after the guard's jump */
    volatile int again;
    do {
        again = 0;
        HD_GUARD(
            while ((item = atomic_fetch_add_explicit(&r->at, 1, memory_order_relaxed)) < r->end)
                t->job.run(t->job.context, w, item),
            again = t->job.item_fault && t->job.item_fault(t->job.context, item, hd_fault_address());
            if (!again) t->job.fault(t->job.context, hd_fault_address()));
    } while (again);
}

static void run_job(thread *self) {
    hd_teams *t = self->teams;
    for (;;) {
        uint32_t seen = atomic_load_explicit(&t->phase, memory_order_acquire);
        if (atomic_fetch_add(&t->arrived, 1) + 1 == t->threads) {
            atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
            int more = guarded_next(t, &self->worker);
            t->more = more;
            atomic_store(&t->phase, seen + 1);
            if (atomic_load(&t->sleepers)) futex_wake(&t->phase);
            if (!more) {
                atomic_fetch_add(&t->jobs_done, 1);
                futex_wake(&t->jobs_done);
                return;
            }
        } else {
            wait_change(t, &t->phase, seen);
            if (!t->more) return;
        }
        run_items(t, &self->worker);
    }
}

static void *thread_main(void *argument) {
    thread *self = argument;
    hd_teams *t = self->teams;
    pthread_setname_np(pthread_self(), "hearthd-team");
    if (self->cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(self->cpu, &set);
        pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    }
    /* A thread may be late for the end of a job (others already returned), never for its beginning: the next job starts
     * only with all of them at the barrier. */
    for (uint32_t seen = 0;; seen++) {
        wait_change(t, &t->job_number, seen);
        if (atomic_load(&t->quit)) return NULL;
        run_job(self);
    }
}

hd_teams *hd_teams_new(int32_t threads, const int32_t *cpus, const int32_t *team_of, const int32_t *shares, int32_t spin) {
    hd_teams *t = aligned_alloc(64, (sizeof *t + 63) & ~(size_t)63);
    if (!t) return NULL;
    memset(t, 0, sizeof *t);
    t->spin = spin;
    t->teams = team_of[threads - 1] + 1;
    t->ranges = aligned_alloc(64, sizeof(range) * (size_t)t->teams);
    t->all = calloc((size_t)threads, sizeof(thread));
    t->before = calloc((size_t)t->teams + 1, sizeof(int32_t));
    if (!t->ranges || !t->all || !t->before) {
        hd_teams_free(t);
        return NULL;
    }
    for (int32_t i = 0; i < threads; i++) t->before[team_of[i] + 1] = i + 1;
    for (int32_t k = 0; shares && k < t->teams; k++) t->before[k + 1] = t->before[k] + shares[k];
    memset(t->ranges, 0, sizeof(range) * (size_t)t->teams);
    hd_fault_install();
    /* Signals are the main thread's business. */
    sigset_t every, before;
    sigfillset(&every);
    sigdelset(&every, SIGBUS);
    sigdelset(&every, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    for (int32_t i = 0; i < threads; i++) {
        thread *th = &t->all[i];
        th->teams = t;
        th->cpu = cpus[i];
        th->worker.index = i;
        th->worker.team = team_of[i];
        if (pthread_create(&th->handle, NULL, thread_main, th)) break;
        t->threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (t->threads < threads) {
        hd_teams_free(t);
        return NULL;
    }
    return t;
}

void hd_teams_free(hd_teams *t) {
    if (!t) return;
    atomic_store(&t->quit, 1);
    atomic_fetch_add(&t->job_number, 1);
    futex_wake(&t->job_number);
    for (int32_t i = 0; i < t->threads; i++) {
        pthread_join(t->all[i].handle, NULL);
        free(t->all[i].worker.scratch);
    }
    free(t->all);
    free(t->ranges);
    free(t->before);
    free(t);
}

int32_t hd_teams_count(const hd_teams *t) { return t->teams; }
int32_t hd_teams_threads(const hd_teams *t) { return t->threads; }

int32_t hd_teams_size(const hd_teams *t, int32_t team) {
    int32_t n = 0;
    for (int32_t i = 0; i < t->threads; i++) n += t->all[i].worker.team == team;
    return n;
}

void hd_teams_share(const hd_teams *t, int32_t team, int64_t n, int64_t *a, int64_t *b) {
    *a = n * t->before[team] / t->before[t->teams];
    *b = n * t->before[team + 1] / t->before[t->teams];
}

void hd_teams_run(hd_teams *t, const hd_job *job) {
    uint32_t done = atomic_load(&t->jobs_done);
    t->job = *job;
    atomic_fetch_add(&t->job_number, 1);
    futex_wake(&t->job_number);
    while (atomic_load(&t->jobs_done) == done) futex_wait(&t->jobs_done, done);
}

void hd_teams_publish(hd_teams *t, int32_t team, int32_t begin, int32_t end) {
    t->ranges[team].end = end;
    atomic_store_explicit(&t->ranges[team].at, begin, memory_order_relaxed);
}

void *hd_worker_scratch(hd_worker *w, size_t bytes) {
    if (bytes > w->scratch_bytes) {
        free(w->scratch);
        w->scratch_bytes = (bytes + 4095) & ~(size_t)4095;
        w->scratch = aligned_alloc(4096, w->scratch_bytes);
        if (!w->scratch) w->scratch_bytes = 0;
    }
    return w->scratch;
}
