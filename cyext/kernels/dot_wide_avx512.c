/* Direct products of the types that are spread by hand, compiled for this file's instruction set. */
#define HD_NAME(x) x##_avx512
#include "dot_wide.h"
