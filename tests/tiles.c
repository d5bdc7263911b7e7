/* A processor with AMX tiles for one that has none: preloaded, it executes the tile instructions of the real kernels when
 * they trap (SIGILL), decoded from their bytes, and says that the processor has them. Owns the tiles, one set for each thread;
 * knows none of our code but the function that asks for the processor. Whatever would fault on a processor ends the
 * program here, with a word. Semantics: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: LDTILECFG,
 * TILELOADD, TILERELEASE, TILESTORED, TILEZERO, TDPBSSD and its kin.
 *
 *   cc -O2 -shared -fPIC tests/tiles.c -o tiles.so && LD_PRELOAD=$PWD/tiles.so HEARTHD_ISA=amx PROGRAM
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum { TILES = 8, ROWS = 16, BYTES = 64 };
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} config;

static _Thread_local struct {
    config c;
    uint8_t tile[TILES][ROWS][BYTES];
} state;
static atomic_ulong products;

static _Noreturn void wrong(const char *what)
{
    fprintf(stderr, "tiles: %s\n", what);
    abort();
}

static void need(int right, const char *what)
{
    if (!right) wrong(what);
}

/* --- instructions ---------------------------------------------------------------------------------------------------- */

static void configure(const void *from)
{
    config c;
    memcpy(&c, from, sizeof c);
    memset(&state, 0, sizeof state);
    if (c.palette == 0) return;
    need(c.palette == 1 && c.start_row == 0, "a palette that does not exist, or a start row that nobody wants");
    for (size_t i = 0; i < sizeof c.reserved; i++) need(!c.reserved[i], "reserved bytes of the configuration are set");
    for (int t = 0; t < 16; t++) {
        need(!c.bytes[t] == !c.rows[t], "a tile with rows and no columns, or the other way round");
        need(c.bytes[t] <= BYTES && c.rows[t] <= ROWS, "a tile that is too large");
        need(t < TILES || !c.rows[t], "a tile that does not exist");
    }
    state.c = c;
}

static void known(int t)
{
    need(state.c.palette == 1, "tiles are not configured");
    need(t < TILES && state.c.rows[t], "the tile is not configured");
}

static void load(int t, const uint8_t *from, int64_t stride)
{
    known(t);
    memset(state.tile[t], 0, sizeof state.tile[t]);
    for (int r = 0; r < state.c.rows[t]; r++) memcpy(state.tile[t][r], from + r * stride, state.c.bytes[t]);
}

static void store(int t, uint8_t *to, int64_t stride)
{
    known(t);
    for (int r = 0; r < state.c.rows[t]; r++) memcpy(to + r * stride, state.tile[t][r], state.c.bytes[t]);
}

static int32_t byte(uint8_t b, int has_sign) { return has_sign ? (int8_t)b : b; }

/* c[m][n] += sum over k and i < 4 of a[m][4k + i] * b[k][4n + i]. */
static void multiply(int c, int a, int b, int a_signed, int b_signed)
{
    known(a), known(b), known(c);
    need(a != b && a != c && b != c, "a product needs three different tiles");
    const config *g = &state.c;
    need(g->bytes[c] % 4 == 0 && g->bytes[a] % 4 == 0 && g->bytes[b] % 4 == 0, "columns of a product are no whole dwords");
    need(g->rows[a] == g->rows[c] && g->bytes[b] == g->bytes[c] && g->bytes[a] / 4 == g->rows[b],
         "tiles of a product do not fit together");
    for (int m = 0; m < g->rows[c]; m++) {
        int32_t sum[BYTES / 4] = {0};
        memcpy(sum, state.tile[c][m], BYTES);
        for (int k = 0; k < g->rows[b]; k++)
            for (int n = 0; n < g->bytes[c] / 4; n++) {
                int32_t four = 0;
                for (int i = 0; i < 4; i++)
                    four += byte(state.tile[a][m][4 * k + i], a_signed) * byte(state.tile[b][k][4 * n + i], b_signed);
                sum[n] = (int32_t)((uint32_t)sum[n] + (uint32_t)four);
            }
        memcpy(state.tile[c][m], sum, BYTES);
    }
    for (int m = g->rows[c]; m < ROWS; m++) memset(state.tile[c][m], 0, BYTES);
    products++;
}

/* --- their bytes: VEX.128.{none,66,F3,F2}.0F38.W0 and an opcode, a ModRM byte and, for memory, what it asks for -------- */

static uint64_t general(const ucontext_t *u, int n)
{
    static const int at[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t)u->uc_mcontext.gregs[at[n]];
}

typedef struct {
    int prefix, opcode, mod, reg, rm, vvvv, length, has_index;
    uint64_t address, stride;
} instruction;

static int decode(const ucontext_t *u, const uint8_t *p, instruction *in)
{
    const uint8_t *start = p;
    if (p[0] != 0xc4 || (p[1] & 0x1f) != 2 || p[2] & 0x84) return 0; /* three bytes, map 0F38, W and L zero */
    int r = ~p[1] >> 7 & 1, x = ~p[1] >> 6 & 1, b = ~p[1] >> 5 & 1;
    *in = (instruction){.prefix = p[2] & 3, .vvvv = ~p[2] >> 3 & 15, .opcode = p[3], .mod = p[4] >> 6,
                        .reg = (p[4] >> 3 & 7) | r << 3, .rm = p[4] & 7};
    p += 5;
    if (in->mod == 3) {
        in->rm |= b << 3;
    } else {
        int base = in->rm, relative = 0;
        if (in->rm == 4) {
            int index = (*p >> 3 & 7) | x << 3;
            base = *p & 7;
            in->has_index = 1;
            if (index != 4) in->stride = general(u, index) << (*p >> 6);
            p++;
        } else {
            relative = in->mod == 0 && base == 5;
        }
        int none = in->mod == 0 && base == 5;
        if (!none) in->address = general(u, base | b << 3);
        if (in->mod == 1) {
            in->address += (uint64_t)(int64_t)(int8_t)*p++;
        } else if (in->mod == 2 || none) {
            int32_t displacement;
            memcpy(&displacement, p, 4);
            in->address += (uint64_t)(int64_t)displacement;
            p += 4;
        }
        if (relative) in->address += (uint64_t)(uintptr_t)p;
    }
    in->length = (int)(p - start);
    return 1;
}

enum { NONE = 0, P66 = 1, PF3 = 2, PF2 = 3 };

static int execute(const instruction *in)
{
    void *memory = (void *)(uintptr_t)(in->address); /* NOLINT: an address out of a register */
    int here = in->prefix << 8 | in->opcode;
    if (in->mod != 3) {
        if (here == (NONE << 8 | 0x49) && in->reg == 0) {
            configure((uint8_t *)memory + in->stride);
            return 1;
        }
        if (!in->has_index) return 0;
        if (here == (PF2 << 8 | 0x4b) || here == (P66 << 8 | 0x4b)) load(in->reg, memory, (int64_t)in->stride);
        else if (here == (PF3 << 8 | 0x4b)) store(in->reg, memory, (int64_t)in->stride);
        else return 0;
        return 1;
    }
    if (here == (NONE << 8 | 0x49) && in->reg == 0 && in->rm == 0) {
        memset(&state, 0, sizeof state);
    } else if (here == (PF2 << 8 | 0x49) && in->rm == 0) {
        known(in->reg);
        memset(state.tile[in->reg], 0, sizeof state.tile[in->reg]);
    } else if (in->opcode == 0x5e) { /* the first source's sign: SS (F2) and SU (F3); the second's: SS and US (66) */
        multiply(in->reg, in->rm, in->vvvv, in->prefix == PF2 || in->prefix == PF3, in->prefix == PF2 || in->prefix == P66);
    } else {
        return 0;
    }
    return 1;
}

static void trapped(int number, siginfo_t *info, void *context)
{
    (void)number;
    ucontext_t *u = context;
    instruction in;
    if (!decode(u, info->si_addr, &in) || !execute(&in)) wrong("an instruction that is no tile's");
    u->uc_mcontext.gregs[REG_RIP] += in.length;
}

/* --- the processor ----------------------------------------------------------------------------------------------------- */

typedef int action(int, const struct sigaction *, struct sigaction *);

/* Nobody else may have the trap, nor keep it from a thread. */
int sigaction(int number, const struct sigaction *new, struct sigaction *old)
{
    action *real = (action *)dlsym(RTLD_NEXT, "sigaction");
    return real(number, number == SIGILL ? NULL : new, old);
}

int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    sigset_t without;
    if (set) {
        without = *set;
        if (how != SIG_UNBLOCK) sigdelset(&without, SIGILL);
        set = &without;
    }
    return sigprocmask(how, set, old) == 0 ? 0 : errno; /* Linux: of the calling thread */
}

__attribute__((constructor)) static void begin(void)
{
    /* NODEFER: a bus error while a tile loads leaves by a jump that does not restore the mask. */
    struct sigaction a = {.sa_flags = SA_SIGINFO | SA_NODEFER};
    a.sa_sigaction = trapped;
    action *real = (action *)dlsym(RTLD_NEXT, "sigaction");
    real(SIGILL, &a, NULL);
}

/* So that a test sees that it tested something. */
__attribute__((destructor)) static void end(void)
{
    if (products) fprintf(stderr, "tiles: %lu products\n", products);
}

/* In the place of cyext/kernels/processor.c's. */
const char *hd_processor_lacks_tiles(void) { return NULL; }
