/* Unpacking and products with few tokens, compiled for this file's instruction set. */
#define HD_NAME(x) x##_avx2
#define HD_DOTS 1
#include "product_body.h"
