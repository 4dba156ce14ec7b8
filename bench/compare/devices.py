"""Block devices to measure on: loop devices over files in memory, or on this machine's disk."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile

from tools import MIB, ROOT, BenchError, run

RAM_DIRECTORY = pathlib.Path("/dev/shm")
DISK_DIRECTORY = ROOT / "target"
SECTOR = 512
# What stays free of the machine's memory, or of its disk.
SPARE = 1024 * MIB


@dataclasses.dataclass(frozen=True)
class Device:
    """A device, or the file itself where loop devices are not allowed."""

    path: pathlib.Path
    is_loop: bool

    def bytes_written(self):
        """Bytes that were ever written to it, from its own counters."""
        if not self.is_loop:
            raise BenchError("bytes written are counted by loop devices alone: run this as root, "
                             "where losetup is allowed")
        stat = pathlib.Path(f"/sys/block/{self.path.name}/stat").read_text()
        return int(stat.split()[6]) * SECTOR


@contextlib.contextmanager
def workspace(kind):
    """A directory for files of devices of that kind, which goes in the end."""
    parent = RAM_DIRECTORY if kind == "ram" else DISK_DIRECTORY
    if not os.access(parent, os.W_OK):
        raise BenchError(f"{parent} cannot be written to, and the {kind} devices are files there")
    with tempfile.TemporaryDirectory(prefix="flipside-bench-", dir=parent) as name:
        yield pathlib.Path(name)


def check_room(directory, needed):
    """Refuses to begin what there is no room for."""
    free = shutil.disk_usage(directory).free
    if directory.is_relative_to(RAM_DIRECTORY):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        free = min(free, int(available.split()[1]) * 1024)
    if free < needed + SPARE:
        raise BenchError(f"{directory.parent} has {free // MIB} MiB free, and the devices need "
                         f"{(needed + SPARE) // MIB}: make room, or ask for a smaller --size")


@contextlib.contextmanager
def device(directory, name, size, is_filled=True):
    """A device of `size` bytes over a new file in that directory, written to the end where it is to
    be `filled`, so that nobody pays for pages of memory or extents that are used first."""
    file = directory / f"{name}.device"
    check_room(directory, size if is_filled else 0)
    with file.open("wb") as handle:
        if is_filled:
            for _ in range(size // MIB):
                handle.write(bytes(MIB))
        handle.truncate(size)
        os.fsync(handle.fileno())
    try:
        path = run(["losetup", "--find", "--show", "--direct-io=on", file]).strip()
    except BenchError:
        yield Device(file, is_loop=False)
        file.unlink()
        return
    try:
        yield Device(pathlib.Path(path), is_loop=True)
    finally:
        run(["losetup", "--detach", path])
        file.unlink()


def describe(kind):
    """What these devices are, for the report."""
    if kind == "ram":
        return "loop device (direct I/O) over a file in memory (tmpfs)"
    source = run(["df", "--output=source,fstype", DISK_DIRECTORY]).splitlines()[1].split()
    return f"loop device (direct I/O) over a file on {' '.join(source)}"
