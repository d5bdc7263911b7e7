/* gemm_amx.c over tiles in C: the test of its arithmetic on machines without AMX. Not offered by the dispatch. */
#define HD_AMX_EMULATED
#include "gemm_amx.c"
