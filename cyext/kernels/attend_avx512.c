/* Attention for AVX-512; see attend_wide.h. */
#include "attend_wide.h"
