/* SentencePiece's BPE: see sentence.h. Merging as in sentencepiece's bpe_model.cc: of all neighbours that make a token,
 * the pair with the highest score first. A symbol is a range of the text, so a pair is one too and is looked up as it
 * stands. */
#include "sentence.h"
#include "merging.h"

#include <stdlib.h>
#include <string.h>

#define NEVER UINT32_MAX
#define LONGEST (8u << 20) /* characters merged as one: merging takes some forty times as many bytes */
#define SCAN_LIMIT 32 /* up to so many symbols rescanning a row beats keeping a heap */

typedef struct {
    size_t start;
    uint32_t size, id, cost; /* cost: smaller merges first */
} entry;

struct hd_sentence {
    char *text;
    size_t used;
    entry *entries;
    uint32_t *slots; /* entry + 1, 0: free */
    uint64_t *pairs; /* two neighbours' last and first characters; 0: free */
    uint32_t slot_mask, n, longest;
    size_t reach; /* bytes of text that a token stands for at most */
    size_t pair_mask;
    int32_t bytes[256], unknown; /* negative: none */
};

hd_sentence *hd_sentence_new(uint32_t tokens, size_t text_bytes) {
    if (tokens > 1u << 29) return NULL;
    hd_sentence *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    size_t slots = hd_power_over((size_t)tokens * 2);
    s->slot_mask = (uint32_t)(slots - 1);
    s->text = malloc(text_bytes + 1);
    s->entries = malloc(((size_t)tokens + 1) * sizeof *s->entries);
    s->slots = calloc(slots, sizeof *s->slots);
    if (!s->text || !s->entries || !s->slots) {
        hd_sentence_free(s);
        return NULL;
    }
    for (int i = 0; i < 256; i++) s->bytes[i] = -1;
    s->unknown = -1;
    return s;
}

void hd_sentence_free(hd_sentence *s) {
    if (!s) return;
    free(s->text);
    free(s->entries);
    free(s->slots);
    free(s->pairs);
    free(s);
}

static uint32_t slot_of(const hd_sentence *s, const char *text, size_t n) {
    uint32_t at = hd_hash_text(text, n) & s->slot_mask;
    for (uint32_t k; (k = s->slots[at]) != 0; at = (at + 1) & s->slot_mask) {
        const entry *e = &s->entries[k - 1];
        if (e->size == n && memcmp(s->text + e->start, text, n) == 0) break;
    }
    return at;
}

/* Scores in the order of unsigned numbers, the highest first: the bits of an IEEE float sort as integers do, once the
 * negative ones are turned over. */
static uint32_t cost_of(float score) {
    uint32_t bits;
    score += 0.0f; /* -0 and 0 are equals */
    memcpy(&bits, &score, 4);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ~bits == NEVER ? NEVER - 1 : ~bits;
}

void hd_sentence_token(hd_sentence *s, const char *text, size_t n, uint32_t id, float score) {
    if (n == 0 || n > UINT32_MAX / 2) return;
    uint32_t at = slot_of(s, text, n);
    if (s->slots[at] == 0) {
        memcpy(s->text + s->used, text, n);
        s->entries[s->n] = (entry){s->used, (uint32_t)n, 0, 0};
        s->used += n;
        s->slots[at] = ++s->n;
        if (n > s->longest) s->longest = (uint32_t)n;
    }
    entry *e = &s->entries[s->slots[at] - 1];
    e->id = id;
    e->cost = cost_of(score);
}

void hd_sentence_byte(hd_sentence *s, uint8_t byte, uint32_t id) { s->bytes[byte] = (int32_t)id; }

void hd_sentence_unknown(hd_sentence *s, uint32_t id) { s->unknown = (int32_t)id; }

/* Bytes of the character that begins here; 1 for what begins none. */
static size_t width(const uint8_t *text, size_t left) {
    size_t n = *text < 0xc0 ? 1 : *text < 0xe0 ? 2 : *text < 0xf0 ? 3 : 4;
    return n <= left ? n : 1;
}

static uint64_t pair_key(const uint8_t *a, size_t na, const uint8_t *b, size_t nb) {
    uint64_t key = 0;
    for (size_t i = 0; i < na; i++) key = key << 8 | a[i];
    for (size_t i = 0; i < 4; i++) key = key << 8 | (i < nb ? b[i] : 0);
    return key ? key : 1; /* 0 marks a free place; two zero bytes share 1 with nothing that text can hold */
}

static size_t pair_place(const hd_sentence *s, uint64_t key) {
    size_t at = (size_t)(key * 0x9e3779b97f4a7c15u >> 32) & s->pair_mask;
    while (s->pairs[at] && s->pairs[at] != key) at = (at + 1) & s->pair_mask;
    return at;
}

int hd_sentence_finish(hd_sentence *s) {
    size_t room = hd_power_over(s->used * 2); /* fewer pairs than bytes */
    s->pairs = calloc(room, sizeof *s->pairs);
    if (!s->pairs) return HD_SENTENCE_NO_MEMORY;
    s->pair_mask = room - 1;
    s->reach = s->longest > 4 ? s->longest : 4;
    for (int byte = 0; byte < 0xf5; byte++) /* what is left out counts for nothing; 0xc0 and 0xc1 are in no text */
        if (s->unknown < 0 && s->bytes[byte] < 0 && byte != 0xc0 && byte != 0xc1) s->reach = SIZE_MAX;
    for (uint32_t k = 0; k < s->n; k++) {
        const uint8_t *text = (const uint8_t *)s->text + s->entries[k].start;
        size_t n = s->entries[k].size, at = 0, w = width(text, n);
        while (at + w < n) {
            size_t next = width(text + at + w, n - at - w);
            uint64_t key = pair_key(text + at, w, text + at + w, next);
            s->pairs[pair_place(s, key)] = key;
            at += w;
            w = next;
        }
    }
    return 0;
}

typedef struct {
    uint32_t start, size, prev, next, cost; /* cost: of merging with the next one */
} symbol;

typedef struct {
    const hd_sentence *s;
    const uint8_t *text;
    symbol *symbols;
    uint64_t *heap;
    size_t room, heap_room;
    int32_t *out;
    size_t n_out, out_room;
} work;

static uint32_t pair_cost(const work *w, const symbol *a, const symbol *b) {
    size_t n = (size_t)a->size + b->size;
    if (n > w->s->longest) return NEVER;
    uint32_t k = w->s->slots[slot_of(w->s, (const char *)w->text + a->start, n)];
    return k ? w->s->entries[k - 1].cost : NEVER;
}

static void merge_scan(work *w, size_t *n) {
    symbol *y = w->symbols;
    for (size_t i = 0; i + 1 < *n; i++) y[i].cost = pair_cost(w, &y[i], &y[i + 1]);
    while (*n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < *n; i++)
            if (y[i].cost < y[best].cost) best = i;
        if (y[best].cost == NEVER) break;
        y[best].size += y[best + 1].size;
        memmove(y + best + 1, y + best + 2, (*n - best - 2) * sizeof *y);
        (*n)--;
        y[best].cost = best + 1 < *n ? pair_cost(w, &y[best], &y[best + 1]) : NEVER;
        if (best) y[best - 1].cost = pair_cost(w, &y[best - 1], &y[best]);
    }
}

/* An entry is cost << 32 | place: the heap's order is the merges' order. It is stale unless the pair that now begins at
 * its place costs the same; that pair then has an equal entry of its own, so it is its turn as well. */
static int merge_heap(work *w, size_t *n) {
    symbol *y = w->symbols;
    size_t count = *n, pending = 0, kept = 0;
    if (2 * count > w->heap_room) { /* count - 1 at first; a merge takes one away and adds two */
        uint64_t *larger = realloc(w->heap, 2 * count * sizeof *larger);
        if (!larger) return HD_SENTENCE_NO_MEMORY;
        w->heap = larger;
        w->heap_room = 2 * count;
    }
    for (size_t i = 0; i < count; i++) {
        y[i].prev = (uint32_t)i - 1; /* UINT32_MAX: the start */
        y[i].next = (uint32_t)i + 1; /* count: the end */
        y[i].cost = i + 1 < count ? pair_cost(w, &y[i], &y[i + 1]) : NEVER;
        if (y[i].cost != NEVER) w->heap[pending++] = (uint64_t)y[i].cost << 32 | i;
    }
    for (size_t i = pending / 2; i-- > 0;) hd_heap_sift(w->heap, pending, i);
    while (pending) {
        uint64_t first = w->heap[0];
        w->heap[0] = w->heap[--pending];
        if (pending) hd_heap_sift(w->heap, pending, 0);
        uint32_t at = (uint32_t)first;
        if (y[at].cost != first >> 32) continue;
        symbol *left = &y[at], *right = &y[left->next];
        left->size += right->size;
        left->next = right->next;
        right->size = 0;
        right->cost = left->cost = NEVER;
        if (left->next < count) {
            y[left->next].prev = at;
            left->cost = pair_cost(w, left, &y[left->next]);
            if (left->cost != NEVER) hd_heap_push(w->heap, &pending, (uint64_t)left->cost << 32 | at);
        }
        if (left->prev != UINT32_MAX) {
            symbol *before = &y[left->prev];
            before->cost = pair_cost(w, before, left);
            if (before->cost != NEVER) hd_heap_push(w->heap, &pending, (uint64_t)before->cost << 32 | left->prev);
        }
    }
    for (size_t i = 0; i < count; i++)
        if (y[i].size) y[kept++] = y[i];
    *n = kept;
    return 0;
}

static int emit(work *w, int32_t id) {
    if (w->n_out == w->out_room) {
        size_t room = w->out_room ? 2 * w->out_room : 256;
        int32_t *larger = realloc(w->out, room * sizeof *larger);
        if (!larger) return HD_SENTENCE_NO_MEMORY;
        w->out = larger;
        w->out_room = room;
    }
    w->out[w->n_out++] = id;
    return 0;
}

/* The first n symbols, which stand side by side. */
static int encode_piece(work *w, size_t n) {
    if (n <= SCAN_LIMIT) merge_scan(w, &n);
    else if (merge_heap(w, &n)) return HD_SENTENCE_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        const symbol *y = &w->symbols[i];
        uint32_t k = w->s->slots[slot_of(w->s, (const char *)w->text + y->start, y->size)];
        if (k) {
            if (emit(w, (int32_t)w->s->entries[k - 1].id)) return HD_SENTENCE_NO_MEMORY;
            continue;
        }
        const uint8_t *bytes = w->text + y->start;
        int spelled = 1;
        for (uint32_t b = 0; b < y->size; b++) spelled = spelled && w->s->bytes[bytes[b]] >= 0;
        for (uint32_t b = 0; spelled && b < y->size; b++)
            if (emit(w, w->s->bytes[bytes[b]])) return HD_SENTENCE_NO_MEMORY;
        if (!spelled && w->s->unknown >= 0 && emit(w, w->s->unknown)) return HD_SENTENCE_NO_MEMORY;
    }
    return 0;
}

ptrdiff_t hd_sentence_encode(const hd_sentence *s, const uint8_t *text, size_t n, size_t limit, int32_t **out) {
    work w = {.s = s, .text = text};
    size_t count = 0, at = 0;
    ptrdiff_t failed = n / s->reach > limit ? HD_SENTENCE_TOO_LONG : n < UINT32_MAX / 4 ? 0 : HD_SENTENCE_NO_MEMORY;
    while (at < n && !failed) {
        size_t size = width(text + at, n - at);
        if (count == w.room) {
            size_t room = w.room ? 2 * w.room : 256;
            symbol *larger = realloc(w.symbols, room * sizeof *larger);
            if (!larger) {
                failed = HD_SENTENCE_NO_MEMORY;
                break;
            }
            w.symbols = larger;
            w.room = room;
        }
        w.symbols[count++] = (symbol){.start = (uint32_t)at, .size = (uint32_t)size};
        at += size;
        if (at < n) {
            uint64_t key = pair_key(text + at - size, size, text + at, width(text + at, n - at));
            if (s->pairs[pair_place(s, key)]) {
                if (count > LONGEST) failed = HD_SENTENCE_TOO_LONG;
                continue;
            }
        }
        failed = encode_piece(&w, count);
        count = 0;
        if (!failed && w.n_out > limit) failed = HD_SENTENCE_TOO_LONG;
    }
    free(w.symbols);
    free(w.heap);
    *out = w.out;
    return failed ? failed : (ptrdiff_t)w.n_out;
}
