"""A program under a filter that refuses system calls, as sandboxes and older kernels do: real refusals, by seccomp(2).

As a program: `sandbox.py ERRNO NAME[,NAME...] COMMAND...`. Decides nothing about what should come of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {  # x86-64; None: every call of it, else only calls whose third argument is this
    "populate": (28, 22),  # madvise(…, MADV_POPULATE_READ)
    "mincore": (27, None),
    "mlock": (149, None),
    "mlock2": (325, None),
    "cachestat": (451, None),
    "move_pages": (279, None),
    "mbind": (237, None),
    "set_mempolicy": (238, None),
    "sched_setattr": (314, None),
    "sched_getaffinity": (204, None),
    "sched_setaffinity": (203, None),
    "ioprio_set": (251, None),
    "readahead": (187, None),
    "fadvise64": (221, None),
    "statfs": (137, None),
}
POSSIBLE = sys.platform == "linux" and platform.machine() == "x86_64"

LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NUMBER_AT, THIRD_AT = 0, 32  # struct seccomp_data
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2


def refuse(error: int, names: list[str]) -> None:
    """From now on these calls of this process and its children end in an errno. Raises OSError."""
    lines: list[tuple[int, int, int, int]] = []
    for name in names:
        number, third = NUMBERS[name]
        if third is None:
            lines += [(LOAD, 0, 0, NUMBER_AT), (JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE | error)]
        else:
            lines += [(LOAD, 0, 0, NUMBER_AT), (JUMP_EQUAL, 0, 3, number), (LOAD, 0, 0, THIRD_AT),
                      (JUMP_EQUAL, 0, 1, third), (RETURN, 0, 0, REFUSE | error)]  # fmt: skip
    lines.append((RETURN, 0, 0, ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("=HxxxxxxQ", len(lines), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    refuse(getattr(errno, sys.argv[1]), sys.argv[2].split(","))
    os.execv(sys.argv[3], sys.argv[3:])
