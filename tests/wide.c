/* A processor with AVX-512 for one that has none: the kernels of the *_avx512.c and *_amx.c files, built with wide.h's functions
 * for instructions, take the place of the library's when they are preloaded, and the processor is said to have them. With
 * tiles.c beside it AMX's kernels run as well. Results are a real processor's to the bit; nothing can be learned of its speed.
 * emulated.py builds it; then
 *
 *   LD_PRELOAD="$PWD/wide.so $PWD/tiles.so" HEARTHD_ISA=amx PROGRAM
 */
#include <stddef.h>

/* In the place of cyext/kernels/processor.c's. */
const char *hd_processor_lacks_avx512(void);
const char *hd_processor_lacks_avx512bf16(void);
const char *hd_processor_lacks_avx512(void) { return NULL; }
const char *hd_processor_lacks_avx512bf16(void) { return NULL; }
