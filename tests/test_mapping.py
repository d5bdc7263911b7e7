"""Mapping against files of our own and an independent mincore."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hearthd.cyext.mapping import Mapping, parse_numa_maps
from hearthd.cyext.spans import Spans

from .pages import PAGE, cached_pages, cold_file

MIB = 1 << 20


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    path = cold_file(tmp_path / "model", 9 * MIB + 1234)
    if cached_pages(path).any():
        pytest.skip("the file system of the temporary directory keeps dropped pages (tmpfs?)")
    return path


def test_bytes_are_readable_past_the_end_and_aligned(cold: Path) -> None:
    mapping = Mapping([cold, cold])
    for file in (0, 1):
        base = mapping.address(file)
        assert base % (2 * MIB) == 0
        size = mapping.sizes[file]
        assert ctypes.string_at(base, 4096) == cold.read_bytes()[:4096]
        assert ctypes.string_at(base + size, 64) == bytes(64)
    mapping.close()
    with pytest.raises(ValueError, match="closed"):
        mapping.address(0)


def test_a_whole_page_at_the_end_is_followed_by_a_readable_one(tmp_path: Path) -> None:
    path = cold_file(tmp_path / "even", 2 * PAGE)
    mapping = Mapping([path])
    assert ctypes.string_at(mapping.address(0) + 2 * PAGE, 64) == bytes(64)


def test_populate_reads_what_is_asked_and_evict_gives_it_back(cold: Path) -> None:
    mapping = Mapping([cold])
    read, cached = mapping.populate(0, 3 * MIB + 100, MIB, cover=2.0)
    assert (read, cached) == (MIB + PAGE, 0)
    pages = cached_pages(cold)
    assert pages.sum() == 257 and pages[768 : 768 + 257].all()
    again = mapping.populate(0, 3 * MIB + 100, MIB, cover=2.0)
    assert again == (0, MIB + PAGE)
    assert mapping.evict(0, 3 * MIB + 100, MIB) == 255 * PAGE  # inward: the outer two pages may belong to neighbours
    assert cached_pages(cold).sum() == 2


def test_cover_decides_whether_blocks_are_read_whole(cold: Path) -> None:
    mapping = Mapping([cold])
    mapping.populate(0, 2 * MIB, MIB, cover=0.75)
    assert cached_pages(cold).sum() == 256
    read, _ = mapping.populate(0, 4 * MIB, 2 * MIB - 4 * PAGE, cover=0.75)
    assert read == 2 * MIB - 4 * PAGE
    assert cached_pages(cold).sum() == 256 + (512 if mapping.huge else 508)


def test_books_agree_with_an_independent_mincore(cold: Path) -> None:
    mapping = Mapping([cold])
    mapping.populate(0, MIB, MIB, cover=2.0)
    mapping.populate(0, 8 * MIB, MIB + 1234, cover=2.0)
    rng = np.random.default_rng(1)
    edges = np.unique(np.concatenate([[0, 9 * MIB + 1234], rng.integers(0, 9 * MIB, 40)])).astype(np.uint64)
    offset, nbytes = edges[:-1], np.diff(edges)
    truth = np.repeat(cached_pages(cold), PAGE)[: 9 * MIB + 1234]
    expected = [int(truth[int(o) : int(o + n)].sum()) for o, n in zip(offset, nbytes, strict=True)]
    assert mapping.cached(0, offset, nbytes).tolist() == expected
    assert mapping.mapped(0, offset, nbytes).tolist() == expected
    try:
        counts = mapping.cachestat(0, [0], [9 * MIB + 1234])
    except OSError as error:
        assert error.errno in (errno.ENOSYS, errno.EPERM)
    else:
        assert counts[0, 0] == cached_pages(cold).sum() * PAGE


def test_what_others_have_cached_counts_as_cached_but_not_as_mapped(cold: Path) -> None:
    cold.read_bytes()
    mapping = Mapping([cold])
    assert mapping.cached(0, [0], [MIB])[0] == MIB
    assert mapping.mapped(0, [0], [MIB])[0] == 0
    assert mapping.populate(0, 0, MIB) == (0, MIB)
    assert mapping.mapped(0, [0], [MIB])[0] == MIB


def test_a_file_that_shrank_is_reported_with_the_byte(cold: Path) -> None:
    mapping = Mapping([cold])
    os.truncate(cold, 5 * MIB)
    with pytest.raises(OSError, match=f"at byte {5 * MIB}") as caught:
        mapping.populate(0, 4 * MIB, 3 * MIB)
    assert caught.value.errno == errno.ENODATA and caught.value.filename == str(cold)
    assert mapping.populate(0, 4 * MIB, MIB, cover=2.0) == (0, MIB)


def test_files_that_cannot_be_mapped_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, number in (("absent", errno.ENOENT), ("empty", errno.ENODATA)):
        with pytest.raises(OSError, match=name) as caught:
            Mapping([tmp_path / name])
        assert caught.value.errno == number


def test_ranges_outside_the_file_are_refused(cold: Path) -> None:
    mapping = Mapping([cold])
    for call in (mapping.populate, mapping.evict, mapping.lock):
        with pytest.raises(OSError):
            call(0, 9 * MIB, 2 * MIB)
    with pytest.raises(ValueError, match="span 1"):
        Spans(mapping, [0, 0], [0, 9 * MIB], [MIB, MIB], [-1, 0])


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < MIB, reason="may not lock a mebibyte")
def test_locked_pages_are_locked(cold: Path) -> None:
    mapping = Mapping([cold])

    def locked() -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmLck"))

    before = locked()
    mapping.lock(0, 0, MIB)
    assert locked() - before == 1024
    mapping.unlock(0, 0, MIB)
    assert locked() == before


def test_page_nodes_and_numa_maps(cold: Path) -> None:
    mapping = Mapping([cold])
    mapping.populate(0, 0, MIB, cover=2.0)
    base = mapping.address(0)
    nodes = mapping.page_nodes([base, base + MIB - 1, base + 6 * MIB])
    assert nodes[0] == nodes[1] >= 0 and nodes[2] < 0
    if Path("/proc/self/numa_maps").exists():
        assert sum(mapping.numa_maps()[0].values()) == MIB


def test_numa_maps_lines_are_added_up_per_node() -> None:
    lines = [
        "7f0000000000 default file=/m.gguf mapped=512 active=0 N0=500 N1=12 kernelpagesize_kB=4",
        "7f0000200000 default file=/m.gguf mapped=1 N1=1 kernelpagesize_kB=2048",
        "7f0000400000 default anon=3 dirty=3 N0=3 kernelpagesize_kB=4",
        "7f9900000000 default file=/other N0=3 kernelpagesize_kB=4",
    ]
    assert parse_numa_maps(lines, {0: 0x7F0000000000}, [8 * MIB]) == {0: {0: 500 * PAGE, 1: 12 * PAGE + 2 * MIB}}
