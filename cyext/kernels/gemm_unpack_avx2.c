/* Panels unpacked with AVX2; see gemm_unpack_wide.h. */
#include "gemm_unpack_wide.h"
