/* Asks the processor (cpuid) and the kernel (xcr0, arch_prctl) which instruction sets may be used; the processor's word is
 * not enough: the kernel must save the registers and, for tiles, be asked. Owns no choice: that is dispatch.c's. Functions,
 * one a set, so that a test can answer for a processor. */
#include "processor.h"

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
    uint32_t c1, b7, c7, d7, a71;  /* leaf 1, leaf 7, leaf 7 part 1 */
    uint64_t states;               /* that the kernel saves */
} words;

static words ask(void) {
    uint32_t a, b, c, d;
    words w = {0};
    if (__get_cpuid(1, &a, &b, &c, &d)) w.c1 = c;
    if (__get_cpuid_count(7, 0, &a, &w.b7, &w.c7, &w.d7) && a >= 1) __get_cpuid_count(7, 1, &w.a71, &b, &c, &d);
    if (w.c1 >> 27 & 1) {
        __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
        w.states = (uint64_t)d << 32 | a;
    }
    return w;
}

static int has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

const char *hd_processor_lacks_avx2(void) {
    words w = ask();
    if (!has(w.c1, 1u << 12 | 1u << 29) || !has(w.b7, 1u << 5 | 1u << 8)) /* FMA, F16C; AVX2, BMI2 */
        return "the processor has no AVX2 with FMA, F16C and BMI2";
    return (w.states & 6) == 6 ? NULL : "the kernel does not save AVX registers";
}

const char *hd_processor_lacks_avx512(void) {
    words w = ask();
    if (!has(w.b7, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) || !has(w.c7, 1u << 11))
        return "the processor has no AVX-512 F, DQ, BW, VL and VNNI";
    return (w.states & 0xe6) == 0xe6 ? NULL : "the kernel does not save AVX-512 registers";
}

const char *hd_processor_lacks_avx512bf16(void) {
    return has(ask().a71, 1u << 5) ? NULL : "the processor has no AVX-512 BF16";
}

#define XCOMP_REQUEST 0x1023 /* ARCH_REQ_XCOMP_PERM of asm/prctl.h, since Linux 5.16 */
#define XCOMP_TILES 18       /* the state component that holds the tiles; bit 17 is their configuration */

const char *hd_processor_lacks_tiles(void) {
    words w = ask();
    if (!has(w.d7, 1u << 24 | 1u << 25)) return "the processor has no AMX tiles with INT8";
    if ((w.states & 0x60000) != 0x60000) return "the kernel does not save AMX tiles";
    /* Refused by a kernel before 5.16, a sandbox, or where a thread's alternate signal stack is too small for tiles. */
    if (syscall(SYS_arch_prctl, XCOMP_REQUEST, XCOMP_TILES) != 0)
        return "the kernel does not permit AMX tiles to this process";
    return NULL;
}
#else
static const char *const other = "the processor is no x86-64";
const char *hd_processor_lacks_avx2(void) { return other; }
const char *hd_processor_lacks_avx512(void) { return other; }
const char *hd_processor_lacks_avx512bf16(void) { return other; }
const char *hd_processor_lacks_tiles(void) { return other; }
#endif
