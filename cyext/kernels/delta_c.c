#include "delta_body.h"

void hd_delta_c(const hd_delta *d) { delta(d); }
