/* Where pages lie, and how to get them to the node that reads them. Mechanism only: whose page is whose is decided
 * elsewhere. Nodes are numbered as the kernel numbers them; functions return 0 or an errno. */
#pragma once
#include "mapping.h"

enum hd_policy { HD_POLICY_DEFAULT = 0, HD_POLICY_PREFERRED = 1, HD_POLICY_INTERLEAVE = 3 };   /* linux/mempolicy.h */

/* Whose the pages of files are. In file f, pages from begin[i] on (a multiple of the page size) belong to owner[i], up to
 * begin[i + 1] or the end, for i in [first[f], first[f + 1]); begin[first[f]] is 0. Owner -1: anybody's. */
typedef struct hd_places {
    int32_t files;
    const int64_t *first;      /* [files + 1] */
    const uint64_t *begin;
    const int32_t *owner;
} hd_places;

/* The owner of a byte, and where the stretch that has this owner ends (UINT64_MAX: never). */
int32_t hd_places_at(const hd_places *p, int32_t file, uint64_t offset, uint64_t *end);

/* Policy of the calling thread for memory that it touches first; nodes: bit k for node k. */
int hd_thread_policy(enum hd_policy policy, uint64_t nodes);
/* Policy of a range of anonymous memory, for the pages that are not there yet. */
int hd_bind(void *memory, size_t bytes, enum hd_policy policy, uint64_t nodes);

/* Pages of n ranges by the node that they lie on: counts[n][nodes + 1], the last for pages that are not mapped.
 * address: multiples of the page size. */
int hd_page_counts(int64_t n, const uint64_t *address, const uint64_t *pages, int32_t nodes, int64_t *counts);

/* See that the mapped pages of [begin, end) lie on `node`, from a thread that prefers it. What lies elsewhere is evicted
 * and read again; what cannot be evicted (tmpfs, not yet written back, mapped by others) is moved. *wrong: pages that were
 * on another node; *left: of them those that still are. An error is the reading's: failed_at says where. */
int hd_settle(const hd_mapping *m, int32_t file, uint64_t begin, uint64_t end, int32_t node, uint64_t *wrong,
              uint64_t *left, hd_populated *reread);
