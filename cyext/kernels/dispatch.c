/* The tables of kernels: which function serves which instruction set, and what this machine and its kernel permit.
 * Owns the choice only; a set inherits from the one below what it has none of its own for. */
#include "attend.h"
#include "gemm.h"
#include "product.h"
#include "vector.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { LEVEL_C, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AVX512BF16, LEVEL_AMX, LEVELS };
static const char *const level_names[LEVELS] = {"c", "avx2", "avx512", "avx512bf16", "amx"};

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Floats stay floats (8 bits would lose what these types keep); the rest is multiplied in bytes. */
static hd_act usual_act(int32_t type) {
    return type == HD_F32 || type == HD_F16 || type == HD_BF16 ? HD_ACT_F32 : HD_ACT_Q8;
}

/* Many tokens first; what the panels do not take goes to the direct products. */
#define TAKE(isa) hd_gemm_##isa(p, r0, r1, scratch)
#define WISH(isa) ((wish = hd_gemm_act_##isa(type, step_rows)) >= 0)
#define LEVEL(isa, takes, wishes, scratch_bytes, direct)                                       \
    static void product_##isa(const hd_product *p, int64_t r0, int64_t r1, void *scratch) {    \
        if (!(takes)) direct(p, r0, r1);                                                       \
    }                                                                                          \
    static size_t scratch_##isa(const hd_product *p) { return scratch_bytes; }                 \
    static hd_act act_for_##isa(int32_t type, int32_t step_rows) {                             \
        int32_t wish;                                                                          \
        return (wishes) ? (hd_act)wish : usual_act(type);                                      \
    }
LEVEL(c, TAKE(c), WISH(c), hd_gemm_scratch_c(p), hd_product_c)
#if defined(__x86_64__)
LEVEL(avx2, TAKE(avx2), WISH(avx2), hd_gemm_scratch_avx2(p), hd_product_avx2)
LEVEL(avx512, TAKE(avx512), WISH(avx512), hd_gemm_scratch_avx512(p), hd_product_avx512)
LEVEL(avx512bf16, TAKE(avx512bf16) || TAKE(avx512), WISH(avx512bf16) || WISH(avx512),
      larger(hd_gemm_scratch_avx512bf16(p), hd_gemm_scratch_avx512(p)), hd_product_avx512)
LEVEL(amx, TAKE(amx) || TAKE(avx512bf16) || TAKE(avx512), WISH(amx) || WISH(avx512bf16) || WISH(avx512),
      larger(hd_gemm_scratch_amx(p), larger(hd_gemm_scratch_avx512bf16(p), hd_gemm_scratch_avx512(p))), hd_product_avx512)
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
#define PRODUCTS(t, isa) \
    ((t)->product = product_##isa, (t)->product_scratch = scratch_##isa, (t)->act_for = act_for_##isa)
#define UNPACKERS(t, isa) memcpy((t)->unpack, hd_unpackers_##isa, sizeof hd_unpackers_##isa)

#if defined(__x86_64__)
static uint64_t enabled_states(void) {
    uint32_t a = 0, d = 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (uint64_t)d << 32 | a;
}

/* The processor's word (cpuid) is not enough: the kernel must save the registers (xcr0) and, for tiles, be asked. */
static void probe(void) {
    uint32_t a, b, c, d, c1, a71 = 0, b7 = 0, c7 = 0, d7 = 0;
    __get_cpuid(1, &a, &b, &c1, &d);
    if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) && a >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
    uint64_t states = c1 >> 27 & 1 ? enabled_states() : 0;
    int fma = (c1 >> 12 & 1) && (c1 >> 29 & 1); /* FMA, F16C */
    int avx2 = fma && (b7 >> 5 & 1) && (b7 >> 8 & 1);
    int avx512 = (b7 >> 16 & 1) && (b7 >> 17 & 1) && (b7 >> 30 & 1) && (b7 >> 31 & 1) && (c7 >> 11 & 1);
    int tiles = (d7 >> 24 & 1) && (d7 >> 25 & 1) && (d7 >> 22 & 1);
    if (!avx2) refusals[LEVEL_AVX2] = "the processor has no AVX2 with FMA, F16C and BMI2";
    else if ((states & 6) != 6) refusals[LEVEL_AVX2] = "the kernel does not save AVX registers";
    if (refusals[LEVEL_AVX2]) refusals[LEVEL_AVX512] = refusals[LEVEL_AVX2];
    else if (!avx512) refusals[LEVEL_AVX512] = "the processor has no AVX-512 F, DQ, BW, VL and VNNI";
    else if ((states & 0xe6) != 0xe6) refusals[LEVEL_AVX512] = "the kernel does not save AVX-512 registers";
    if (refusals[LEVEL_AVX512]) refusals[LEVEL_AVX512BF16] = refusals[LEVEL_AVX512];
    else if (!(a71 >> 5 & 1)) refusals[LEVEL_AVX512BF16] = "the processor has no AVX-512 BF16";
    if (refusals[LEVEL_AVX512BF16]) refusals[LEVEL_AMX] = refusals[LEVEL_AVX512BF16];
    else if (!tiles) refusals[LEVEL_AMX] = "the processor has no AMX tiles with INT8 and BF16";
    else if ((states & 0x60000) != 0x60000) refusals[LEVEL_AMX] = "the kernel does not save AMX tiles";
    else if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) != 0)
        refusals[LEVEL_AMX] = "the kernel does not permit AMX tiles to this process";
}
#else
static void probe(void) {
    for (int i = LEVEL_AVX2; i < LEVELS; i++) refusals[i] = "the processor is no x86-64";
}
#endif

static void fill(void) {
    probe();
    for (int i = 0; i < LEVELS; i++) {
        hd_kernels *t = &tables[i];
        if (i > 0) *t = tables[i - 1];
        t->name = level_names[i];
        if (i == LEVEL_C) {
            t->panel = HD_GEMM_PANEL;
            t->act_bytes = hd_act_bytes, t->act_pack = hd_act_pack_c;
            UNPACKERS(t, c), PRODUCTS(t, c), VECTORS(t, c), ATTEND(t, c), DELTA(t, c);
        }
#if defined(__x86_64__)
        if (i == LEVEL_AVX2) {
            t->act_pack = hd_act_pack_avx2;
            UNPACKERS(t, avx2), PRODUCTS(t, avx2), VECTORS(t, avx2), ATTEND(t, avx2), DELTA(t, avx2);
        }
        if (i == LEVEL_AVX512) {
            t->act_pack = hd_act_pack_avx512;
            UNPACKERS(t, avx512), PRODUCTS(t, avx512), VECTORS(t, avx512), ATTEND(t, avx512), DELTA(t, avx512);
        }
        if (i == LEVEL_AVX512BF16) PRODUCTS(t, avx512bf16);
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
