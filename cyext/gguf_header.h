/* One pass over a GGUF header in memory: where each key, value and tensor lies. Owns the tables it builds, never the
 * bytes; refuses anything that it cannot place inside the file. Copies nothing but numbers: names and values stay where
 * they are in the file and are read when somebody asks. Layout: ggml/docs/gguf.md, versions 2 and 3, little endian. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum hd_gguf_type {
    HD_GGUF_U8 = 0, HD_GGUF_I8 = 1, HD_GGUF_U16 = 2, HD_GGUF_I16 = 3, HD_GGUF_U32 = 4, HD_GGUF_I32 = 5,
    HD_GGUF_F32 = 6, HD_GGUF_BOOL = 7, HD_GGUF_STRING = 8, HD_GGUF_ARRAY = 9, HD_GGUF_U64 = 10, HD_GGUF_I64 = 11,
    HD_GGUF_F64 = 12, HD_GGUF_TYPE_COUNT = 13
};

/* A piece of the header by position: `at` bytes from the file's start. */
typedef struct hd_gguf_text {
    uint64_t at;
    uint64_t length;
} hd_gguf_text;

typedef struct hd_gguf_key {
    hd_gguf_text name;
    uint32_t type;       /* hd_gguf_type of the value; HD_GGUF_ARRAY for arrays */
    uint32_t element;    /* hd_gguf_type of an array's elements */
    uint64_t count;      /* elements of an array, 1 otherwise */
    hd_gguf_text value;  /* a string's text, else the first byte and the length of all values */
} hd_gguf_key;

typedef struct hd_gguf_tensor {
    hd_gguf_text name;
    int32_t type;        /* hd_type */
    uint32_t n_dims;
    uint64_t ne[4];      /* columns first; 1 beyond n_dims */
    uint64_t offset;     /* from the file's start */
    uint64_t nbytes;
} hd_gguf_tensor;

typedef struct hd_gguf_header {
    uint32_t version;
    uint64_t alignment;
    uint64_t header_end;   /* the byte after the last tensor's description */
    uint64_t data_offset;  /* header_end, aligned */
    uint64_t n_keys, n_tensors;
    hd_gguf_key *keys;
    hd_gguf_tensor *tensors;
} hd_gguf_header;

/* What is wrong, at which byte of the file, and in which key or tensor (length 0 when in none). */
typedef struct hd_gguf_error {
    uint64_t byte;
    bool in_tensor;
    hd_gguf_text where;
    char what[200];
} hd_gguf_error;

/* Makes the file's bytes up to (not including) `end` readable; false when the file cannot deliver them. */
typedef bool (*hd_gguf_fetch)(void *self, uint64_t end);

/* Parse `size` bytes of a file at `data`. `fetch` (may be NULL) is called before bytes are read for the first time, in
 * steps of HD_GGUF_STEP, and page by page once a step has failed. 0 on success; else -1 with *error filled and nothing
 * left to free. */
#define HD_GGUF_STEP ((uint64_t)1 << 20)
#define HD_GGUF_MAX_HEADER ((uint64_t)1 << 30)
int hd_gguf_parse(const uint8_t *data, uint64_t size, hd_gguf_fetch fetch, void *self, hd_gguf_header *out,
                  hd_gguf_error *error);
void hd_gguf_free(hd_gguf_header *header);

/* Positions of the strings of a string array that hd_gguf_parse has accepted: out[count]. False when they are no longer
 * what was accepted: the file may have been written to since. */
bool hd_gguf_strings(const uint8_t *data, const hd_gguf_key *array, hd_gguf_text *out);

/* Bytes of one value of a fixed-size hd_gguf_type, 0 for strings, arrays and unknown numbers. */
uint32_t hd_gguf_size(uint32_t type);
