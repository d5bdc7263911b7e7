/* What both ways of merging symbols share: a hash of spellings, and a heap of pairs that wait, the least first. */
#pragma once
#include <stddef.h>
#include <stdint.h>

static inline size_t hd_power_over(size_t n) { /* the least power of two, from 16 on, that is not below n */
    size_t power = 16;
    while (power < n) power *= 2;
    return power;
}

/* FNV-1a; the finish spreads it over the low bits that index a table. */
static inline uint32_t hd_hash_text(const char *text, size_t n) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) hash = (hash ^ (uint8_t)text[i]) * 0x100000001b3u;
    return (uint32_t)(hash ^ hash >> 32);
}

/* heap[at] has grown: to where it belongs among the n. */
static inline void hd_heap_sift(uint64_t *heap, size_t n, size_t at) {
    uint64_t moved = heap[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= moved) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static inline void hd_heap_push(uint64_t *heap, size_t *n, uint64_t entry) {
    size_t at = (*n)++;
    for (; at && heap[(at - 1) / 2] > entry; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = entry;
}
