"""Every exit code of the three commands, in one place (sysexits.h where it has one). Decides nothing."""

from __future__ import annotations

OK = 0
FAILURE = 1  # the operation was understood and failed
USAGE = 2  # the command line is wrong
DATA = 65  # EX_DATAERR: a model file that is truncated, corrupt or foreign
UNAVAILABLE = 69  # EX_UNAVAILABLE: no daemon answers at the endpoint, or its place is taken
CONFIG = 78  # EX_CONFIG: a setting is unknown or impossible


def for_signal(number: int) -> int:
    """The code of a process that a signal ended: 128 + its number."""
    return 128 + number
