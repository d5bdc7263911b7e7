#include "bench.h"

#include <string.h>

uint64_t hd_read_bytes(const uint8_t *p, size_t n) {
    uint64_t sums[16] = {0};
    for (size_t i = 0; i + 128 <= n; i += 128) {
        uint64_t v[16];
        memcpy(v, p + i, 128);
        for (int j = 0; j < 16; j++) sums[j] ^= v[j];
    }
    uint64_t all = 0;
    for (int j = 0; j < 16; j++) all ^= sums[j];
    return all;
}
