/* The yardstick of the decode kernels: reading memory and doing nothing with it. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* Read n bytes (in lines of 128) once; the answer keeps the compiler from leaving it out. */
uint64_t hd_read_bytes(const uint8_t *p, size_t n);
