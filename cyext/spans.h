/* The table that mapping, populate queue and program share: where each span lies, and whether it is ready.
 * Plain numbers; who decides is elsewhere. */
#pragma once
#include <stdatomic.h>
#include <stdint.h>
#include <stddef.h>

enum hd_span_state { HD_ABSENT = 0, HD_LOADING = 1, HD_READY = 2, HD_EVICTING = 3, HD_FAILED = 4 };

typedef struct hd_spans {
    int32_t n, nodes;
    const uint8_t **home;                     /* [n] address in the file mapping, always valid to read (it may fault) */
    const uint64_t *nbytes;                   /* [n] */
    const int32_t *layer;                     /* [n] layer, -1 for what belongs to none */
    _Atomic(const uint8_t *) *at;             /* [nodes][n] where that node's threads read it: home, or an arena copy */
    _Atomic uint8_t *state;                   /* [n] enum hd_span_state: READY means populated when last touched */
    _Atomic uint16_t *users;                  /* [n] steps that are reading it now; an evictor leaves these alone */
} hd_spans;

/* A reader announces itself first and looks at the state afterwards; an evictor moves READY to EVICTING first and looks
 * at users afterwards. Sequentially consistent, so one of the two always sees the other. */
static inline int hd_span_acquire(hd_spans *s, int32_t span) {
    atomic_fetch_add(&s->users[span], 1);
    return atomic_load(&s->state[span]) == HD_READY;
}
static inline void hd_span_release(hd_spans *s, int32_t span) { atomic_fetch_sub(&s->users[span], 1); }
static inline const uint8_t *hd_span_at(const hd_spans *s, int32_t node, int32_t span) {
    return atomic_load_explicit(&s->at[(size_t)node * s->n + span], memory_order_acquire);
}
