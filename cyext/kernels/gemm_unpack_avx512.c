/* Panels unpacked with AVX-512; see gemm_unpack_wide.h. */
#include "gemm_unpack_wide.h"
