/* Vector operations for AVX-512; see vector_wide.h. */
#include "vector_wide.h"
