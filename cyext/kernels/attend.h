/* Attention over blocks of keys and values with a running softmax, one per instruction set (slots attend and
 * attend_scratch of hd_kernels). A row's head comes out the same, bit for bit, whatever other rows and heads the call
 * holds. Keys outside the union of the rows' windows are neither weighed nor multiplied, so stale halves there are
 * harmless even when they are not finite. */
#pragma once
#include "kernels.h"

size_t hd_attend_scratch_c(const hd_attend *a);
size_t hd_attend_scratch_avx2(const hd_attend *a);
size_t hd_attend_scratch_avx512(const hd_attend *a);
void hd_attend_c(const hd_attend *a, void *scratch);
void hd_attend_avx2(const hd_attend *a, void *scratch);
void hd_attend_avx512(const hd_attend *a, void *scratch);
