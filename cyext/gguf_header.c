/* Owns the walk over a GGUF header and every check of a number found there; refuses what does not fit the file.
 * Nothing is allocated by a count that the file claims: tables grow as entries are really found. */
#include "gguf_header.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "types.h"

#define MAX_DIMS 4
#define MAX_KEY 65535   /* ggml/docs/gguf.md: at most 2^16 - 1 bytes */
#define PAGE ((uint64_t)4096)
#define MAX_NAME 1024   /* ggml holds 64; longer ones are only ever garbage */

typedef struct cursor {
    const uint8_t *data;
    uint64_t size;   /* of the file, or HD_GGUF_MAX_HEADER if that is less */
    uint64_t at;
    uint64_t ready;  /* bytes that have been fetched */
    uint64_t step;   /* fetched at a time */
    bool cut;        /* size is the limit, not the file's end */
    hd_gguf_fetch fetch;
    void *self;
    hd_gguf_error *error;
} cursor;

static const uint8_t value_size[HD_GGUF_TYPE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

uint32_t hd_gguf_size(uint32_t type)
{
    return type < HD_GGUF_TYPE_COUNT ? value_size[type] : 0;
}

__attribute__((format(printf, 3, 4))) static bool fail(cursor *c, uint64_t byte, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(c->error->what, sizeof c->error->what, format, args);
    va_end(args);
    c->error->byte = byte;
    return false;
}

/* Make `n` bytes from the cursor readable, or say what the file lacks. */
static inline bool need(cursor *c, uint64_t n, const char *what)
{
    if (n > c->size - c->at) {
        if (c->cut)
            return fail(c, c->at, "the header goes on beyond %llu bytes", (unsigned long long)c->size);
        return fail(c, c->at, "the file ends at byte %llu, inside %s that needs %llu bytes",
                    (unsigned long long)c->size, what, (unsigned long long)n);
    }
    uint64_t end = c->at + n;
    while (c->ready < end) {
        uint64_t goal = ((c->step > PAGE ? end : c->ready + 1) + c->step - 1) / c->step * c->step;
        if (goal > c->size)
            goal = c->size;
        if (!c->fetch || c->fetch(c->self, goal))
            c->ready = goal;
        else if (c->step > PAGE)
            c->step = PAGE; /* what cannot be read may lie behind the header; if not, its page is to be named */
        else
            return fail(c, c->ready, "bytes %llu to %llu cannot be read", (unsigned long long)c->ready,
                        (unsigned long long)goal);
    }
    return true;
}

static inline uint32_t load32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t load64(const uint8_t *p)
{
    return (uint64_t)load32(p) | (uint64_t)load32(p + 4) << 32;
}

static inline bool take32(cursor *c, uint32_t *out, const char *what)
{
    if (!need(c, 4, what))
        return false;
    *out = load32(c->data + c->at);
    c->at += 4;
    return true;
}

static inline bool take64(cursor *c, uint64_t *out, const char *what)
{
    if (!need(c, 8, what))
        return false;
    *out = load64(c->data + c->at);
    c->at += 8;
    return true;
}

static inline bool take_text(cursor *c, hd_gguf_text *out, const char *what)
{
    uint64_t length;
    if (!take64(c, &length, what) || !need(c, length, what))
        return false;
    out->at = c->at;
    out->length = length;
    c->at += length;
    return true;
}

/* Room for one more entry in a growing table. */
static void *grow(cursor *c, void *table, uint64_t used, uint64_t *room, size_t entry)
{
    if (used < *room)
        return table;
    uint64_t wanted = *room ? *room * 2 : 64;
    void *bigger = realloc(table, wanted * entry);
    if (bigger)
        *room = wanted;
    else
        fail(c, c->at, "out of memory for %llu entries", (unsigned long long)wanted);
    return bigger;
}

static bool take_array(cursor *c, hd_gguf_key *key)
{
    uint64_t at = c->at;
    if (!take32(c, &key->element, "an array's type") || !take64(c, &key->count, "an array's length"))
        return false;
    key->value.at = c->at;
    uint64_t least = key->element == HD_GGUF_STRING ? 8 : hd_gguf_size(key->element);
    if (!least)
        return fail(c, at, "array element type %u is not known", key->element);
    if (key->count > (c->size - c->at) / least)
        return fail(c, at, "an array of %llu values of at least %llu bytes does not fit the file of %llu bytes",
                    (unsigned long long)key->count, (unsigned long long)least, (unsigned long long)c->size);
    if (key->element == HD_GGUF_STRING) {
        hd_gguf_text text;
        for (uint64_t i = 0; i < key->count; i++)
            if (!take_text(c, &text, "a string of an array"))
                return false;
    } else {
        if (!need(c, key->count * least, "an array"))
            return false;
        c->at += key->count * least;
    }
    key->value.length = c->at - key->value.at;
    return true;
}

static bool take_key(cursor *c, hd_gguf_key *key)
{
    uint64_t at = c->at;
    memset(key, 0, sizeof *key);
    /* Until it has a name, an error names the key before it. */
    if (!take_text(c, &key->name, "the next key's name"))
        return false;
    if (key->name.length == 0 || key->name.length > MAX_KEY)
        return fail(c, at, "the next key's name has %llu bytes", (unsigned long long)key->name.length);
    c->error->where = key->name;
    at = c->at;
    if (!take32(c, &key->type, "a value's type"))
        return false;
    key->count = 1;
    if (key->type == HD_GGUF_ARRAY)
        return take_array(c, key);
    if (key->type == HD_GGUF_STRING)
        return take_text(c, &key->value, "a string");
    uint64_t width = hd_gguf_size(key->type);
    if (!width)
        return fail(c, at, "value type %u is not known", key->type);
    if (!need(c, width, "a value"))
        return false;
    key->value = (hd_gguf_text){c->at, width};
    c->at += width;
    return true;
}

/* Rows times bytes of a row, with every multiplication checked. */
static bool measure(cursor *c, hd_gguf_tensor *t, uint64_t at)
{
    if (t->type < 0 || t->type >= HD_TYPE_COUNT || !hd_types[t->type].name)
        return fail(c, at, "tensor type %d is not known", t->type);
    uint64_t block = (uint64_t)hd_types[t->type].block, bytes = (uint64_t)hd_types[t->type].bytes;
    if (t->ne[0] % block)
        return fail(c, at, "%llu columns are no whole number of %s blocks of %llu", (unsigned long long)t->ne[0],
                    hd_types[t->type].name, (unsigned long long)block);
    uint64_t total, count = t->ne[0];
    bool overflow = __builtin_mul_overflow(t->ne[0] / block, bytes, &total);
    for (int d = 1; d < MAX_DIMS; d++) {
        overflow |= __builtin_mul_overflow(total, t->ne[d], &total);
        overflow |= __builtin_mul_overflow(count, t->ne[d], &count);
    }
    if (overflow || count > INT64_MAX || total > INT64_MAX)
        return fail(c, at, "the product of the dimensions %llu, %llu, %llu, %llu is too large",
                    (unsigned long long)t->ne[0], (unsigned long long)t->ne[1], (unsigned long long)t->ne[2],
                    (unsigned long long)t->ne[3]);
    t->nbytes = total;
    return true;
}

static bool take_tensor(cursor *c, hd_gguf_tensor *t, uint64_t number)
{
    uint64_t at = c->at;
    memset(t, 0, sizeof *t);
    /* Until it has a name, an error names the tensor before it, if there is one. */
    if (!take_text(c, &t->name, "the next tensor's name"))
        return false;
    if (t->name.length == 0 || t->name.length > MAX_NAME)
        return fail(c, at, "the name of tensor %llu has %llu bytes", (unsigned long long)number,
                    (unsigned long long)t->name.length);
    c->error->where = t->name;
    at = c->at;
    if (!take32(c, &t->n_dims, "a tensor's dimensions"))
        return false;
    if (t->n_dims > MAX_DIMS) /* none: a scalar */
        return fail(c, at, "%u dimensions; there may be up to 4", t->n_dims);
    for (uint32_t d = 0; d < MAX_DIMS; d++) {
        t->ne[d] = 1;
        if (d >= t->n_dims)
            continue;
        if (!take64(c, &t->ne[d], "a tensor's dimensions"))
            return false;
        if (t->ne[d] > INT64_MAX) /* 0: a tensor that only its name says something by */
            return fail(c, c->at - 8, "dimension %u is %llu", d, (unsigned long long)t->ne[d]);
    }
    at = c->at;
    uint32_t type;
    if (!take32(c, &type, "a tensor's type"))
        return false;
    t->type = type > INT32_MAX ? -1 : (int32_t)type;
    if (!measure(c, t, at))
        return false;
    return take64(c, &t->offset, "a tensor's offset");
}

static bool take_start(cursor *c, hd_gguf_header *h)
{
    if (!need(c, 4, "the first word"))
        return false;
    if (memcmp(c->data, "GGUF", 4))
        return fail(c, 0, "this is no GGUF file: it starts with %02x %02x %02x %02x, not with 'GGUF'", c->data[0],
                    c->data[1], c->data[2], c->data[3]);
    if (!need(c, 24, "the first 24 bytes of a GGUF file"))
        return false;
    h->version = load32(c->data + 4);
    if (h->version != 0 && (h->version & 0xffff) == 0)
        return fail(c, 4, "this GGUF file is big-endian; only little-endian files can be read");
    if (h->version == 1)
        return fail(c, 4, "GGUF version 1 is no longer in use; convert the model again");
    if (h->version != 2 && h->version != 3)
        return fail(c, 4, "GGUF version %u is not known; 2 and 3 are", h->version);
    h->n_tensors = load64(c->data + 8);
    h->n_keys = load64(c->data + 16);
    c->at = 24;
    /* The shortest entries there can be: 8+1+4+1 bytes of a key, 8+1+4+4+8 of a tensor. */
    if (h->n_keys > (c->size - 24) / 14)
        return fail(c, 16, "%llu keys do not fit a file of %llu bytes", (unsigned long long)h->n_keys,
                    (unsigned long long)c->size);
    if (h->n_tensors > (c->size - 24) / 25)
        return fail(c, 8, "%llu tensors do not fit a file of %llu bytes", (unsigned long long)h->n_tensors,
                    (unsigned long long)c->size);
    return true;
}

static bool find_alignment(cursor *c, hd_gguf_header *h, const hd_gguf_key *key)
{
    static const char name[] = "general.alignment";
    if (key->name.length != sizeof name - 1 || memcmp(c->data + key->name.at, name, sizeof name - 1))
        return true;
    if (key->type != HD_GGUF_U32)
        return fail(c, key->value.at, "the alignment is no 32-bit number");
    h->alignment = load32(c->data + key->value.at);
    if (h->alignment == 0 || (h->alignment & (h->alignment - 1)))
        return fail(c, key->value.at, "the alignment %llu is no power of two", (unsigned long long)h->alignment);
    return true;
}

typedef struct place {
    uint64_t offset;
    uint64_t index;
} place;

static int by_offset(const void *a, const void *b)
{
    const place *x = a, *y = b;
    return x->offset != y->offset ? (x->offset < y->offset ? -1 : 1) : (x->index < y->index ? -1 : x->index > y->index);
}

static bool overlap(cursor *c, const hd_gguf_tensor *low, const hd_gguf_tensor *high)
{
    if (high->offset - low->offset >= low->nbytes)
        return false;
    c->error->where = high->name;
    int shown = low->name.length > 64 ? 64 : (int)low->name.length;
    fail(c, high->offset, "its data begins inside that of %.*s, which ends at byte %llu", shown,
         (const char *)c->data + low->name.at, (unsigned long long)(low->offset + low->nbytes));
    return true;
}

/* Files are written in order, so one comparison per tensor settles it; only a shuffled one is sorted. What has no bytes
 * lies nowhere. */
static bool check_overlap(cursor *c, const hd_gguf_header *h)
{
    const hd_gguf_tensor *low = NULL;
    bool ordered = true;
    for (uint64_t i = 0; i < h->n_tensors && ordered; i++) {
        const hd_gguf_tensor *t = &h->tensors[i];
        if (!t->nbytes)
            continue;
        ordered = !low || t->offset >= low->offset;
        if (ordered && low && overlap(c, low, t))
            return false;
        low = t;
    }
    if (ordered)
        return true;
    place *order = malloc(h->n_tensors * sizeof *order);
    if (!order)
        return fail(c, c->at, "out of memory for %llu tensors", (unsigned long long)h->n_tensors);
    uint64_t n = 0;
    for (uint64_t i = 0; i < h->n_tensors; i++)
        if (h->tensors[i].nbytes)
            order[n++] = (place){h->tensors[i].offset, i};
    qsort(order, n, sizeof *order, by_offset);
    bool good = true;
    for (uint64_t i = 1; i < n && good; i++)
        good = !overlap(c, &h->tensors[order[i - 1].index], &h->tensors[order[i].index]);
    free(order);
    return good;
}

static bool place_tensors(cursor *c, hd_gguf_header *h, uint64_t file_size)
{
    c->error->in_tensor = true;
    for (uint64_t i = 0; i < h->n_tensors; i++) {
        hd_gguf_tensor *t = &h->tensors[i];
        uint64_t start, end, relative = t->offset;
        c->error->where = t->name;
        if (relative & (h->alignment - 1))
            return fail(c, h->data_offset, "its offset %llu is no multiple of the alignment %llu",
                        (unsigned long long)relative, (unsigned long long)h->alignment);
        if (__builtin_add_overflow(h->data_offset, relative, &start) || __builtin_add_overflow(start, t->nbytes, &end))
            return fail(c, h->data_offset, "its offset %llu is too large", (unsigned long long)relative);
        if (t->nbytes && end > file_size)
            return fail(c, file_size, "the file ends at byte %llu, but its data lies at bytes %llu to %llu",
                        (unsigned long long)file_size, (unsigned long long)start, (unsigned long long)end);
        t->offset = start;
    }
    return check_overlap(c, h);
}

static bool parse(cursor *c, hd_gguf_header *h, uint64_t file_size)
{
    if (!take_start(c, h))
        return false;
    uint64_t room = 0;
    h->alignment = 32;
    for (uint64_t i = 0; i < h->n_keys; i++) {
        hd_gguf_key *table = grow(c, h->keys, i, &room, sizeof *h->keys);
        if (!table)
            return false;
        h->keys = table;
        if (!take_key(c, &h->keys[i]) || !find_alignment(c, h, &h->keys[i]))
            return false;
    }
    room = 0;
    c->error->in_tensor = true;
    c->error->where = (hd_gguf_text){0, 0};
    for (uint64_t i = 0; i < h->n_tensors; i++) {
        hd_gguf_tensor *table = grow(c, h->tensors, i, &room, sizeof *h->tensors);
        if (!table)
            return false;
        h->tensors = table;
        if (!take_tensor(c, &h->tensors[i], i + 1))
            return false;
    }
    h->header_end = c->at;
    h->data_offset = (c->at + h->alignment - 1) & ~(h->alignment - 1);
    return place_tensors(c, h, file_size);
}

int hd_gguf_parse(const uint8_t *data, uint64_t size, hd_gguf_fetch fetch, void *self, hd_gguf_header *out,
                  hd_gguf_error *error)
{
    bool cut = size > HD_GGUF_MAX_HEADER;
    cursor c = {data, cut ? HD_GGUF_MAX_HEADER : size, 0, fetch ? 0 : size, HD_GGUF_STEP, cut, fetch, self, error};
    memset(out, 0, sizeof *out);
    memset(error, 0, sizeof *error);
    if (parse(&c, out, size))
        return 0;
    hd_gguf_free(out);
    return -1;
}

void hd_gguf_free(hd_gguf_header *header)
{
    free(header->keys);
    free(header->tensors);
    memset(header, 0, sizeof *header);
}

bool hd_gguf_strings(const uint8_t *data, const hd_gguf_key *array, hd_gguf_text *out)
{
    uint64_t at = array->value.at, end = at + array->value.length;
    for (uint64_t i = 0; i < array->count; i++) {
        if (end - at < 8)
            return false;
        uint64_t length = load64(data + at);
        at += 8;
        if (length > end - at)
            return false;
        out[i] = (hd_gguf_text){at, length};
        at += length;
    }
    return true;
}
