/* Passes over logits for AVX-512; see scan_wide.h. */
#include "scan_wide.h"
