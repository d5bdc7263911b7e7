"""The tests' own eyes on the page cache: mincore through ctypes, independent of the code under test."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def cached_pages(path: Path) -> np.ndarray:
    """bool per page of the file: is it in the page cache?"""
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    try:
        at = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        vec = np.zeros(-(-size // PAGE), dtype=np.uint8)
        assert _libc.mincore(at, size, vec.ctypes.data) == 0
        _libc.munmap(at, size)
    finally:
        os.close(fd)
    return (vec & 1).astype(bool)


def cold_file(path: Path, nbytes: int, seed: int = 0) -> Path:
    """Random bytes on disk, none of them cached."""
    path.write_bytes(np.random.default_rng(seed).bytes(nbytes))
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    return path
