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

/* Those above the k-th highest of the blocks' maxima are in fewer than k blocks; of those at it k are enough. */
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
    at += rounded(sizeof(double) * HD_BUCKETS);
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

/* The k highest of x [n], whose blocks' maxima are those of the given level, as sorted keys; how many. The k-th highest
 * of the maxima is no higher than the k-th highest of all, and is found in the same way. */
static int32_t highest(hd_row *row, const float *x, int32_t n, int32_t level, int32_t k)
{
    float least = -FLT_MAX;
    int32_t blocks = level < row->levels ? row->counts[level] : 0, found = 0, equal = 0;
    if (blocks >= k) {
        if (highest(row, row->peaks[level], blocks, level + 1, k) == k) least = key_value(row->keys[k - 1]);
    }
    int32_t *where = row->where + row->counts[0];
    int32_t full = blocks ? row->scan->between(row->peaks[level], blocks, least, FLT_MAX, row->where) : 1;
    for (int32_t b = 0; b < full; b++) {
        int32_t block = blocks ? row->where[b] : 0;
        if (blocks && equal >= k && row->peaks[level][block] == least) continue;
        const float *some = x + block * HD_SCAN_BLOCK;
        int32_t m = row->scan->between(some, length_of(n, block), least, FLT_MAX, where);
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

/* The bucket in which the running sum reaches `wanted`; *before: the sum of those before it. -1: none. */
static int32_t reached(const hd_row *row, int32_t buckets, double wanted, double *before)
{
    double sum = *before;
    for (int32_t i = 0; i < buckets; i++) {
        if (row->buckets[i] > 0 && sum + row->buckets[i] >= wanted) {
            *before = sum;
            return i;
        }
        sum += row->buckets[i];
    }
    return -1;
}

/* Sums by depth over the kept; blocks without one so high are passed over. Two tables in turn: neighbours are often
 * equal, and a sum has to be stored before it is loaded again. */
static void by_depth(hd_row *row, hd_kept kept, float slope)
{
    float w[HD_SCAN_BLOCK];
    int32_t depth[HD_SCAN_BLOCK];
    double *even = row->buckets, *odd = row->buckets + HD_SCAN_DEPTHS;
    memset(row->buckets, 0, sizeof(double) * HD_BUCKETS);
    for (int32_t block = 0; block < row->counts[0]; block++) {
        if (row->peaks[0][block] < kept.least) continue;
        int32_t first = block * HD_SCAN_BLOCK, n = length_of(row->n, block), i = 0;
        const float *x = row->x + first;
        row->scan->weights(x, n, row->top, slope, kept.least, w);
        row->scan->depths(x, n, row->top, depth);
        for (; kept.last < first + n - 1 && i < n; i++)
            if (x[i] == kept.least && first + i > kept.last) w[i] = 0;
        for (i = 0; i + 1 < n; i += 2) {
            even[depth[i]] += w[i];
            odd[depth[i + 1]] += w[i + 1];
        }
        if (i < n) even[depth[i]] += w[i];
    }
    for (int32_t i = 0; i < HD_SCAN_DEPTHS; i++) even[i] += odd[i];
}

/* Keys of the kept at one depth, in the order of ids. */
static int32_t at_depth(hd_row *row, hd_kept kept, int32_t depth)
{
    const float top = row->top;
    float least = top - (float)(depth + 2) / 32, most = top - (float)(depth - 1) / 32; /* wider than need be */
    int32_t *where = row->where, found = 0, exact[HD_SCAN_BLOCK];
    float x[HD_SCAN_BLOCK];
    if (least < kept.least || depth == HD_SCAN_DEPTHS - 1) least = kept.least;
    if (most > top) most = top;
    for (int32_t block = 0; block < row->counts[0]; block++) {
        if (row->peaks[0][block] < least) continue;
        int32_t first = block * HD_SCAN_BLOCK;
        int32_t n = row->scan->between(row->x + first, length_of(row->n, block), least, most, where);
        for (int32_t i = 0; i < n; i++) x[i] = row->x[first + where[i]];
        row->scan->depths(x, n, top, exact);
        for (int32_t i = 0; i < n; i++)
            if (exact[i] == depth && (x[i] > kept.least || first + where[i] <= kept.last))
                row->keys[found++] = key_of(x[i], first + where[i]);
    }
    return found;
}

/* Of m keys those of the one value at which their running sum, on top of *before, reaches `wanted`: by digits of the
 * rank, as far as their ranks differ. How many are left, in the order of ids; 0: none reaches it. */
static int32_t at_value(hd_row *row, int32_t m, float slope, double wanted, double *before)
{
    float x[HD_SCAN_BLOCK], w[HD_SCAN_BLOCK];
    for (;;) {
        uint32_t low = UINT32_MAX, high = 0;
        int32_t shift = 0, left = 0;
        for (int32_t i = 0; i < m; i++) {
            uint32_t r = (uint32_t)(row->keys[i] >> 32);
            low = r < low ? r : low, high = r > high ? r : high;
        }
        if (m == 0 || low == high) return m;
        while ((high - low) >> shift >= HD_BUCKETS) shift++;
        memset(row->buckets, 0, sizeof(double) * HD_BUCKETS);
        for (int32_t i = 0; i < m; i += HD_SCAN_BLOCK) {
            int32_t n = m - i < HD_SCAN_BLOCK ? m - i : HD_SCAN_BLOCK;
            for (int32_t j = 0; j < n; j++) x[j] = key_value(row->keys[i + j]);
            row->scan->weights(x, n, row->top, slope, -FLT_MAX, w);
            for (int32_t j = 0; j < n; j++) row->buckets[((uint32_t)(row->keys[i + j] >> 32) - low) >> shift] += w[j];
        }
        int32_t bucket = reached(row, HD_BUCKETS, wanted, before);
        if (bucket < 0) return 0;
        for (int32_t i = 0; i < m; i++) {
            uint64_t key = row->keys[i];
            row->keys[left] = key;
            left += (int32_t)(((uint32_t)(key >> 32) - low) >> shift) == bucket;
        }
        m = left;
    }
}

/* Whether few blocks have one so high. */
static int seldom(const hd_row *row, float least)
{
    int32_t some = 0;
    for (int32_t block = 0; block < row->counts[0]; block++) some += row->peaks[0][block] >= least;
    return 4 * some <= row->counts[0];
}

/* First by depth below the top; then what lies at the depth where the sum is reached by its exact value, of which the
 * first so many tokens count. */
hd_kept hd_row_fewest(hd_row *row, hd_kept kept, float slope, double wanted)
{
    hd_kept near = {row->top - 8, INT32_MAX}; /* more is seldom needed */
    double before = 0;
    int32_t depth = -1;
    if (near.least > kept.least && seldom(row, near.least)) {
        by_depth(row, near, slope);
        depth = reached(row, HD_SCAN_DEPTHS, wanted, &before);
    }
    if (depth < 0) {
        near = kept;
        by_depth(row, kept, slope);
        depth = reached(row, HD_SCAN_DEPTHS, wanted, &before);
    }
    if (depth < 0) return kept; /* short of it by the rounding of sums in another order: all */
    int32_t found = at_depth(row, near, depth);
    float least = row->top;
    for (int32_t i = 0; i < found; i++) least = key_value(row->keys[i]) < least ? key_value(row->keys[i]) : least;
    int32_t ties = at_value(row, found, slope, wanted, &before);
    if (!ties) return least > kept.least ? (hd_kept){least, INT32_MAX} : kept; /* short again: all of this depth */
    float value = key_value(row->keys[0]), each;
    row->scan->weights(&value, 1, row->top, slope, value, &each);
    double count = ceil((wanted - before) / each);
    int32_t last = count < 1 ? 0 : count < ties ? (int32_t)count - 1 : ties - 1;
    return (hd_kept){value, last == ties - 1 && value > kept.least ? INT32_MAX : hd_key_token(row->keys[last])};
}
