#include "delta_body.h"

void hd_delta_avx512(const hd_delta *d) { delta(d); }
