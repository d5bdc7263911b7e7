#define _GNU_SOURCE
#include "memory.h"
#include <malloc.h>
#include <stdint.h>
#include <sys/mman.h>

/* The length stands in a page of its own before the memory, so that huge pages can begin where the memory does. */
#define HEAD 4096u
#define HUGE ((size_t)2 << 20)

typedef struct head { uint8_t *base; size_t whole, bytes; } head;

static head *head_of(void *memory) { return (head *)((uint8_t *)memory - HEAD); }

void *hd_memory_new(size_t bytes) {
    size_t align = bytes >= 2 * HUGE ? HUGE : HEAD;
    size_t whole = bytes + align + HEAD;
    uint8_t *base = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return NULL;
    uint8_t *memory = (uint8_t *)(((uintptr_t)base + HEAD + align - 1) & ~(uintptr_t)(align - 1));
    *head_of(memory) = (head){base, whole, bytes};
    if (align == HUGE) madvise(memory, bytes & ~(HUGE - 1), MADV_HUGEPAGE);
    return memory;
}

void hd_memory_free(void *memory) {
    if (!memory) return;
    head h = *head_of(memory);
    munmap(h.base, h.whole);
}

void hd_memory_small_pages(void *memory) { madvise(memory, head_of(memory)->bytes, MADV_NOHUGEPAGE); }

void hd_memory_release(void *memory) {
    if (memory) madvise(memory, head_of(memory)->bytes, MADV_DONTNEED);
}

size_t hd_pages_resident(const void *pages, size_t bytes) {
    unsigned char there[4096];
    size_t whole = bytes / 4096, found = 0;
    for (size_t at = 0; at < whole; at += sizeof there) {
        size_t n = whole - at < sizeof there ? whole - at : sizeof there;
        if (mincore((uint8_t *)pages + at * 4096, n * 4096, there)) found += n;
        else
            for (size_t k = 0; k < n; k++) found += there[k] & 1;
    }
    return found * 4096;
}

size_t hd_memory_resident(const void *memory) {
    return memory ? hd_pages_resident(memory, (head_of((void *)(uintptr_t)memory)->bytes + 4095) & ~(size_t)4095) : 0;
}

void hd_memory_trim(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}
