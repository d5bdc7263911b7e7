#define _GNU_SOURCE
#include "fault.h"
#include <pthread.h>
#include <signal.h>
#include <stddef.h>

static _Thread_local sigjmp_buf *innermost;
static _Thread_local const void *address;
static struct sigaction previous;
static pthread_once_t once = PTHREAD_ONCE_INIT;

sigjmp_buf **hd_fault_slot(void) { return &innermost; }
const void *hd_fault_address(void) { return address; }

static void on_bus_error(int number, siginfo_t *info, void *context) {
    if (innermost) {
        address = info->si_addr;
        siglongjmp(*innermost, 1);
    }
    if (previous.sa_flags & SA_SIGINFO) {
        if (previous.sa_sigaction) previous.sa_sigaction(number, info, context);
        return;
    }
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(number);
        return;
    }
    signal(number, SIG_DFL);   /* returning repeats the access, which now ends the process as it would have */
}

static void install(void) {
    struct sigaction action = {0};
    action.sa_sigaction = on_bus_error;
    /* NODEFER: the handler leaves by a jump that does not restore the mask. */
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous);
}

void hd_fault_install(void) { pthread_once(&once, install); }
