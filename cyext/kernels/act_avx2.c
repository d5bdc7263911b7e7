/* Packing of activations, compiled for this file's instruction set. */
#define HD_NAME(x) x##_avx2
#include "act_body.h"
