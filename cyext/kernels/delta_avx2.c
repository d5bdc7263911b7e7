#include "delta_body.h"

void hd_delta_avx2(const hd_delta *d) { delta(d); }
