# Teams for other modules, and what teams.pyx takes from C.
from libc.stdint cimport int32_t, int64_t


cdef extern from "teams.h" nogil:
    ctypedef struct hd_teams:
        pass
    hd_teams *hd_teams_new(int32_t threads, const int32_t *cpus, const int32_t *team_of, const int32_t *shares,
                           int32_t spin)
    void hd_teams_free(hd_teams *t)
    void hd_teams_share(const hd_teams *t, int32_t team, int64_t n, int64_t *a, int64_t *b)


cdef class Teams:
    cdef hd_teams *handle
    cdef readonly list cpus, shares
