/* A byte-level BPE vocabulary in compact tables: token spellings, their ids, and merges by pairs of ids.
 *
 * Owns the tables and the order of merges (lowest rank first, leftmost among equals). Text is cut into words elsewhere;
 * special tokens are unknown here. Immutable once filled, so any number of threads may encode.
 */
#ifndef HEARTHD_BPE_H
#define HEARTHD_BPE_H

#include <stddef.h>
#include <stdint.h>

#define HD_BPE_NO_MEMORY (-1)
#define HD_BPE_TOO_LONG (-2)

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

/* Bytes of text that a token stands for at most; SIZE_MAX where bytes have no token, for these are left out. */
size_t hd_bpe_reach(const hd_bpe *bpe);

/* The id of a spelling, -1 if it is no token. */
int32_t hd_bpe_find(const hd_bpe *bpe, const char *text, size_t n);

/* The ids of a word of n bytes, into out[n]; `whole`: a word that is a token is taken as it is. A byte without a token is
 * left out, and its neighbours stand side by side (as in Hugging Face's tokenizers, models/bpe). Returns how many,
 * HD_BPE_TOO_LONG if they are known to be more than `limit` before they are made, or if the word has millions of bytes,
 * or HD_BPE_NO_MEMORY. */
ptrdiff_t hd_bpe_encode(const hd_bpe *bpe, const uint8_t *word, size_t n, int whole, size_t limit, int32_t *out);

#endif
