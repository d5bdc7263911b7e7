#include "selection.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* A number that is the lower the higher x is. Plus zero first: minus zero is no other value. */
static uint32_t rank(float x)
{
    uint32_t bits;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

static float of_rank(uint32_t rank)
{
    uint32_t bits = rank & 0x80000000u ? rank : ~rank & 0x7fffffffu;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* By halving: next to zero a step from one float to the next changes exp not at all, many times over. */
float hd_limit(float top, double least)
{
    uint32_t in = rank(top), out = rank(-INFINITY);
    while (out - in > 1) {
        uint32_t middle = in + (out - in) / 2;
        if (exp((double)of_rank(middle) - top) >= least)
            in = middle;
        else
            out = middle;
    }
    return of_rank(in);
}

static uint64_t key_of(float x, int32_t token) { return (uint64_t)rank(x) << 32 | (uint32_t)token; }
static float key_value(uint64_t key) { return of_rank((uint32_t)(key >> 32)); }

static int32_t blocks_of(int32_t n) { return (n + HD_SCAN_BLOCK - 1) / HD_SCAN_BLOCK; }
static int32_t length_of(int32_t n, int32_t block)
{
    int32_t rest = n - block * HD_SCAN_BLOCK;
    return rest < HD_SCAN_BLOCK ? rest : HD_SCAN_BLOCK;
}

/* --- room --- */

static size_t rounded(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* Those that stand above the k-th highest of the blocks' maxima are in fewer than k blocks; of those at it k are enough. */
static size_t keys_for(int32_t n, int32_t list)
{
    size_t most = (size_t)list * (HD_SCAN_BLOCK + 1);
    return most < (size_t)n ? most : (size_t)n;
}

static size_t lay_out(hd_row *row, int32_t n, int32_t list, uint8_t *room)
{
    size_t at = 0;
    row->levels = 0;
    for (int32_t count = blocks_of(n);; count = blocks_of(count)) {
        row->counts[row->levels] = count;
        row->peaks[row->levels++] = (float *)(void *)(room + at);
        at += rounded(sizeof(float) * (size_t)count);
        if (count <= HD_SCAN_BLOCK) break;
    }
    row->where = (int32_t *)(void *)(room + at);
    at += rounded(sizeof(int32_t) * ((size_t)row->counts[0] + HD_SCAN_BLOCK));
    row->sums = (double *)(void *)(room + at);
    at += rounded(sizeof(double) * ((size_t)n / HD_SCAN_PIECE + 2));
    row->buckets = (double *)(void *)(room + at);
    at += rounded(sizeof(double) * 2048);
    row->keys = (uint64_t *)(void *)(room + at);
    return at + rounded(sizeof(uint64_t) * keys_for(n, list));
}

size_t hd_row_bytes(int32_t n, int32_t list)
{
    hd_row row;
    static uint8_t nowhere[1];
    return lay_out(&row, n, list, nowhere);
}

void hd_row_place(hd_row *row, const hd_scan *scan, int32_t n, int32_t list, void *room)
{
    row->scan = scan;
    row->n = n;
    lay_out(row, n, list, room);
}

int hd_row_look(hd_row *row, const float *x)
{
    row->x = x;
    int finite = row->scan->peaks(x, row->n, row->peaks[0]);
    for (int32_t level = 1; level < row->levels; level++)
        row->scan->peaks(row->peaks[level - 1], row->counts[level - 1], row->peaks[level]);
    const float *last = row->peaks[row->levels - 1];
    row->top = last[0];
    for (int32_t i = 1; i < row->counts[row->levels - 1]; i++) row->top = last[i] > row->top ? last[i] : row->top;
    return finite;
}

int32_t hd_row_first(hd_row *row)
{
    int32_t block = 0, at;
    while (row->peaks[0][block] < row->top) block++;
    for (at = block * HD_SCAN_BLOCK; row->x[at] < row->top; at++);
    return at;
}

/* --- so many --- */

static void sift(uint64_t *heap, int32_t n, int32_t at)
{
    uint64_t key = heap[at];
    for (int32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= key) break;
        heap[at] = heap[child];
    }
    heap[at] = key;
}

/* A heap of the k lowest so far, the highest of them at its root; then sorted where it stands. */
void hd_lowest(uint64_t *keys, int32_t m, int32_t k)
{
    for (int32_t i = k / 2 - 1; i >= 0; i--) sift(keys, k, i);
    for (int32_t i = k; i < m; i++)
        if (keys[i] < keys[0]) {
            keys[0] = keys[i];
            sift(keys, k, 0);
        }
    for (int32_t n = k - 1; n > 0; n--) {
        uint64_t highest = keys[0];
        keys[0] = keys[n];
        keys[n] = highest;
        sift(keys, n, 0);
    }
}

/* The k highest of x [n], whose blocks' maxima are those of the given level, as sorted keys; how many. The k-th highest of
 * the maxima is no higher than the k-th highest of all, and is found in the same way. */
static int32_t highest(hd_row *row, const float *x, int32_t n, int32_t level, int32_t k)
{
    float least = -FLT_MAX;
    int32_t blocks = level < row->levels ? row->counts[level] : 0, found = 0, equal = 0;
    if (blocks >= k) {
        if (highest(row, row->peaks[level], blocks, level + 1, k) == k) least = key_value(row->keys[k - 1]);
    }
    int32_t *where = row->where + row->counts[0];
    int32_t full = blocks ? row->scan->at_least(row->peaks[level], blocks, least, row->where) : 1;
    for (int32_t b = 0; b < full; b++) {
        int32_t block = blocks ? row->where[b] : 0;
        const float *some = x + block * HD_SCAN_BLOCK;
        int32_t m = row->scan->at_least(some, length_of(n, block), least, where);
        for (int32_t i = 0; i < m; i++) {
            float value = some[where[i]];
            if (value == least && equal++ >= k) continue;
            row->keys[found++] = key_of(value, block * HD_SCAN_BLOCK + where[i]);
        }
    }
    k = found < k ? found : k;
    hd_lowest(row->keys, found, k);
    return k;
}

int32_t hd_row_likeliest(hd_row *row, int32_t k) { return highest(row, row->x, row->n, 0, k); }

/* --- sums, and draws by them --- */

/* The ids up to kept.last, where those at the limit count, and the ids behind them, where they do not. */
static int32_t parts_of(const hd_row *row, hd_kept kept, int32_t begin[3], float least[2])
{
    begin[0] = 0, begin[1] = begin[2] = row->n;
    least[0] = kept.least, least[1] = nextafterf(kept.least, INFINITY);
    if (kept.last >= row->n - 1) return 1;
    begin[1] = kept.last + 1;
    return 2;
}

static int32_t pieces_of(int32_t n) { return (n + HD_SCAN_PIECE - 1) / HD_SCAN_PIECE; }

double hd_row_mass(hd_row *row, hd_kept kept, float slope)
{
    int32_t begin[3], parts, at = 0;
    float least[2];
    double mass = 0;
    parts = parts_of(row, kept, begin, least);
    for (int32_t part = 0; part < parts; part++) {
        int32_t n = begin[part + 1] - begin[part];
        row->scan->masses(row->x + begin[part], n, row->top, slope, least[part], row->sums + at);
        at += pieces_of(n);
    }
    for (int32_t i = 0; i < at; i++) mass += row->sums[i];
    return mass;
}

int32_t hd_row_draw(hd_row *row, hd_kept kept, float slope, double mass, double share)
{
    float w[HD_SCAN_PIECE], least[2];
    int32_t begin[3], parts, at = 0, start = 0, n = 0, last = -1;
    double wanted = share * mass, sum = 0, before = 0;
    float limit = kept.least;
    parts = parts_of(row, kept, begin, least);
    for (int32_t part = 0; part < parts && sum <= wanted; part++)
        for (int32_t i = begin[part]; i < begin[part + 1] && sum <= wanted; i += HD_SCAN_PIECE, at++) {
            if (row->sums[at] <= 0) continue;
            before = sum;
            sum += row->sums[at];
            start = i, limit = least[part];
            n = begin[part + 1] - i < HD_SCAN_PIECE ? begin[part + 1] - i : HD_SCAN_PIECE;
        }
    /* The sum here is made one by one, and may fall short of the piece's by its rounding: then it is the last. */
    row->scan->weights(row->x + start, n, row->top, slope, limit, w);
    sum = before;
    for (int32_t i = 0; i < n; i++) {
        if (w[i] <= 0) continue;
        last = start + i;
        if ((sum += w[i]) > wanted) break;
    }
    return last;
}

/* --- a share --- */

/* One digit of a rank: so many bits from a bit on. */
typedef struct digit { int32_t shift, bits; } digit;
static const digit digits[3] = {{21, 11}, {10, 11}, {0, 10}};

/* Sums by bucket, over those of the kept at least so high whose rank has the digits `prefix` before this one: by this
 * digit. Blocks without one so high are passed over. */
static void tally(hd_row *row, hd_kept kept, float least, uint32_t prefix, digit d, int ones)
{
    float w[HD_SCAN_BLOCK];
    const int32_t above = d.shift + d.bits;
    memset(row->buckets, 0, sizeof(double) * 2048);
    if (least < kept.least) least = kept.least;
    for (int32_t i = 0; i < HD_SCAN_BLOCK; i++) w[i] = 1;
    for (int32_t block = 0; block < row->counts[0]; block++) {
        if (row->peaks[0][block] < least) continue;
        int32_t first = block * HD_SCAN_BLOCK, n = length_of(row->n, block);
        const float *some = row->x + first;
        if (!ones) row->scan->weights(some, n, row->top, 1.0f, least, w);
        for (int32_t i = 0; i < n; i++) {
            uint32_t r = rank(some[i]);
            if (some[i] < least || (uint64_t)r >> above != prefix) continue;
            if (some[i] == kept.least && first + i > kept.last) continue;
            row->buckets[r >> d.shift & ((1u << d.bits) - 1)] += w[i];
        }
    }
}

/* The bucket in which the running sum reaches `wanted`; *before: the sum of those before it. -1: none. */
static int32_t reached(const hd_row *row, double wanted, double *before)
{
    double sum = *before;
    for (int32_t i = 0; i < 2048; i++) {
        if (row->buckets[i] > 0 && sum + row->buckets[i] >= wanted) {
            *before = sum;
            return i;
        }
        sum += row->buckets[i];
    }
    return -1;
}

/* Three passes, each by the next digit; the last leaves one value, of which the first so many tokens count. */
hd_kept hd_row_fewest(hd_row *row, hd_kept kept, double wanted, int ones)
{
    uint32_t prefix = 0;
    double before = 0;
    int32_t bucket = -1;
    if (!ones) { /* what is far below the likeliest is seldom needed, and most blocks have nothing else */
        tally(row, kept, row->top - 8, 0, digits[0], 0);
        bucket = reached(row, wanted, &before);
    }
    if (bucket < 0) {
        tally(row, kept, kept.least, 0, digits[0], ones);
        bucket = reached(row, wanted, &before);
    }
    if (bucket < 0) return kept; /* short by the rounding of another order: all */
    prefix = (uint32_t)bucket;
    for (int32_t step = 1; step < 3; step++) {
        float lowest = of_rank((prefix + 1) * (1u << digits[step - 1].shift) - 1);
        tally(row, kept, lowest, prefix, digits[step], ones);
        bucket = reached(row, wanted, &before);
        if (bucket < 0) return lowest > kept.least ? (hd_kept){lowest, INT32_MAX} : kept; /* short again: all of these */
        prefix = prefix << digits[step].bits | (uint32_t)bucket;
    }
    hd_kept fewest = {of_rank(prefix), INT32_MAX};
    float one = 1;
    if (!ones) row->scan->weights(&fewest.least, 1, row->top, 1.0f, fewest.least, &one);
    double ties = one > 0 ? ceil((wanted - before) / one) : row->n;
    int32_t left = ties < 1 ? 1 : ties < row->n ? (int32_t)ties : row->n;
    for (int32_t block = 0; block < row->counts[0]; block++) {
        if (row->peaks[0][block] < fewest.least) continue;
        for (int32_t i = 0, n = length_of(row->n, block); i < n; i++)
            if (row->x[block * HD_SCAN_BLOCK + i] == fewest.least && --left == 0) {
                fewest.last = block * HD_SCAN_BLOCK + i;
                if (fewest.least == kept.least && fewest.last > kept.last) fewest.last = kept.last;
                return fewest;
            }
    }
    if (fewest.least == kept.least) fewest.last = kept.last;
    return fewest;
}
