/* The tables of kernels: which function serves which instruction set, and what this machine and its kernel permit.
 * Owns the choice only; a set inherits from the one below what it has none of its own for. */
#include "attend.h"
#include "gemm.h"
#include "processor.h"
#include "product.h"
#include "vector.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { LEVEL_C, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AVX512BF16, LEVEL_AMX, LEVELS };
static const char *const level_names[LEVELS] = {"c", "avx2", "avx512", "avx512bf16", "amx"};

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Floats stay floats (8 bits would lose what these types keep); the rest is multiplied in bytes. */
static hd_act act_for(int32_t type) {
    return type == HD_F32 || type == HD_F16 || type == HD_BF16 ? HD_ACT_F32 : HD_ACT_Q8;
}

/* Panels first; what they do not take goes to the direct products. */
#define TAKE(isa) hd_gemm_##isa(p, r0, r1, scratch)
#define LEVEL(isa, takes, scratch_bytes, direct)                                               \
    static void product_##isa(const hd_product *p, int64_t r0, int64_t r1, void *scratch) {    \
        if (!(takes)) direct(p, r0, r1);                                                       \
    }                                                                                          \
    static size_t scratch_##isa(const hd_product *p) { return scratch_bytes; }
LEVEL(c, TAKE(c), hd_gemm_scratch_c(p), hd_product_c)
#if defined(__x86_64__)
LEVEL(avx2, TAKE(avx2), hd_gemm_scratch_avx2(p), hd_product_avx2)
LEVEL(avx512, TAKE(avx512), hd_gemm_scratch_avx512(p), hd_product_avx512)
LEVEL(amx, TAKE(amx) || TAKE(avx512), larger(hd_gemm_scratch_amx(p), hd_gemm_scratch_avx512(p)),
      hd_product_avx512)
#endif

static hd_kernels tables[LEVELS];
static const char *refusals[LEVELS]; /* NULL: this machine has it */
static pthread_once_t once = PTHREAD_ONCE_INIT;

#define VECTORS(t, isa)                                                                              \
    ((t)->rms_norm = hd_rms_norm_##isa, (t)->silu_mul = hd_silu_mul_##isa, (t)->softmax = hd_softmax_##isa, \
     (t)->activate = hd_activate_##isa, (t)->convolve = hd_convolve_##isa,                           \
     (t)->add = hd_add_##isa, (t)->axpy = hd_axpy_##isa, (t)->to_f16 = hd_to_f16_##isa,              \
     (t)->to_f32 = hd_to_f32_##isa, (t)->rope = hd_rope_##isa)
#define ATTEND(t, isa) ((t)->attend = hd_attend_##isa, (t)->attend_scratch = hd_attend_scratch_##isa)
#define DELTA(t, isa) ((t)->delta = hd_delta_##isa)
#define SCAN(t, isa) ((t)->scan = &hd_scan_##isa)
#define PRODUCTS(t, isa) \
    ((t)->product = product_##isa, (t)->product_scratch = scratch_##isa)
#define UNPACKERS(t, isa) memcpy((t)->unpack, hd_unpackers_##isa, sizeof hd_unpackers_##isa)

/* A set needs all that the ones below it need. Tiles are asked for only where they can be used. */
static void probe(void) {
    static const char *(*const lacks[LEVELS])(void) = {
        [LEVEL_AVX2] = hd_processor_lacks_avx2, [LEVEL_AVX512] = hd_processor_lacks_avx512,
        [LEVEL_AVX512BF16] = hd_processor_lacks_avx512bf16, [LEVEL_AMX] = hd_processor_lacks_tiles};
    for (int i = LEVEL_AVX2; i < LEVELS; i++) refusals[i] = refusals[i - 1] ? refusals[i - 1] : lacks[i]();
}

static void fill(void) {
    probe();
    for (int i = 0; i < LEVELS; i++) {
        hd_kernels *t = &tables[i];
        if (i > 0) *t = tables[i - 1];
        t->name = level_names[i];
        if (i == LEVEL_C) {
            t->panel = HD_GEMM_PANEL;
            t->act_for = act_for, t->act_bytes = hd_act_bytes, t->act_pack = hd_act_pack_c;
            UNPACKERS(t, c), PRODUCTS(t, c), VECTORS(t, c), ATTEND(t, c), DELTA(t, c), SCAN(t, c);
        }
#if defined(__x86_64__)
        if (i == LEVEL_AVX2) {
            t->act_pack = hd_act_pack_avx2;
            UNPACKERS(t, avx2), PRODUCTS(t, avx2), VECTORS(t, avx2), ATTEND(t, avx2), DELTA(t, avx2), SCAN(t, avx2);
        }
        if (i == LEVEL_AVX512) {
            t->act_pack = hd_act_pack_avx512;
            UNPACKERS(t, avx512), PRODUCTS(t, avx512), VECTORS(t, avx512), ATTEND(t, avx512), DELTA(t, avx512), SCAN(t, avx512);
        }
        /* Nothing of its own with BF16: the panels of bytes are faster (twice the rate of VDPBF16PS) and keep more. */
        if (i == LEVEL_AMX) PRODUCTS(t, amx);
#endif
    }
}

const hd_kernels *hd_kernels_for(const char *name, const char **why) {
    const char *ignored;
    if (!why) why = &ignored;
    *why = NULL;
    pthread_once(&once, fill);
    if (!name || !*name) name = getenv("HEARTHD_ISA");
    if (!name || !*name) {
        int best = LEVEL_C;
        for (int i = 0; i < LEVELS; i++)
            if (!refusals[i]) best = i;
        return &tables[best];
    }
    for (int i = 0; i < LEVELS; i++)
        if (strcmp(name, level_names[i]) == 0) {
            *why = refusals[i];
            return refusals[i] ? NULL : &tables[i];
        }
    *why = "no such instruction set; there are c, avx2, avx512, avx512bf16 and amx";
    return NULL;
}
