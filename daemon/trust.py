"""Whose making the places are that we read, write and connect to. Looks and tells; decides nothing and changes nothing.

Below a directory in which everybody may make files (/tmp), anybody can have made what lies at a name before we came.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def distrust(path: Path | str, user: int | None = None) -> str:
    """Why somebody else may have made what lies at a path, or may exchange it; '' when only this user and root can.

    What lies in a directory that everybody may write to has to belong to the user (default: the effective one) or to
    root, must be no symbolic link, and must be writable for its owner alone if it is a directory. Elsewhere, also below
    such a private directory, the arrangement is trusted. What is not there yet is nobody's.
    """
    ours = {0, os.geteuid() if user is None else user}
    at, shared = Path("/"), False
    parts = list(Path(os.path.abspath(path)).parts[1:])
    for _ in range(256):  # links elsewhere are followed, though not in circles
        if not parts:
            return ""
        at = at / parts.pop(0)
        try:
            found = at.lstat()
        except OSError:
            return ""
        if shared:
            if stat.S_ISLNK(found.st_mode):
                return f"{at} is a symbolic link in a directory that everybody may write to"
            if found.st_uid not in ours:
                return f"{at} belongs to user {found.st_uid}"
            if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
                return f"{at} may be changed by others (mode {stat.S_IMODE(found.st_mode):04o})"
        if stat.S_ISLNK(found.st_mode):
            target = Path(os.path.normpath(at.parent / os.readlink(at)))
            parts, at = [*target.parts[1:], *parts], Path("/")
        shared = stat.S_ISDIR(found.st_mode) and bool(found.st_mode & 0o002)
    return f"{path}: too many links"


def loose_secret(path: Path | str) -> str:
    """Why a file with a secret is none: others than its owner and group can read it, or others than its owner write."""
    found = os.stat(path)
    if found.st_uid not in (0, os.geteuid()) and os.geteuid() != 0:
        return f"it belongs to user {found.st_uid}"
    if found.st_mode & 0o026:
        return f"others can read or change it (mode {stat.S_IMODE(found.st_mode):04o}): chmod 600 it"
    return ""


def new_file(path: Path | str) -> BinaryIO:
    """A file for writing that was not there before, whatever was. Raises OSError; never follows a link laid there."""
    Path(path).unlink(missing_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb")
