/* Walks the table of states and events at the head of cyext/queue/state.h at random: threads that ask, wait, evict, cancel,
 * pause and exchange owners, with delays and reading errors put in, and what must be true looked at while they do and when
 * all is quiet. Owns the walk; knows the queue's inside, to look at it, and changes nothing there. Its file is made anew.
 *
 *   cc -g -O1 -fsanitize=thread -Icyext tests/queue_walk.c cyext/queue/?*.c cyext/{arena,fault,mapping,placement,populate}.c \
 *      -Wl,--wrap=hd_populate,--wrap=hd_arena_read,--wrap=hd_evict -lm -o walk && ./walk FILE SECONDS SEED KIND [faults]
 *
 * KIND: plain, single (one worker), owners (two sets of workers, and pages that belong to them), arena. */
#define _GNU_SOURCE
#include "queue/state.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/personality.h>
#include <unistd.h>

enum { SPANS = 120, LAYERS = 6, WALKERS = 4, NODES = 2, HUNG_SECONDS = 20 };
#define KIB ((uint64_t)1024)

static struct {
    hd_mapping *mapping;
    hd_spans spans;
    hd_queue *queue;
    int32_t file[SPANS], layer[SPANS];
    uint64_t offset[SPANS], nbytes[SPANS], size;
    const char *kind;
    int faults, owners, arena;
    uint8_t *bytes;                 /* the file's */
    _Atomic uint8_t *broken;        /* [pages] cannot be read now */
    _Atomic int pause, resting;
    _Atomic int32_t stop;
    _Atomic uint64_t events, steps, failures, compared;
    pthread_mutex_t placing;
} w;

static _Thread_local uint64_t dice;

static uint64_t roll(uint64_t n) { /* xorshift64*, S. Vigna, 2016 */
    dice ^= dice >> 12;
    dice ^= dice << 25;
    dice ^= dice >> 27;
    return (dice * 2685821657736338717ULL >> 33) % n;
}

static void doze(void) {
    if (!dice) dice = (uint64_t)(uintptr_t)pthread_self() | 1;
    uint64_t how = roll(20);
    if (how < 6) return;
    usleep(how == 19 ? 3000 : (useconds_t)roll(300));
}

static void wrong(const char *what, int32_t s);
static void need(int right, const char *what, int32_t s) {
    if (!right) wrong(what, s);
}

/* --- what is put between the queue and its neighbours ---------------------------------------------------------------- */

int __real_hd_populate(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, float cover, hd_populated *out);
int __real_hd_arena_read(const hd_arena *a, int32_t span, uint64_t begin, uint64_t end, uint64_t *failed_at);
int __real_hd_evict(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, uint64_t *freed);

static int first_broken(uint64_t begin, uint64_t end, uint64_t *at) {
    for (uint64_t page = begin / PAGE; page * PAGE < end; page++)
        if (atomic_load(&w.broken[page])) {
            *at = page * PAGE > begin ? page * PAGE : begin;
            return 1;
        }
    return 0;
}

int __wrap_hd_populate(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, float cover, hd_populated *out) {
    uint64_t at;
    doze();
    if (!first_broken(offset, offset + bytes, &at)) return __real_hd_populate(m, file, offset, bytes, cover, out);
    memset(out, 0, sizeof *out);
    out->failed_at = at;
    return EIO;
}

int __wrap_hd_arena_read(const hd_arena *a, int32_t span, uint64_t begin, uint64_t end, uint64_t *failed_at) {
    doze();
    if (first_broken(begin, end, failed_at)) return EIO;
    int error = __real_hd_arena_read(a, span, begin, end, failed_at);
    doze();
    return error;
}

int __wrap_hd_evict(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, uint64_t *freed) {
    doze();
    return __real_hd_evict(m, file, offset, bytes, freed);
}

/* --- what must be true ----------------------------------------------------------------------------------------------- */

static void wrong(const char *what, int32_t s) {
    hd_queue *q = w.queue;
    fprintf(stderr, "walk: %s", what);
    if (s >= 0 && q)
        fprintf(stderr, ": span %d, %llu bytes, state %d, class %d, issued %llu, busy %u, waiting parts %u, fate %d, parked %d",
                s, (unsigned long long)w.nbytes[s], hdq_state(q, s), q->cls[s], (unsigned long long)q->issued[s], q->busy[s],
                q->waiting_parts[s], q->fate[s], q->parked[s]);
    fprintf(stderr, "\n");
    abort();
}

static int waits(hd_queue *q, int32_t s) {
    for (int32_t node = 0; node < q->nodes; node++) {
        ring *r = &q->waiting[node][q->cls[s]];
        for (int64_t i = r->head; i < r->tail; i++)
            if (r->item[i] == s) return 1;
    }
    return 0;
}

/* At any moment, under the lock. */
static void look(hd_queue *q) {
    int64_t count[HD_CLASSES] = {0}, planned = 0;
    int32_t in_rings[HD_CLASSES] = {0};
    uint32_t parts[SPANS] = {0};
    uint64_t used = 0;
    const uint8_t *slot[SPANS];
    int32_t slots = 0;
    for (int32_t node = 0; node < q->nodes; node++) {
        for (int c = 0; c < HD_CLASSES; c++) {
            handed *h = &q->handed[node][c];
            uint64_t bytes = 0;
            for (int64_t i = h->head; i < h->tail; i++) {
                in_rings[c]++;
                bytes += h->item[i].end - h->item[i].begin;
                need(h->item[i].cls == (enum hd_class)c, "a part lies in a class that is not its own", h->item[i].span[0]);
                for (int32_t k = 0; k < h->item[i].n; k++) parts[h->item[i].span[k]]++;
            }
            need(bytes == h->bytes, "bytes of parts", -1);
        }
        plan *p = &q->cursor[node];
        for (int32_t l = 0; p->item && l <= q->layers; l++) planned += p->begin[l + 1] - p->at[l];
    }
    need(planned == q->planned, "planned", -1);
    for (int32_t s = 0; s < SPANS; s++) {
        uint8_t state = hdq_state(q, s);
        int waiting = q->cls[s] != NOWHERE;
        need(q->waiting_parts[s] == parts[s] && q->busy[s] >= parts[s], "parts that wait", s);
        if (waiting) count[q->cls[s]]++;
        if (waiting) need(waits(q, s), "in a class, and in none of its rings", s);
        if (waiting) need(state == HD_ABSENT || state == HD_LOADING, "waits", s);
        if (q->parked[s] != NOWHERE) need(state == HD_EVICTING, "parked", s);
        if (state == HD_LOADING) need(waiting || q->busy[s], "nobody reads it, and nobody will", s);
        else need(!q->busy[s] && !q->issued[s] && q->fate[s] == FINE, "is being read", s);
        if (q->arena && hd_arena_has(q->arena, s)) {
            used += w.nbytes[s];
            slot[slots++] = hd_arena_at(q->arena, s);
            need(state == HD_READY || state == HD_LOADING || state == HD_EVICTING, "has a slot", s);
            if (state == HD_READY) need(hd_span_at(&w.spans, 0, s) == slot[slots - 1], "is read elsewhere than in its slot", s);
        } else {
            need(hd_span_at(&w.spans, 0, s) == w.spans.home[s], "is read where it does not lie", s);
        }
    }
    for (int c = 0; c < HD_CLASSES; c++) {
        need(count[c] == q->count[c], "spans that wait in a class", -1);
        need(in_rings[c] <= q->in_flight[c], "pieces in flight", -1);
    }
    for (int32_t a = 0; a < slots; a++)
        for (int32_t b = 0; b < a; b++) need(slot[a] != slot[b], "two spans have one slot", -1);
    need(used == q->arena_used, "bytes of the arena in use", -1);
}

/* Of a span that this thread has announced itself to. */
static void compare(int32_t s, int all) {
    const uint8_t *at = hd_span_at(&w.spans, 0, s);
    uint64_t n = w.nbytes[s], step = all ? n + 1 : 1 + roll(5000), many = all ? n : 8;
    for (uint64_t i = 0; i + many <= n; i += step)
        need(!memcmp(at + i, w.bytes + w.offset[s] + i, many), "other bytes than the file's", s);
    if (n) need(at[n - 1] == w.bytes[w.offset[s] + n - 1], "another last byte than the file's", s);
    atomic_fetch_add(&w.compared, 1);
}

/* --- events ---------------------------------------------------------------------------------------------------------- */

static int32_t some(int32_t *spans, int32_t most) {
    int32_t n = 1 + (int32_t)roll((uint64_t)most), first = (int32_t)roll(SPANS), side_by_side = roll(2) == 0;
    for (int32_t i = 0; i < n; i++) spans[i] = side_by_side ? (first + i) % SPANS : (int32_t)roll(SPANS);
    return n;
}

/* What a step does. */
static void step(void) {
    hd_queue *q = w.queue;
    int32_t spans[6], missing[6], n = some(spans, 6), stopped = 0;
    for (int32_t i = 0; i < n; i++) hd_span_acquire(&w.spans, spans[i]);
    hd_queue_submit(q, HD_ROUTED, spans, n);
    for (;;) {
        int32_t left = 0;
        for (int32_t i = 0; i < n; i++) {
            uint8_t state = hdq_state(q, spans[i]);
            if (state == HD_READY) compare(spans[i], 0);
            else if (state != HD_FAILED) missing[left++] = spans[i];
            else atomic_fetch_add(&w.failures, 1);
        }
        if (!left || stopped) break;
        stopped = hd_queue_wait_any(q, missing, left, &w.stop) < 0;
    }
    for (int32_t i = 0; i < n; i++) hd_span_release(&w.spans, spans[i]);
    atomic_fetch_add(&w.steps, 1);
}

/* Pages that belong to nodes by turns, in stretches of any length; what was there before is freed at once. */
static void place(hd_queue *q) {
    static struct places { int64_t first[2]; uint64_t begin[1 << 14]; int32_t owner[1 << 14]; } *now;
    if (!w.owners) return;
    pthread_mutex_lock(&w.placing);
    struct places *old = now;
    hd_places places = {0};
    now = NULL;
    if (roll(6)) {
        now = calloc(1, sizeof *now);
        int64_t n = 0;
        uint64_t pages = 1 + roll(100);
        for (uint64_t at = 0; at < w.size && n < 1 << 14; at += PAGE * (1 + roll(2 * pages))) {
            now->begin[n] = at;
            now->owner[n++] = (int32_t)roll(NODES + 1) - (roll(8) == 0); /* nobody's, and one that is no set of workers */
        }
        now->first[1] = n;
        places = (hd_places){1, now->first, now->begin, now->owner};
    }
    hd_queue_place(q, &places);
    free(old);
    pthread_mutex_unlock(&w.placing);
}

static void come_home(hd_queue *q, const int32_t *spans, int32_t n) {
    hd_populated got;
    for (int32_t i = 0; i < n; i++)
        if (__real_hd_populate(w.mapping, 0, w.offset[spans[i]], w.nbytes[spans[i]], 0, &got)) return;
    hd_queue_come_home(q, spans, n);
}

static int by_offset(const void *a, const void *b) { return *(const int32_t *)a - *(const int32_t *)b; }

static void event(void) {
    hd_queue *q = w.queue;
    int32_t spans[SPANS];
    uint64_t bytes, other;
    hd_class_counts counts[HD_CLASSES];
    int64_t waiting[HD_CLASSES];
    int32_t in_flight[HD_CLASSES], n;
    atomic_fetch_add(&w.events, 1);
    switch (roll(26)) {
    case 0: case 1: case 2: case 3: case 4: case 5:
        step();
        break;
    case 6: case 7: case 8:
        n = some(spans, 30);
        hd_queue_submit(q, (enum hd_class)roll(HD_CLASSES), spans, n);
        break;
    case 9: case 10:
        n = some(spans, SPANS);
        hd_queue_submit(q, HD_SWEEP, spans, n);
        break;
    case 11: case 12:
        n = some(spans, SPANS);
        hd_queue_plan(q, spans, n, (int32_t)roll(4));
        break;
    case 13:
        hd_queue_progress(q, (int32_t)roll(LAYERS + 1) - 1);
        break;
    case 14: case 15: case 16:
        n = some(spans, 40);
        qsort(spans, (size_t)n, sizeof *spans, by_offset);
        hd_queue_evict(q, spans, n, &bytes);
        break;
    case 17:
        n = some(spans, 10);
        hd_queue_forget(q, spans, n);
        break;
    case 18:
        hd_queue_cancel(q, (enum hd_class)roll(HD_CLASSES));
        break;
    case 19:
        hd_queue_pause(q, (uint32_t)roll(8) << HD_LOOKAHEAD); /* never what steps ask in */
        break;
    case 20:
        hd_queue_rate(q, roll(2) ? 0 : 1e6);
        break;
    case 21:
        place(q);
        break;
    case 22:
        if (w.faults) atomic_store(&w.broken[roll(w.size / PAGE)], 1);
        else hd_queue_retry(q, spans, some(spans, 20));
        break;
    case 23:
        for (uint64_t p = 0; w.faults && p < w.size / PAGE; p++) atomic_store(&w.broken[p], 0);
        n = some(spans, SPANS);
        hd_queue_retry(q, spans, n);
        break;
    case 24:
        n = some(spans, 20);
        if (!w.arena) break;
        if (roll(3) == 0) come_home(q, spans, n);
        else if (roll(2)) hd_queue_victims(q, spans, n);
        else if (roll(2)) hd_queue_direct(q, (uint32_t)roll(32));
        else if (roll(2)) hd_queue_mapping_room(q, (int64_t)roll(4 << 20));
        else hd_queue_arena_limit(q, roll(8 << 20));
        break;
    default:
        pthread_mutex_lock(&q->lock);
        look(q);
        pthread_mutex_unlock(&q->lock);
        hd_queue_counts(q, counts, waiting, in_flight);
        hd_queue_settled(q, &bytes, &other);
        hd_queue_error(q, (int32_t)roll(SPANS), &other);
        hd_queue_idle(q);
        hd_queue_drain(q, (enum hd_class)roll(HD_CLASSES), 0.001);
    }
}

static void *walk(void *seed) {
    dice = (uint64_t)(uintptr_t)seed;
    while (!atomic_load(&w.stop)) {
        if (atomic_load(&w.pause)) {
            atomic_fetch_add(&w.resting, 1);
            while (atomic_load(&w.pause)) usleep(100);
            atomic_fetch_sub(&w.resting, 1);
        }
        event();
    }
    return NULL;
}

/* --- quiet points ---------------------------------------------------------------------------------------------------- */

static void rest(void) {
    hd_queue *q = w.queue;
    double begun = hdq_now();
    atomic_store(&w.pause, 1);
    while (atomic_load(&w.resting) < WALKERS) {
        usleep(100);
        if (hdq_now() - begun < HUNG_SECONDS) continue;
        pthread_mutex_lock(&q->lock);
        for (int32_t s = 0; s < SPANS; s++) need(hdq_state(q, s) != HD_LOADING, "a step waits without end", s);
        wrong("a step waits without end", -1);
    }
    hd_queue_pause(q, 0);
    hd_queue_rate(q, 0);
    if (roll(2)) hd_queue_progress(q, LAYERS);
    else hd_queue_plan(q, NULL, 0, 0);
    hd_queue_cancel(q, HD_CURSOR); /* the layers that it has passed */
    for (int c = 0; c < HD_CLASSES; c++) need(hd_queue_drain(q, (enum hd_class)c, HUNG_SECONDS), "a class that never ends", -1);
    pthread_mutex_lock(&q->lock);
    look(q);
    for (int32_t s = 0; s < SPANS; s++) {
        uint8_t state = hdq_state(q, s);
        need(state == HD_ABSENT || state == HD_READY || state == HD_FAILED, "is under way when all is quiet", s);
        if (state == HD_READY) compare(s, roll(4) == 0);
    }
    for (int c = 0; c < HD_CLASSES; c++) need(!q->in_flight[c], "in flight when all is quiet", -1);
    pthread_mutex_unlock(&q->lock);
}

static void open_queue(void) {
    static const int32_t memory[NODES] = {0, 0};
    hd_queue_options options = {.workers = strcmp(w.kind, "single") ? 2 : 1, .background = 2, .nodes = w.owners ? NODES : 1,
                                .piece = roll(2) ? 128 * KIB : 2048 * KIB, .memory = w.owners && roll(2) ? memory : NULL};
    w.queue = hd_queue_new(&w.spans, w.mapping, w.file, w.offset, &options);
    need(w.queue != NULL, "no queue", -1);
    if (w.arena) {
        uint8_t member[SPANS];
        for (int32_t s = 0; s < SPANS; s++) member[s] = w.nbytes[s] > 0 && s % 7;
        int error = hd_queue_arena(w.queue, member, 3 << 20);
        if (error) {
            printf("skipped: no arena here: %s\n", strerror(error));
            exit(0);
        }
        hd_queue_direct(w.queue, 31);
    }
    place(w.queue);
}

static void close_queue(void) {
    int32_t spans[SPANS];
    hd_queue_submit(w.queue, HD_SWEEP, spans, some(spans, SPANS)); /* so that there is something to leave */
    usleep((useconds_t)roll(2000));
    hd_queue_free(w.queue);
    w.queue = NULL;
    for (int32_t s = 0; s < SPANS; s++) {
        uint8_t state = atomic_load(&w.spans.state[s]);
        need(state == HD_ABSENT || state == HD_READY || state == HD_FAILED, "under way in a closed queue", s);
        need(hd_span_at(&w.spans, 0, s) == w.spans.home[s], "read from an arena that is gone", s);
    }
}

static void make_file(const char *path) {
    static const uint64_t sizes[] = {20 * KIB, 70 * KIB + 96, 64 * KIB, 150 * KIB + 32};
    uint64_t at = 32;
    for (int32_t s = 0; s < SPANS; s++) {
        w.offset[s] = at;
        w.nbytes[s] = s == SPANS - 1 ? 3000 * KIB : s % 40 == 13 ? 0 : sizes[s * 4 / SPANS];
        w.layer[s] = s == SPANS - 1 ? -1 : s * LAYERS / SPANS;
        at += w.nbytes[s] + (s % 9 ? 32 : 3 * PAGE);
    }
    w.size = at;
    w.bytes = malloc(at);
    for (uint64_t i = 0; i < at; i++) w.bytes[i] = (uint8_t)((i * 0x9E3779B97F4A7C15ULL) >> 56);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0 && write(fd, w.bytes, at) == (ssize_t)at && !fsync(fd) && !close(fd), "the file cannot be written", -1);
    w.broken = calloc(at / PAGE + 2, 1);
    w.mapping = hd_mapping_new(1);
    need(w.mapping && !hd_mapping_open(w.mapping, 0, path), "the file cannot be mapped", -1);
    w.spans.n = SPANS;
    w.spans.nodes = 1;
    w.spans.home = calloc(SPANS, sizeof *w.spans.home);
    w.spans.at = calloc(SPANS, sizeof *w.spans.at);
    w.spans.state = calloc(SPANS, sizeof *w.spans.state);
    w.spans.users = calloc(SPANS, sizeof *w.spans.users);
    w.spans.nbytes = w.nbytes;
    w.spans.layer = w.layer;
    for (int32_t s = 0; s < SPANS; s++) atomic_store(&w.spans.at[s], w.spans.home[s] = w.mapping->base[0] + w.offset[s]);
}

int main(int argc, char **argv) {
    /* ThreadSanitizer's own memory has fixed addresses, which a kernel that shuffles widely takes for something else. */
    if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE) && personality(ADDR_NO_RANDOMIZE) != -1) execv("/proc/self/exe", argv);
    if (argc < 5) return fprintf(stderr, "walk FILE SECONDS SEED KIND [faults]\n"), 2;
    double until = hdq_now() + atof(argv[2]);
    uint64_t seed = strtoull(argv[3], NULL, 10);
    dice = seed * 0x9E3779B97F4A7C15ULL | 1;
    w.kind = argv[4];
    w.owners = !strcmp(w.kind, "owners");
    w.arena = !strcmp(w.kind, "arena");
    w.faults = argc > 5;
    pthread_mutex_init(&w.placing, NULL);
    make_file(argv[1]);
    if (w.owners) hd_mapping_small_pages(w.mapping);
    int rounds = 0;
    do {
        pthread_t thread[WALKERS];
        atomic_store(&w.pause, 0);
        atomic_store(&w.stop, 0);
        open_queue();
        for (int i = 0; i < WALKERS; i++) pthread_create(&thread[i], NULL, walk, (void *)(uintptr_t)(roll(1 << 30) * 2 + 1));
        for (int quiet = 0; quiet < 3; quiet++) {
            usleep((useconds_t)(50000 + roll(100000)));
            rest();
            if (quiet < 2) atomic_store(&w.pause, 0);
            while (quiet < 2 && atomic_load(&w.resting)) usleep(100);
        }
        atomic_store(&w.stop, 1);
        atomic_store(&w.pause, 0);
        for (int i = 0; i < WALKERS; i++) pthread_join(thread[i], NULL);
        close_queue();
        rounds++;
    } while (hdq_now() < until);
    printf("%d rounds, %llu events, %llu steps, %llu failures seen, %llu spans compared\n", rounds,
           (unsigned long long)w.events, (unsigned long long)w.steps, (unsigned long long)w.failures,
           (unsigned long long)w.compared);
    hd_mapping_free(w.mapping);
    return 0;
}
