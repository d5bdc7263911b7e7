/* Packing of activations in plain C, and the size of what is packed. */
#define HD_NAME(x) x##_c
#include "act_body.h"

size_t hd_act_bytes(hd_act kind, int64_t k) {
    size_t n = (size_t)k, bytes = 0;
    switch (kind) {
    case HD_ACT_F32: bytes = 4 * n; break;
    case HD_ACT_Q8: bytes = n + n / 8 + n / 8 + n / 8; break;
    default: break;
    }
    return (bytes + 63) & ~(size_t)63;
}
