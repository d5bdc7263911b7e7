/* What a request's sampler remembers of its tokens, and what that does to logits. */
#include "sampling.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* --- counts --- */

static hd_count *place_of(hd_count *counts, int32_t capacity, int32_t token)
{
    uint32_t at = (uint32_t)token * 2654435769u; /* Fibonacci hashing (Knuth, volume 3, 6.4) */
    for (at = (at ^ at >> 15) & (uint32_t)(capacity - 1);; at = (at + 1) & (uint32_t)(capacity - 1))
        if (counts[at].token == token || counts[at].token < 0) return &counts[at];
}

static int counts_still(const hd_count *c) { return c->token >= 0 && (c->recent || c->chosen); }

/* Twice the room that is needed, without those that count no more. */
static int renew(hd_sampler *s)
{
    int32_t live = 0, capacity = 64;
    for (int32_t i = 0; i < s->capacity; i++) live += counts_still(&s->counts[i]);
    while (capacity < 4 * (live + 1)) capacity *= 2;
    hd_count *counts = malloc(sizeof *counts * (size_t)capacity);
    if (!counts) return 0;
    for (int32_t i = 0; i < capacity; i++) counts[i] = (hd_count){-1, 0, 0};
    for (int32_t i = 0; i < s->capacity; i++)
        if (counts_still(&s->counts[i]))
            *place_of(counts, capacity, s->counts[i].token) = s->counts[i];
    free(s->counts);
    s->counts = counts;
    s->capacity = capacity;
    s->used = live;
    return 1;
}

static hd_count *count_of(hd_sampler *s, int32_t token)
{
    if (2 * (s->used + 1) > s->capacity && !renew(s)) return NULL;
    hd_count *count = place_of(s->counts, s->capacity, token);
    if (count->token < 0) {
        count->token = token;
        s->used++;
    }
    return count;
}

static int has_logit(const hd_sampler *s, int32_t token) { return token >= 0 && token < s->n_vocab; }

static int remember(hd_sampler *s, int32_t token)
{
    if (s->repeat_last > 0) {
        if (s->held == s->repeat_last) {
            int32_t gone = s->ring[s->oldest];
            if (has_logit(s, gone)) place_of(s->counts, s->capacity, gone)->recent--;
            s->ring[s->oldest] = token;
            s->oldest = (s->oldest + 1) % s->repeat_last;
        } else {
            if (s->held == s->room) {
                int32_t room = s->room ? 2 * s->room : 64;
                int32_t *ring = realloc(s->ring, sizeof *ring * (size_t)room);
                if (!ring) return 0;
                s->ring = ring;
                s->room = room;
            }
            s->ring[s->held++] = token;
        }
    }
    if (!has_logit(s, token)) return 1;
    hd_count *count = count_of(s, token);
    if (count) count->recent++;
    return count != NULL;
}

static int remembers(const hd_sampler *s) { return s->repeat != 1 && s->repeat_last != 0; }

int hd_sampler_begin(hd_sampler *s, const int32_t *tokens, int64_t n)
{
    if (!remembers(s)) return 1;
    int64_t first = s->repeat_last > 0 && n > s->repeat_last ? n - s->repeat_last : 0;
    for (int64_t i = first; i < n; i++)
        if (!remember(s, tokens[i])) return 0;
    return 1;
}

int hd_sampler_accept(hd_sampler *s, int32_t token)
{
    if (remembers(s) && !remember(s, token)) return 0;
    if ((s->presence == 0 && s->frequency == 0) || !has_logit(s, token)) return 1;
    hd_count *count = count_of(s, token);
    if (count) count->chosen++;
    return count != NULL;
}

void hd_sampler_end(hd_sampler *s)
{
    free(s->counts);
    free(s->ring);
    s->counts = NULL;
    s->ring = NULL;
    s->capacity = s->used = s->room = s->held = s->oldest = 0;
}

/* --- logits --- */

int hd_sampler_adjusts(const hd_sampler *s, const uint32_t *mask)
{
    return mask || s->used || s->n_biases || s->n_forbidden;
}

/* However wild a penalty or a bias: no infinities come of them. */
static float bounded(double x) { return (float)(x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x); }

void hd_sampler_adjust(const hd_sampler *s, const uint32_t *mask, float *x)
{
    for (int32_t i = 0; i < s->capacity; i++) {
        const hd_count *c = &s->counts[i];
        if (c->token < 0) continue;
        double value = x[c->token];
        /* Keskar et al. 2019, CTRL, section 4.1; a negative logit is multiplied, so that it falls too. */
        if (c->recent) value = value > 0 ? value / s->repeat : value * s->repeat;
        /* OpenAI's definition, "frequency and presence penalties": of tokens sampled before. */
        if (c->chosen) value -= c->chosen * s->frequency + s->presence;
        x[c->token] = bounded(value);
    }
    for (int32_t i = 0; i < s->n_biases; i++) {
        float *at = &x[s->biased[i]];
        *at = s->bias[i] == -INFINITY ? -INFINITY : bounded((double)*at + s->bias[i]);
    }
    for (int32_t i = 0; i < s->n_forbidden; i++) x[s->forbidden[i]] = -INFINITY;
    for (int32_t i = 0; mask && i < s->n_vocab; i += 32) {
        uint32_t word = mask[i / 32];
        int32_t n = s->n_vocab - i < 32 ? s->n_vocab - i : 32;
        for (int32_t j = 0; word != UINT32_MAX && j < n; j++) x[i + j] = word >> j & 1 ? x[i + j] : -INFINITY;
    }
}

/* Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011): a bijection of the
 * counter under the key. 53 bits of it make the number. */
double hd_uniform(uint64_t seed, uint64_t position)
{
    uint32_t c[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k1, (uint32_t)a};
        for (int i = 0; i < 4; i++) c[i] = next[i];
    }
    return (double)(((uint64_t)c[0] << 32 | c[1]) >> 11) * 0x1p-53;
}
