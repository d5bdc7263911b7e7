/* Huge-page memory that copies of spans are read into past the page cache (O_DIRECT). Mechanism only: which span gets a
 * slot, and which gives its own up, is decided elsewhere. Not thread-safe but for hd_arena_read: the queue's lock guards it. */
#pragma once
#include "mapping.h"

typedef struct hd_arena hd_arena;

/* bytes: of address space; memory is taken slot by slot. member[n]: spans that may have a slot. Slots are of as many sizes
 * as the members are (at most 16), each size having its members' share of the bytes. NULL: errno; EINVAL where the file
 * system knows no O_DIRECT, ENOSPC where not even one slot of each size fits. */
hd_arena *hd_arena_new(const hd_mapping *mapping, int32_t n, const uint8_t *member, const int32_t *file,
                       const uint64_t *offset, const uint64_t *nbytes, uint64_t bytes);
void hd_arena_free(hd_arena *a);

/* Give a span a slot; 0 if it is no member, or none of its size is free. One that has a slot keeps it. */
int hd_arena_take(hd_arena *a, int32_t span);
void hd_arena_put(hd_arena *a, int32_t span);
int hd_arena_has(const hd_arena *a, int32_t span);
int hd_arena_member(const hd_arena *a, int32_t span);
/* Which of the sizes a member's slot has. */
int32_t hd_arena_size_of(const hd_arena *a, int32_t span);
/* Where the span's bytes begin in its slot; at least 64 readable bytes lie behind its end. */
const uint8_t *hd_arena_at(const hd_arena *a, int32_t span);

/* Read file bytes [begin, end) of a span into its slot, rounded outward to pages. Other threads may read other parts. 0 or
 * errno with *failed_at; ENODATA: the file ends before. */
int hd_arena_read(const hd_arena *a, int32_t span, uint64_t begin, uint64_t end, uint64_t *failed_at);

/* No more than so many bytes of memory from now on: that of free slots goes back to the kernel. Returns what is taken now. */
uint64_t hd_arena_limit(hd_arena *a, uint64_t bytes);
uint64_t hd_arena_capacity(const hd_arena *a);
uint64_t hd_arena_taken(const hd_arena *a);
