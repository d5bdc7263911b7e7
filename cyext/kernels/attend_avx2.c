/* Attention for AVX2; see attend_wide.h. */
#include "attend_wide.h"
