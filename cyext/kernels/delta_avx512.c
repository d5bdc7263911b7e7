/* The gated delta rule with AVX-512. */
#include "delta_wide.h"
