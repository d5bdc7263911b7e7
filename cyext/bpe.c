/* Byte-level BPE: see bpe.h. Spelling of bytes as in GPT-2's encoder.py; merging as in Sennrich et al. 2016. */
#include "bpe.h"
#include "merging.h"

#include <stdlib.h>
#include <string.h>

#define NO_TOKEN UINT32_MAX
#define NO_RANK UINT32_MAX
#define LONGEST (8u << 20) /* bytes merged as one: merging takes some thirty times as many */
#define SCAN_LIMIT 48 /* up to so many symbols rescanning a row beats keeping a heap */

typedef struct {
    uint32_t left, right, rank, result; /* rank NO_RANK: free */
} merge_slot;

struct hd_bpe {
    char *text;
    size_t *starts; /* n_tokens + 1 */
    uint32_t *slots; /* id + 1, 0: free */
    merge_slot *merges;
    uint32_t slot_mask, merge_mask;
    uint32_t n_tokens, n_merges;
    uint32_t bytes[256]; /* the token of each byte */
    size_t reach;        /* bytes of text that a token stands for at most; SIZE_MAX: bytes may be left out */
};

hd_bpe *hd_bpe_new(uint32_t tokens, size_t text_bytes, uint32_t merges) {
    if (tokens > (1u << 29) || merges > (1u << 29)) return NULL;
    hd_bpe *bpe = calloc(1, sizeof *bpe);
    if (!bpe) return NULL;
    size_t slots = hd_power_over((size_t)tokens * 3 / 2), merge_slots = hd_power_over((size_t)merges * 3 / 2);
    bpe->slot_mask = (uint32_t)(slots - 1);
    bpe->merge_mask = (uint32_t)(merge_slots - 1);
    bpe->text = malloc(text_bytes + 1);
    bpe->starts = malloc(((size_t)tokens + 1) * sizeof *bpe->starts);
    bpe->slots = calloc(slots, sizeof *bpe->slots);
    bpe->merges = malloc(merge_slots * sizeof *bpe->merges);
    if (!bpe->text || !bpe->starts || !bpe->slots || !bpe->merges) {
        hd_bpe_free(bpe);
        return NULL;
    }
    bpe->starts[0] = 0;
    for (size_t i = 0; i < merge_slots; i++) bpe->merges[i].rank = NO_RANK;
    return bpe;
}

void hd_bpe_free(hd_bpe *bpe) {
    if (!bpe) return;
    free(bpe->text);
    free(bpe->starts);
    free(bpe->slots);
    free(bpe->merges);
    free(bpe);
}

/* The slot of a spelling, or the free one where it would go. */
static uint32_t slot_of(const hd_bpe *bpe, const char *text, size_t n) {
    uint32_t at = hd_hash_text(text, n) & bpe->slot_mask;
    for (uint32_t id; (id = bpe->slots[at]) != 0; at = (at + 1) & bpe->slot_mask) {
        size_t start = bpe->starts[id - 1];
        if (bpe->starts[id] - start == n && memcmp(bpe->text + start, text, n) == 0) break;
    }
    return at;
}

/* A byte as the character that spells it, in UTF-8: itself where it prints in Latin-1, else counted up from U+0100. */
static size_t spell(uint8_t byte, char *out) {
    uint32_t c = byte;
    if (byte <= 0x20) c = 0x100 + byte;
    else if (byte >= 0x7f && byte <= 0xa0) c = 0x121 + byte - 0x7f;
    else if (byte == 0xad) c = 0x143;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

void hd_bpe_token(hd_bpe *bpe, const char *text, size_t n) {
    uint32_t id = bpe->n_tokens++, at;
    size_t start = bpe->starts[id];
    memcpy(bpe->text + start, text, n);
    bpe->starts[id + 1] = start + n;
    at = slot_of(bpe, text, n);
    if (bpe->slots[at] == 0) bpe->slots[at] = id + 1;
}

int32_t hd_bpe_find(const hd_bpe *bpe, const char *text, size_t n) {
    return (int32_t)bpe->slots[slot_of(bpe, text, n)] - 1;
}

void hd_bpe_bytes(hd_bpe *bpe) {
    char spelled[2];
    for (int byte = 0; byte < 256; byte++) /* -1 becomes NO_TOKEN */
        bpe->bytes[byte] = (uint32_t)hd_bpe_find(bpe, spelled, spell((uint8_t)byte, spelled));
    bpe->reach = 1;
    for (uint32_t id = 0; id < bpe->n_tokens; id++) {
        size_t n = bpe->starts[id + 1] - bpe->starts[id];
        if (n > bpe->reach) bpe->reach = n;
    }
    for (int byte = 0; byte < 0xf5; byte++) /* 0xc0, 0xc1 and those above are in no text */
        if (bpe->bytes[byte] == NO_TOKEN && byte != 0xc0 && byte != 0xc1) bpe->reach = SIZE_MAX;
}

size_t hd_bpe_reach(const hd_bpe *bpe) { return bpe->reach; }

static merge_slot *merge_of(const hd_bpe *bpe, uint32_t left, uint32_t right) {
    uint64_t hash = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    uint32_t at = (uint32_t)(hash >> 32) & bpe->merge_mask;
    merge_slot *slot;
    while ((slot = &bpe->merges[at])->rank != NO_RANK && (slot->left != left || slot->right != right))
        at = (at + 1) & bpe->merge_mask;
    return slot;
}

int hd_bpe_merge(hd_bpe *bpe, const char *pair, size_t n) {
    uint32_t rank = bpe->n_merges++;
    const char *space = n > 2 ? memchr(pair + 1, ' ', n - 2) : NULL;
    if (!space) return 0;
    size_t left_n = (size_t)(space - pair), right_n = n - left_n - 1;
    int32_t left = hd_bpe_find(bpe, pair, left_n), right = hd_bpe_find(bpe, space + 1, right_n);
    if (left < 0 || right < 0) return 0;
    char small[256], *joined = n <= sizeof small ? small : malloc(n);
    if (!joined) return 0;
    memcpy(joined, pair, left_n);
    memcpy(joined + left_n, space + 1, right_n);
    int32_t result = hd_bpe_find(bpe, joined, n - 1);
    if (joined != small) free(joined);
    if (result < 0) return 0;
    merge_slot *slot = merge_of(bpe, (uint32_t)left, (uint32_t)right);
    if (slot->rank == NO_RANK) *slot = (merge_slot){(uint32_t)left, (uint32_t)right, rank, (uint32_t)result};
    return 1;
}

static size_t merge_scan(const hd_bpe *bpe, uint32_t *ids, size_t n) {
    uint32_t ranks[SCAN_LIMIT], results[SCAN_LIMIT]; /* of the pair that begins there */
    for (size_t i = 0; i + 1 < n; i++) {
        merge_slot *slot = merge_of(bpe, ids[i], ids[i + 1]);
        ranks[i] = slot->rank;
        results[i] = slot->result;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best]) best = i;
        if (ranks[best] == NO_RANK) break;
        ids[best] = results[best];
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        n--;
        if (best + 1 < n) {
            memmove(ranks + best + 1, ranks + best + 2, (n - best - 2) * sizeof *ranks);
            memmove(results + best + 1, results + best + 2, (n - best - 2) * sizeof *results);
        }
        for (size_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            merge_slot *slot = merge_of(bpe, ids[i], ids[i + 1]);
            ranks[i] = slot->rank;
            results[i] = slot->result;
        }
    }
    return n;
}

/* An entry is rank << 32 | place, so the heap's order is the merges' order. It is stale unless the pair that now begins
 * at its place has its rank. */
static ptrdiff_t merge_heap(const hd_bpe *bpe, uint32_t *ids, size_t n) {
    uint64_t *heap = malloc(2 * n * sizeof *heap); /* n - 1 at first; a merge takes one away and adds two */
    uint32_t *links = malloc(2 * n * sizeof *links), *next = links, *prev = links + n;
    if (!heap || !links) {
        free(heap);
        free(links);
        return HD_BPE_NO_MEMORY;
    }
    size_t pending = 0, count = 0;
    for (size_t i = 0; i < n; i++) {
        next[i] = (uint32_t)i + 1; /* n: the end */
        prev[i] = (uint32_t)i - 1; /* UINT32_MAX: the start */
        uint32_t rank = i + 1 < n ? merge_of(bpe, ids[i], ids[i + 1])->rank : NO_RANK;
        if (rank != NO_RANK) heap[pending++] = (uint64_t)rank << 32 | i;
    }
    for (size_t i = pending / 2; i-- > 0;) hd_heap_sift(heap, pending, i);
    while (pending) {
        uint64_t entry = heap[0];
        heap[0] = heap[--pending];
        if (pending) hd_heap_sift(heap, pending, 0);
        uint32_t at = (uint32_t)entry, right = next[at];
        if (right == 0 || right >= n) continue; /* swallowed by its left neighbour, or the last */
        merge_slot *slot = merge_of(bpe, ids[at], ids[right]);
        if (slot->rank != entry >> 32) continue;
        ids[at] = slot->result;
        uint32_t follower = next[at] = next[right];
        next[right] = 0; /* no symbol follows the first: marks the swallowed */
        if (follower < n) {
            prev[follower] = at;
            uint32_t rank = merge_of(bpe, ids[at], ids[follower])->rank;
            if (rank != NO_RANK) hd_heap_push(heap, &pending, (uint64_t)rank << 32 | at);
        }
        if (prev[at] != UINT32_MAX) {
            uint32_t rank = merge_of(bpe, ids[prev[at]], ids[at])->rank;
            if (rank != NO_RANK) hd_heap_push(heap, &pending, (uint64_t)rank << 32 | prev[at]);
        }
    }
    for (size_t i = 0; i < n; i = next[i]) ids[count++] = ids[i];
    free(heap);
    free(links);
    return (ptrdiff_t)count;
}

ptrdiff_t hd_bpe_encode(const hd_bpe *bpe, const uint8_t *word, size_t n, int whole, size_t limit, int32_t *out) {
    if (n == 0) return 0;
    if (n > LONGEST || n / bpe->reach > limit) return HD_BPE_TOO_LONG;
    if (whole && n <= 512) { /* tokens are shorter; a longer word is merged like any other */
        char spelled[1024];
        size_t length = 0;
        for (size_t i = 0; i < n; i++) length += spell(word[i], spelled + length);
        int32_t id = hd_bpe_find(bpe, spelled, length);
        if (id >= 0) {
            out[0] = id;
            return 1;
        }
    }
    uint32_t *ids = (uint32_t *)out;
    size_t known = 0;
    for (size_t i = 0; i < n; i++) {
        ids[known] = bpe->bytes[word[i]];
        known += ids[known] != NO_TOKEN;
    }
    if (known == 0) return 0;
    return known <= SCAN_LIMIT ? (ptrdiff_t)merge_scan(bpe, ids, known) : merge_heap(bpe, ids, known);
}
