/* Vector operations for AVX2; see vector_wide.h. */
#include "vector_wide.h"
