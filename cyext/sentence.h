/* A SentencePiece vocabulary (its BPE model): characters merged by score, bytes for what no token spells.
 *
 * Owns the tables and the order of merges (highest score first, leftmost among equals). Text arrives as UTF-8 with its
 * spaces already spelled; special tokens are unknown here. Immutable once filled, so any number of threads may encode.
 */
#ifndef HEARTHD_SENTENCE_H
#define HEARTHD_SENTENCE_H

#include <stddef.h>
#include <stdint.h>

#define HD_SENTENCE_NO_MEMORY (-1)
#define HD_SENTENCE_TOO_LONG (-2)

typedef struct hd_sentence hd_sentence;

/* Room for so many tokens and bytes of their spellings. NULL without memory. */
hd_sentence *hd_sentence_new(uint32_t tokens, size_t text_bytes);
void hd_sentence_free(hd_sentence *sentence);

/* The next token that text may become by merging: its spelling, id and score (no NaN). Of equal spellings the last
 * stands. */
void hd_sentence_token(hd_sentence *sentence, const char *text, size_t n, uint32_t id, float score);

/* The token of a byte, for characters that no token spells. */
void hd_sentence_byte(hd_sentence *sentence, uint8_t byte, uint32_t id);

/* The token of a character that even bytes do not spell; without one it is left out. */
void hd_sentence_unknown(hd_sentence *sentence, uint32_t id);

/* After the last token: which neighbours no token holds, so that text may be cut between them. */
int hd_sentence_finish(hd_sentence *sentence);

/* The ids of n bytes of UTF-8, into *out, which is realloc'd and freed by the caller. Returns how many, at most
 * `limit`; HD_SENTENCE_TOO_LONG if there are more, or if millions of characters would have to be merged as one;
 * HD_SENTENCE_NO_MEMORY. */
ptrdiff_t hd_sentence_encode(const hd_sentence *sentence, const uint8_t *text, size_t n, size_t limit, int32_t **out);

#endif
