# cython: language_level=3
"""Teams of pinned threads. Owns the threads; what they run is others'."""
from libc.stdint cimport int32_t, uintptr_t

import numpy as np


cdef class Teams:
    """Pinned worker threads. cpus: for each team the processors of its threads (-1: not pinned); shares: by which work is
    divided between the teams (default: by their threads)."""
    def __cinit__(self, cpus, int spin=2000, shares=None):
        flat = [cpu for team in cpus for cpu in team]
        if not flat or any(not team for team in cpus):
            raise ValueError("a team without threads")
        if len(cpus) > 64:
            raise ValueError("more than 64 teams")
        cdef int32_t[::1] where = np.array(flat, dtype=np.int32)
        cdef int32_t[::1] team_of = np.array([k for k, team in enumerate(cpus) for _ in team], dtype=np.int32)
        self.cpus = [list(team) for team in cpus]
        self.shares = [int(share) for share in (map(len, cpus) if shares is None else shares)]
        if len(self.shares) != len(cpus) or min(self.shares) < 1:
            raise ValueError("a share for each team")
        cdef int32_t[::1] parts = np.array(self.shares, dtype=np.int32)
        self.handle = hd_teams_new(<int32_t>len(flat), &where[0], &team_of[0], &parts[0], spin)
        if self.handle is NULL:
            raise MemoryError("no threads to be had")

    @property
    def pointer(self):
        """The hd_teams, for other modules of this package; 0 once closed."""
        return <uintptr_t>self.handle

    def close(self):
        """End the threads. No program that uses them may run any more."""
        hd_teams_free(self.handle)
        self.handle = NULL

    def __dealloc__(self):
        hd_teams_free(self.handle)
