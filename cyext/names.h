/* Finds names in text: the spellings of special tokens, of several that begin at one place the longest.
 *
 * Owns a tree of bytes and nothing about tokens. Immutable once filled, so any number of threads may search.
 */
#ifndef HEARTHD_NAMES_H
#define HEARTHD_NAMES_H

#include <stddef.h>
#include <stdint.h>

typedef struct hd_names hd_names;

/* Room for so many bytes of names. NULL without memory. */
hd_names *hd_names_new(size_t text_bytes);
void hd_names_free(hd_names *names);

/* A name and its id. Of equal names the last stands. */
void hd_names_add(hd_names *names, const uint8_t *name, size_t n, uint32_t id);

/* The first name at or after `from`: where it begins, *end and *id. Returns n if there is none. */
size_t hd_names_find(const hd_names *names, const uint8_t *text, size_t n, size_t from, size_t *end, uint32_t *id);

#endif
