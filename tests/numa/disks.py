"""A disk some sectors of which cannot be read, as the guest's device mapper makes it. Owns the device's table.

The ioctls are those of linux/dm-ioctl.h and linux/fiemap.h; dmsetup is not needed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

SECTOR = 512
HEADER = struct.Struct("=3I II IiIII Q 128s 129s 7x")
TARGET = struct.Struct("=QQiI16s")
CREATE, SUSPEND, LOAD = 3, 6, 9
SUSPEND_FLAG = 1 << 1
FIEMAP = 0xC020660B
EXTENT = struct.Struct("=QQQQQIIII")


class Disk:
    """A device over `below` with an empty ext4 on `directory`; every sector can be read until `spoil` is called."""

    def __init__(self, below: str, directory: Path, name: str = "spoilt") -> None:
        self._below, self._name = below, name
        self._sectors = int(Path("/sys/class/block", Path(below).name, "size").read_text())
        with open("/dev/mapper/control", "rb") as control:
            self._control = os.dup(control.fileno())
        device = self._command(CREATE)
        self.spoil()
        path = f"/dev/dm-{device & 0xFF | device >> 12 & 0xFFF00}"
        subprocess.run(["mkfs.ext4", "-qF", path], check=True)
        subprocess.run(["mount", "-t", "ext4", path, directory], check=True)

    def spoil(self, sectors: Sequence[int] = ()) -> None:
        """From now on reads of exactly these sectors fail with EIO."""
        table, at = [], 0
        for sector in sorted(set(sectors)):
            if sector > at:
                table.append((at, sector - at, "linear", f"{self._below} {at}"))
            table.append((sector, 1, "error", ""))
            at = sector + 1
        if at < self._sectors:
            table.append((at, self._sectors - at, "linear", f"{self._below} {at}"))
        body = b""
        for start, length, kind, text in table:
            words = text.encode() + b"\0"
            words += bytes(-(TARGET.size + len(words)) % 8)
            body += TARGET.pack(start, length, 0, TARGET.size + len(words), kind.encode()) + words
        self._command(LOAD, body, len(table))
        self._command(SUSPEND, flags=SUSPEND_FLAG)
        self._command(SUSPEND)

    def _command(self, number: int, body: bytes = b"", targets: int = 0, flags: int = 0) -> int:
        size = HEADER.size + len(body)
        head = HEADER.pack(4, 0, 0, size, HEADER.size, targets, 0, flags, 0, 0, 0, self._name.encode(), b"")
        buffer = bytearray(head + body)
        fcntl.ioctl(self._control, 3 << 30 | HEADER.size << 16 | 0xFD << 8 | number, buffer)
        return int(HEADER.unpack_from(buffer)[10])


def sector_of(path: Path, offset: int) -> int:
    """Of its disk, where a byte of a file lies."""
    buffer = bytearray(struct.pack("=QQIIII", offset, 1, 1, 0, 1, 0) + bytes(EXTENT.size))
    with path.open("rb") as file:
        fcntl.ioctl(file.fileno(), FIEMAP, buffer)
    logical, physical, *_ = EXTENT.unpack_from(buffer, 32)
    return int(physical + offset - logical) // SECTOR


def forget_pages() -> None:
    """Drop every clean page that nobody has mapped."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
