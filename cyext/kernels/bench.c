#include "bench.h"

typedef uint64_t word2 __attribute__((vector_size(16), aligned(1), may_alias));

uint64_t hd_read_bytes(const uint8_t *p, size_t n) {
    word2 a = {0, 0}, b = a, c = a, d = a;
    for (size_t i = 0; i + 128 <= n; i += 128) {
        const word2 *v = (const word2 *)(const void *)(p + i);
        __builtin_prefetch(p + i + 4096, 0, 3);
        __builtin_prefetch(p + i + 4160, 0, 3);
        a ^= v[0] ^ v[1], b ^= v[2] ^ v[3], c ^= v[4] ^ v[5], d ^= v[6] ^ v[7];
    }
    a ^= b ^ c ^ d;
    return a[0] ^ a[1];
}
