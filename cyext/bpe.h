/* A byte-level BPE vocabulary in compact tables: token spellings, their ids, and merges by pairs of ids.
 *
 * Owns the tables and the order of merges (lowest rank first, leftmost among equals). Text is cut into words elsewhere;
 * special tokens are unknown here. Immutable once filled, so any number of threads may encode.
 */
#ifndef HEARTHD_BPE_H
#define HEARTHD_BPE_H

#include <stddef.h>
#include <stdint.h>

#define HD_BPE_NO_MEMORY (-1000)

typedef struct hd_bpe hd_bpe;

/* Room for so many tokens, bytes of their spellings, and merges. NULL without memory. */
hd_bpe *hd_bpe_new(uint32_t tokens, size_t text_bytes, uint32_t merges);
void hd_bpe_free(hd_bpe *bpe);

/* Filling is in three acts: all tokens, hd_bpe_bytes once, all merges.
 *
 * The next token's spelling, as GGUF holds it: bytes as printable characters in UTF-8. Ids count up from 0; of equal
 * spellings the first keeps the id. */
void hd_bpe_token(hd_bpe *bpe, const char *text, size_t n);

/* Finds the token of every byte. */
void hd_bpe_bytes(hd_bpe *bpe);

/* The next merge, "LEFT RIGHT"; ranks count up from 0. Returns 0 if it can never apply: a part or the whole is no token. */
int hd_bpe_merge(hd_bpe *bpe, const char *pair, size_t n);

/* The id of a spelling, -1 if it is no token. */
int32_t hd_bpe_find(const hd_bpe *bpe, const char *text, size_t n);

/* The ids of a word of n bytes, into out[n]; `whole`: a word that is a token is taken as it is. `unknown` stands for a
 * byte that has no token. Returns how many, -1 - BYTE for a byte without a token when `unknown` is negative, or
 * HD_BPE_NO_MEMORY. */
ptrdiff_t hd_bpe_encode(const hd_bpe *bpe, const uint8_t *word, size_t n, int whole, int32_t unknown, int32_t *out);

#endif
