/* Names in text: see names.h. The tree's edges are one hash table of (node, byte) -> node: a thousand names have some
 * ten thousand nodes, nearly all with one child. */
#include "names.h"

#include <stdlib.h>
#include <string.h>

#define NO_ID UINT32_MAX

typedef struct {
    uint64_t key; /* (node + 1) << 8 | byte; 0: free */
    uint32_t node;
} edge;

struct hd_names {
    edge *edges;
    uint32_t *ids; /* of the name that ends in a node */
    uint8_t first[256]; /* whether a name begins with the byte */
    size_t mask;
    uint32_t nodes;
};

hd_names *hd_names_new(size_t text_bytes) {
    if (text_bytes >= UINT32_MAX / 4) return NULL;
    hd_names *names = calloc(1, sizeof *names);
    if (!names) return NULL;
    size_t room = 16;
    while (room < 2 * text_bytes) room *= 2;
    names->mask = room - 1;
    names->nodes = 1;
    names->edges = calloc(room, sizeof *names->edges);
    names->ids = malloc((text_bytes + 1) * sizeof *names->ids);
    if (!names->edges || !names->ids) {
        hd_names_free(names);
        return NULL;
    }
    names->ids[0] = NO_ID;
    return names;
}

void hd_names_free(hd_names *names) {
    if (!names) return;
    free(names->edges);
    free(names->ids);
    free(names);
}

static edge *edge_of(const hd_names *names, uint32_t node, uint8_t byte) {
    uint64_t key = ((uint64_t)node + 1) << 8 | byte;
    size_t at = (size_t)(key * 0x9e3779b97f4a7c15u >> 32) & names->mask;
    while (names->edges[at].key && names->edges[at].key != key) at = (at + 1) & names->mask;
    return &names->edges[at];
}

void hd_names_add(hd_names *names, const uint8_t *name, size_t n, uint32_t id) {
    uint32_t node = 0;
    if (n == 0) return;
    names->first[name[0]] = 1;
    for (size_t i = 0; i < n; i++) {
        edge *e = edge_of(names, node, name[i]);
        if (!e->key) {
            *e = (edge){((uint64_t)node + 1) << 8 | name[i], names->nodes};
            names->ids[names->nodes++] = NO_ID;
        }
        node = e->node;
    }
    names->ids[node] = id;
}

size_t hd_names_find(const hd_names *names, const uint8_t *text, size_t n, size_t from, size_t *end, uint32_t *id) {
    for (size_t at = from; at < n; at++) {
        if (!names->first[text[at]]) continue;
        uint32_t node = 0;
        int found = 0;
        for (size_t i = at; i < n; i++) {
            const edge *e = edge_of(names, node, text[i]);
            if (!e->key) break;
            node = e->node;
            if (names->ids[node] == NO_ID) continue;
            found = 1;
            *end = i + 1;
            *id = names->ids[node];
        }
        if (found) return at;
    }
    return n;
}
