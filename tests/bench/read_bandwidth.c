/* Reads a range of memory with pinned threads and nothing else: the yardstick that generation is held against.
 * Owns the loop and the timing; allocating and mapping stay with machine.py. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

typedef uint64_t vec __attribute__((vector_size(64), aligned(64)));

/* 16 accumulators hide the latency of the adds; the sum is returned so that the loads cannot be dropped. */
__attribute__((target_clones("arch=x86-64-v4", "avx2", "default"), noinline)) static uint64_t
read_range(const uint8_t *p, size_t bytes)
{
    vec a[16] = {{0}};
    for (size_t i = 0; i + 1024 <= bytes; i += 1024)
        for (int j = 0; j < 16; j++)
            a[j] += *(const vec *)(p + i + 64 * (size_t)j);
    uint64_t sum = 0;
    for (int j = 0; j < 16; j++)
        for (int l = 0; l < 8; l++)
            sum += a[j][l];
    return sum;
}

typedef struct job {
    const uint8_t *base;
    size_t bytes;
    int cpu, passes;
    pthread_mutex_t *gate; /* held until all threads are there, or will not come */
    pthread_barrier_t *barrier;
    uint64_t sum;
    double *seconds; /* [passes], written by the thread that has it */
} job;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *run(void *argument)
{
    job *j = argument;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(j->cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    pthread_mutex_lock(j->gate);
    pthread_mutex_unlock(j->gate);
    for (int i = 0; i < j->passes; i++) {
        pthread_barrier_wait(j->barrier);
        double start = now();
        j->sum += read_range(j->base, j->bytes);
        pthread_barrier_wait(j->barrier);
        if (j->seconds)
            j->seconds[i] = now() - start;
    }
    return NULL;
}

/* Each of n <= 64 threads reads its share of [base, base + bytes), passes times; seconds[passes] gets each pass' time.
 * Returns the sum of the words, or 0 when threads cannot be had. */
uint64_t bench_read(const uint8_t *base, size_t bytes, int n, const int *cpus, int passes, double *seconds)
{
    pthread_t threads[64];
    job jobs[64];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_barrier_t barrier;
    if (n < 1 || n > 64 || pthread_barrier_init(&barrier, NULL, (unsigned)n))
        return 0;
    size_t share = bytes / (size_t)n & ~(size_t)1023;
    uint64_t sum = 0;
    int there = 0;
    pthread_mutex_lock(&gate);
    for (; there < n; there++) {
        jobs[there] = (job){base + share * (size_t)there, share, cpus[there], passes, &gate, &barrier, 0,
                            there ? NULL : seconds};
        if (there && pthread_create(&threads[there], NULL, run, &jobs[there]))
            break;
    }
    for (int i = 0; there < n && i < there; i++)
        jobs[i].passes = 0;
    pthread_mutex_unlock(&gate);
    cpu_set_t before;
    pthread_getaffinity_np(pthread_self(), sizeof before, &before);
    run(&jobs[0]);
    pthread_setaffinity_np(pthread_self(), sizeof before, &before);
    for (int i = 1; i < there; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < there; i++)
        sum += jobs[i].sum;
    pthread_barrier_destroy(&barrier);
    return sum;
}
