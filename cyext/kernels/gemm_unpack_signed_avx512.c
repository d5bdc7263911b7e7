/* Weight blocks to panels of signed bytes, for tiles. */
#define HD_PANEL_SIGNED
#include "gemm_unpack_wide.h"
