/* A read of mapped memory that the disk or a shrunken file cannot satisfy ends in SIGBUS. Code inside HD_GUARD survives
 * it: the handler jumps to the second block. Guarded code must hold no lock while it reads mapped memory. */
#pragma once
#include <setjmp.h>

void hd_fault_install(void);                /* once per process; keeps the handler that was there for foreign faults */
const void *hd_fault_address(void);         /* of the fault that this thread survived last */
sigjmp_buf **hd_fault_slot(void);           /* where this thread's innermost guard is kept */

#define HD_GUARD(body, on_fault)                        \
    do {                                                \
        sigjmp_buf here_;                               \
        sigjmp_buf **slot_ = hd_fault_slot();           \
        sigjmp_buf *outer_ = *slot_;                    \
        if (sigsetjmp(here_, 0) == 0) {                 \
            *slot_ = &here_;                            \
            body;                                       \
            *slot_ = outer_;                            \
        } else {                                        \
            *slot_ = outer_;                            \
            on_fault;                                   \
        }                                               \
    } while (0)
