/* Owns the slots of an arena and the O_DIRECT descriptors that fill them. Decides nothing about what is in them. */
#define _GNU_SOURCE
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE ((uint64_t)4096)
#define SIZES 16
#define BEHIND 64 /* bytes that kernels may read past a span's end */

typedef struct room {       /* all slots of one size, side by side */
    uint64_t nbytes, slot;  /* of a span; of its slot */
    uint8_t *base;
    int32_t n, n_free;
    int32_t *free;          /* a stack: those with memory come last and are taken first */
    uint8_t *touched;       /* [n] has memory */
} room;

struct hd_arena {
    const hd_mapping *mapping;
    int32_t n, sizes;
    const int32_t *file;
    const uint64_t *offset, *nbytes;
    int8_t *size_of;        /* [spans] or -1 */
    int32_t *slot;          /* [spans] or -1 */
    int *fd;
    uint8_t *reserved;
    uint64_t reserved_bytes, capacity, taken, limit;
    room room[SIZES];
};

static uint64_t down(uint64_t x, uint64_t to) { return x / to * to; }
static uint64_t up(uint64_t x, uint64_t to) { return (x + to - 1) / to * to; }

static int lay_out(hd_arena *a, const uint8_t *member, uint64_t bytes) {
    uint64_t share[SIZES] = {0}, total = 0;
    for (int32_t s = 0; s < a->n; s++) {
        a->slot[s] = a->size_of[s] = -1;
        if (!member[s] || !a->nbytes[s]) continue;
        int32_t k = 0;
        while (k < a->sizes && a->room[k].nbytes != a->nbytes[s]) k++;
        if (k == SIZES) continue; /* of a seldom size: stays in the mapping */
        if (k == a->sizes) {
            a->sizes++;
            /* A span begins and ends within pages that are read whole; the next slot is readable behind it. */
            a->room[k].nbytes = a->nbytes[s];
            a->room[k].slot = up(a->nbytes[s], PAGE) + PAGE;
        }
        a->size_of[s] = (int8_t)k;
        share[k] += a->nbytes[s];
        total += a->nbytes[s];
    }
    if (!total) return ENOSPC;
    for (int32_t k = 0; k < a->sizes; k++) {
        room *r = &a->room[k];
        r->n = (int32_t)((double)bytes * ((double)share[k] / (double)total) / (double)r->slot);
        if (r->n < 1) return ENOSPC;
        r->free = malloc(sizeof(int32_t) * (size_t)r->n);
        r->touched = calloc(1, (size_t)r->n);
        if (!r->free || !r->touched) return ENOMEM;
        for (int32_t i = 0; i < r->n; i++) r->free[i] = r->n - 1 - i;
        r->n_free = r->n;
        a->capacity += r->slot * (uint64_t)r->n;
    }
    a->reserved_bytes = up(a->capacity + BEHIND, HD_HUGE) + HD_HUGE;
    void *got = mmap(NULL, a->reserved_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) return errno;
    a->reserved = got;
    uint8_t *at = (uint8_t *)(uintptr_t)up((uint64_t)(uintptr_t)got, HD_HUGE);
    /* O_DIRECT into 4 KiB pages meets the device's limit of segments: a third of the rate. */
    madvise(at, up(a->capacity, HD_HUGE), MADV_HUGEPAGE);
    for (int32_t k = 0; k < a->sizes; k++) {
        a->room[k].base = at;
        at += a->room[k].slot * (uint64_t)a->room[k].n;
    }
    return 0;
}

hd_arena *hd_arena_new(const hd_mapping *mapping, int32_t n, const uint8_t *member, const int32_t *file,
                       const uint64_t *offset, const uint64_t *nbytes, uint64_t bytes) {
    hd_arena *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->mapping = mapping;
    a->n = n;
    a->file = file;
    a->offset = offset;
    a->nbytes = nbytes;
    a->size_of = malloc((size_t)n + 1);
    a->slot = malloc(sizeof(int32_t) * ((size_t)n + 1));
    a->fd = malloc(sizeof(int) * (size_t)mapping->n);
    int error = !a->size_of || !a->slot || !a->fd ? ENOMEM : 0;
    for (int32_t i = 0; a->fd && i < mapping->n; i++) a->fd[i] = -1;
    for (int32_t i = 0; !error && i < mapping->n; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", mapping->fd[i]);
        if ((a->fd[i] = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC)) < 0) error = errno;
    }
    if (!error) error = lay_out(a, member, bytes);
    if (!error) {
        a->limit = a->capacity;
        return a;
    }
    hd_arena_free(a);
    errno = error;
    return NULL;
}

void hd_arena_free(hd_arena *a) {
    if (!a) return;
    for (int32_t i = 0; a->fd && i < a->mapping->n; i++)
        if (a->fd[i] >= 0) close(a->fd[i]);
    for (int32_t k = 0; k < a->sizes; k++) {
        free(a->room[k].free);
        free(a->room[k].touched);
    }
    if (a->reserved) munmap(a->reserved, a->reserved_bytes);
    free(a->size_of);
    free(a->slot);
    free(a->fd);
    free(a);
}

int hd_arena_member(const hd_arena *a, int32_t span) { return a->size_of[span] >= 0; }
int hd_arena_has(const hd_arena *a, int32_t span) { return a->slot[span] >= 0; }
int32_t hd_arena_size_of(const hd_arena *a, int32_t span) { return a->size_of[span]; }
uint64_t hd_arena_capacity(const hd_arena *a) { return a->capacity; }
uint64_t hd_arena_taken(const hd_arena *a) { return a->taken; }

int hd_arena_take(hd_arena *a, int32_t span) {
    if (a->slot[span] >= 0) return 1;
    if (a->size_of[span] < 0) return 0;
    room *r = &a->room[a->size_of[span]];
    if (!r->n_free) return 0;
    int32_t slot = r->free[r->n_free - 1];
    if (!r->touched[slot]) {
        if (a->taken + r->slot > a->limit) return 0;
        r->touched[slot] = 1;
        a->taken += r->slot;
    }
    r->n_free--;
    a->slot[span] = slot;
    return 1;
}

void hd_arena_put(hd_arena *a, int32_t span) {
    if (a->slot[span] < 0) return;
    room *r = &a->room[a->size_of[span]];
    r->free[r->n_free++] = a->slot[span];
    a->slot[span] = -1;
}

static uint8_t *slot_of(const hd_arena *a, int32_t span) {
    const room *r = &a->room[a->size_of[span]];
    return r->base + r->slot * (uint64_t)a->slot[span];
}

const uint8_t *hd_arena_at(const hd_arena *a, int32_t span) { return slot_of(a, span) + a->offset[span] % PAGE; }

int hd_arena_read(const hd_arena *a, int32_t span, uint64_t begin, uint64_t end, uint64_t *failed_at) {
    uint64_t at = down(begin, PAGE), stop = up(end, PAGE), origin = down(a->offset[span], PAGE);
    uint8_t *to = slot_of(a, span);
    uint64_t step = stop - at;
    while (at < end) {
        ssize_t got = pread(a->fd[a->file[span]], to + (at - origin), stop - at < step ? stop - at : step, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && step > PAGE) { /* which page is it? */
            step = PAGE;
            continue;
        }
        if (got <= 0) {
            *failed_at = at < begin ? begin : at;
            return got ? errno : ENODATA;
        }
        at += (uint64_t)got;
        if (at < end && at % PAGE) { /* a file that ends here: the next read could not be aligned */
            *failed_at = at;
            return ENODATA;
        }
    }
    return 0;
}

uint64_t hd_arena_limit(hd_arena *a, uint64_t bytes) {
    a->limit = bytes;
    for (int32_t k = 0; k < a->sizes && a->taken > bytes; k++) {
        room *r = &a->room[k];
        for (int32_t i = r->n_free - 1; i >= 0 && a->taken > bytes; i--) {
            int32_t slot = r->free[i];
            if (!r->touched[slot]) continue;
            madvise(r->base + r->slot * (uint64_t)slot, r->slot, MADV_DONTNEED);
            r->touched[slot] = 0;
            a->taken -= r->slot;
        }
        /* Those without memory to the bottom of the stack. */
        int32_t bottom = 0;
        for (int32_t i = 0; i < r->n_free; i++) {
            int32_t slot = r->free[i];
            if (r->touched[slot]) continue;
            r->free[i] = r->free[bottom];
            r->free[bottom++] = slot;
        }
    }
    return a->taken;
}
