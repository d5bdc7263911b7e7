/* The gated delta rule with AVX2. */
#include "delta_wide.h"
