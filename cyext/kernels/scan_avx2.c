/* Passes over logits for AVX2; see scan_wide.h. */
#include "scan_wide.h"
