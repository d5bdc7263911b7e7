#include "sampling.h"
#include "selection.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- one row --- */

static const hd_kept all_tokens = {-FLT_MAX, INT32_MAX};

/* Of a list, likeliest first, top-p and min-p leave a beginning. */
static int32_t kept_of_list(const hd_sampler *s, const hd_row *row, int32_t n)
{
    double sum = 0, so_far = 0;
    int32_t keep = 0;
    if (s->top_p < 1)
        for (int32_t i = 0; i < n; i++) sum += exp((double)row->x[hd_key_token(row->keys[i])] - row->top);
    for (double wanted = s->top_p * sum; keep < n; keep++) {
        double weight = exp((double)row->x[hd_key_token(row->keys[keep])] - row->top);
        if (weight < s->min_p || (s->top_p < 1 && so_far >= wanted)) break;
        so_far += weight;
    }
    return keep > 0 ? keep : 1;
}

/* By the order of ids: the first at which the running sum passes its share. */
static int32_t draw_of_list(const hd_sampler *s, hd_row *row, int32_t n, double share)
{
    double sum = 0, so_far = 0;
    int32_t token = -1;
    for (int32_t i = 0; i < n; i++) row->keys[i] = (uint64_t)hd_key_token(row->keys[i]);
    hd_lowest(row->keys, n, n);
    for (int32_t i = 0; i < n; i++) sum += exp(((double)row->x[row->keys[i]] - row->top) / s->temperature);
    for (int32_t i = 0; i < n; i++) {
        double weight = exp(((double)row->x[row->keys[i]] - row->top) / s->temperature);
        if (weight <= 0) continue;
        token = (int32_t)row->keys[i];
        if ((so_far += weight) > share * sum) break;
    }
    return token;
}

static int listed(const hd_sampler *s) { return s->top_k > 0 && s->top_k <= HD_LIST; }

static int32_t drawn(const hd_sampler *s, hd_row *row, double share)
{
    if (listed(s)) {
        int32_t n = hd_row_likeliest(row, s->top_k < row->n ? s->top_k : row->n);
        return draw_of_list(s, row, kept_of_list(s, row, n), share);
    }
    hd_kept kept = all_tokens;
    if (s->top_k > 0 && s->top_k < row->n) kept = hd_row_fewest(row, kept, 0, s->top_k);
    hd_kept shared = kept;
    if (s->top_p < 1) shared = hd_row_fewest(row, kept, 1, s->top_p * hd_row_mass(row, kept, 1));
    if (s->min_p > 0) {
        float limit = hd_limit(row->top, s->min_p);
        if (limit > shared.least) shared = (hd_kept){limit, INT32_MAX};
    }
    double slope = 1 / s->temperature;
    float steep = slope < FLT_MAX ? (float)slope : FLT_MAX;
    return hd_row_draw(row, shared, steep, hd_row_mass(row, shared, steep), share);
}

static int32_t listed_at_most(const hd_sampler *s)
{
    int32_t list = s->greedy ? 1 : listed(s) ? s->top_k : s->top_k > 0 || s->top_p < 1 ? s->n_vocab : 1;
    return s->likeliest > list ? s->likeliest : list;
}

static double log_mass(hd_row *row) { return row->top + log(hd_row_mass(row, all_tokens, 1)); }

static void choose(hd_pick *pick, hd_worker *w)
{
    const hd_sampler *s = pick->sampler;
    int adjusts = hd_sampler_adjusts(s, pick->mask);
    size_t room = hd_row_bytes(s->n_vocab, listed_at_most(s));
    uint8_t *scratch = hd_worker_scratch(w, room + (adjusts ? sizeof(float) * (size_t)s->n_vocab : 0));
    hd_row row;
    double total = 0;
    pick->status = HD_NO_ROOM;
    if (!scratch) return;
    hd_row_place(&row, s->scan, s->n_vocab, listed_at_most(s), scratch);
    if (!hd_row_look(&row, pick->logits)) {
        for (pick->token = 0; isfinite(pick->logits[pick->token]); pick->token++);
        pick->status = HD_NOT_FINITE;
        return;
    }
    if (s->likeliest > 0) {
        total = log_mass(&row);
        pick->n_tokens = hd_row_likeliest(&row, s->likeliest < row.n ? s->likeliest : row.n);
        for (int32_t i = 0; i < pick->n_tokens; i++) {
            pick->tokens[i] = hd_key_token(row.keys[i]);
            pick->logprobs[i] = row.x[pick->tokens[i]] - total;
        }
    }
    if (adjusts) {
        float *adjusted = (float *)(void *)(scratch + room);
        memcpy(adjusted, pick->logits, sizeof(float) * (size_t)s->n_vocab);
        hd_sampler_adjust(s, pick->mask, adjusted);
        hd_row_look(&row, adjusted);
        if (row.top == -INFINITY) {
            pick->status = HD_NONE_LEFT;
            return;
        }
    }
    pick->token = s->greedy ? hd_row_first(&row) : drawn(s, &row, hd_uniform(s->seed, pick->position));
    pick->logprob = s->likeliest > 0 ? pick->logits[pick->token] - total : 0;
    pick->status = HD_CHOSEN;
}

static void score(const hd_scan *scan, int32_t n_vocab, hd_scored *scored, hd_worker *w)
{
    uint8_t *scratch = hd_worker_scratch(w, hd_row_bytes(n_vocab, 1));
    hd_row row;
    scored->finite = -1;
    if (!scratch) return;
    hd_row_place(&row, scan, n_vocab, 1, scratch);
    scored->finite = hd_row_look(&row, scored->logits);
    if (scored->finite && scored->token >= 0) scored->logprob = scored->logits[scored->token] - log_mass(&row);
}

/* --- many rows --- */

typedef struct rows {
    hd_teams *teams;
    hd_pick *picks;
    hd_scored *scored;
    const hd_scan *scan;
    int32_t n, n_vocab, published;
} rows;

static int next(void *context, hd_worker *w)
{
    rows *r = context;
    (void)w;
    if (r->published++) return 0;
    for (int32_t team = 0; team < hd_teams_count(r->teams); team++) {
        int64_t a, b;
        hd_teams_share(r->teams, team, r->n, &a, &b);
        hd_teams_publish(r->teams, team, (int32_t)a, (int32_t)b);
    }
    return 1;
}

static void run(void *context, hd_worker *w, int32_t item)
{
    rows *r = context;
    if (r->picks)
        choose(&r->picks[item], w);
    else
        score(r->scan, r->n_vocab, &r->scored[item], w);
}

/* No mapped memory is read here; a row that was not finished says so by its status. */
static void fault(void *context, const void *address) { (void)context, (void)address; }

static void run_rows(rows *r)
{
    if (r->teams) {
        hd_job job = {.next = next, .run = run, .fault = fault, .context = r};
        hd_teams_run(r->teams, &job);
        return;
    }
    hd_worker self = {0};
    for (int32_t i = 0; i < r->n; i++) run(r, &self, i);
    free(self.scratch);
}

void hd_sampling_choose(hd_teams *teams, hd_pick *picks, int32_t n)
{
    for (int32_t i = 0; i < n; i++) picks[i].status = HD_NO_ROOM;
    rows r = {teams, picks, NULL, NULL, n, 0, 0};
    run_rows(&r);
}

void hd_sampling_score(hd_teams *teams, const hd_scan *scan, int32_t n_vocab, hd_scored *scored, int32_t n)
{
    for (int32_t i = 0; i < n; i++) scored[i].finite = -1;
    rows r = {teams, NULL, scored, scan, n, n_vocab, 0};
    run_rows(&r);
}
