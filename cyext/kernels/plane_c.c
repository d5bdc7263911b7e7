/* Every block layout spread into planes, compiled for this file's instruction set. */
#define HD_NAME(x) x##_c
#include "plane_body.h"
#include "plane_iq_body.h"
