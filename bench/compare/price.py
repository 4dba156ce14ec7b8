"""What atomicity costs: bytes to the device for each byte written, and IOPS, of ours beside file
systems on the same device with the same pattern.

Ours is written to over NBD, file systems through fio's ring on a file; bytes do not depend on that,
IOPS do, in their favour: so the pattern that fits is loaded without a socket, too (`flipside
bench`). Bytes are those of the device's own counters; ours says for what it wrote them.
"""

import contextlib
import dataclasses
import json

import devices
import targets
from cases import Case
from fio import Amount, arguments, figures, load
from tools import FLIPSIDE, GIB, KIB, MIB, run

FILL = Case("write", MIB, 8)
RANDOM = Case("randwrite", 4 * KIB, 32, flush=32)
# A file system's least size is 300 MiB (xfs); it gets this many times the file otherwise.
ROOM = 2.5
FILE_SYSTEM_MIN = 512 * MIB
# A quick run has these alone.
QUICK = ("sequential", "overwrite", "fits", "uniform-25")
QUICK_FILE_SYSTEMS = ("ext4 data=journal",)
# Why clients' data comes to the device, by the counters of ours.
DATA = ("data", "copies", "destaged")
# Where metadata costs the most: every flush covers 32 blocks that share nothing.
WIDE = 16 * GIB
RESERVE = "3%"


@dataclasses.dataclass(frozen=True)
class Pattern:
    """What is written, and the journal space that ours has for it, as a share of the volume."""

    name: str
    what: str
    case: Case
    journal: float = 1.0
    options: tuple = ()
    # The part of the volume that it works on.
    span: float = 1.0
    # Of ours it is measured once it has gone on for as long before.
    is_steady: bool = False


SPACES = (0.1, 0.25, 0.5, 1.0)
PATTERNS = [
    Pattern("sequential", "1 MiB, in order, once", FILL),
    Pattern("overwrite", "1 MiB, in order, over all that is there", FILL),
    Pattern("fits", "4 KiB random over a quarter, a flush every 32", RANDOM, span=0.25,
            is_steady=True),
    *(Pattern(f"uniform-{space:.0%}".rstrip("%"), "4 KiB random over all, a flush every 32; "
              f"journal space {space:.0%} of the volume", RANDOM, journal=space, is_steady=True)
      for space in reversed(SPACES)),
    # fio scatters ranks over all extents: any quarter of these is met by half of the writes.
    Pattern("zipf-25", "4 KiB Zipfian (0.9) over all, a flush every 32; journal space 25%", RANDOM,
            journal=0.25, options=("--random_distribution=zipf:0.9",), is_steady=True),
    # The same distribution with its ranks in order: their first 1, 5 and 25 %, and the others.
    Pattern("zipf-near-25", "the same, but what is hot lies together", RANDOM, journal=0.25,
            options=("--random_distribution=zoned:48/1:16/4:18/20:18/75",), is_steady=True),
]
FILE_SYSTEMS = {
    "ext4 data=journal": (["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
                          "data=journal"),
    "ext4 data=ordered": (["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
                          "data=ordered"),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], "defaults"),
    "xfs": (["mkfs.xfs", "-q", "-f"], "defaults"),
}
OURS = {"flipside-device": [], "flipside-nvram": targets.NVRAM}
# The pattern that fits, as `flipside bench` has it.
ENGINE_CASE = "random-write-qd32-flush32"
ENGINE_FLAGS = {"flipside-device": [], "flipside-nvram": ["--nvram", "NVRAM"]}


WIDE_PATTERN = Pattern("wide", "4 KiB random over 16 GiB, never written before, a flush every 32",
                       RANDOM)


@dataclasses.dataclass(frozen=True)
class Work:
    """What all of them work with."""

    # Of the volume, or the file, in bytes.
    size: int
    # After so many seconds at random, a slow system is cut short.
    limit: int
    patterns: list
    progress: object
    directory: object

    def write(self, where, pattern):
        """Writes as much as the volume holds; fio's figures."""
        case = dataclasses.replace(pattern.case, span=int(self.size * pattern.span) // MIB * MIB)
        options = [*arguments(case, self.size, Amount(bytes=self.size)), *pattern.options,
                   "--end_fsync=1"]
        if pattern.case != FILL:
            options.append(f"--runtime={self.limit}s")
        return figures(load(where, options, self.directory))

    def begin(self, pattern, name):
        """One pattern on one system begins."""
        length = 1 if pattern.case == FILL else self.guess(pattern)
        self.progress.step(length, f"price: {pattern.name} {name}")

    def guess(self, pattern):
        """How long a random pattern takes, in seconds."""
        return min(self.size / (120 * MIB), self.limit) * (2 if pattern.is_steady else 1) + 1


def work(options, progress=None, directory=None):
    """What there is to do."""
    patterns = [one for one in PATTERNS if not options.quick or one.name in QUICK]
    return Work(options.price_size * MIB, 1 if options.quick else 10, patterns, progress, directory)


def file_systems(options):
    """Those that are measured."""
    return QUICK_FILE_SYSTEMS if options.quick else tuple(FILE_SYSTEMS)


def seconds(options):
    """How long all of it takes, as a guess."""
    planned = work(options)
    once = sum(planned.guess(pattern) for pattern in planned.patterns)
    wide = 0 if options.quick else planned.limit
    return (once + wide + 2 * planned.limit) * len(OURS) + once / 2 * len(file_systems(options))


def counters(served):
    """Bytes that ours wrote so far, by reason."""
    status = json.loads(run([FLIPSIDE, "status", "--json", "--control", served.control]))
    return status["device_bytes_written"]


def account(figures_, before, after, reasons=None):
    """The figures of a pattern, with bytes to the device for each byte written."""
    written = figures_["bytes"]
    found = {"iops": figures_["iops"], "mib_s": figures_["mib_s"], "bytes": written,
             "device": (after - before) / written}
    if reasons:
        old, new = reasons
        found.update({reason: (new[reason] - old[reason]) / written for reason in DATA})
        # What else came to the device: in its own counts flags and journal in NVRAM are included.
        # What was in the journal before may have been destaged, so that it is less than nothing.
        found["metadata"] = max(found["device"] - sum(found[reason] for reason in DATA), 0)
    return found


def measure_ours(work_, device, served, pattern):
    """One pattern on ours, committed at its end."""
    if pattern.is_steady:
        work_.write(served.fio, pattern)
    old, before = counters(served), device.bytes_written()
    found = work_.write(served.fio, pattern)
    run([FLIPSIDE, "commit", "--control", served.control])
    return account(found, before, device.bytes_written(), (old, counters(served)))


def measure_file(work_, device, mount, pattern):
    """One pattern on a file of a file system, synchronised at its end."""
    where = ["--ioengine=io_uring", "--direct=1", f"--filename={mount / 'file'}"]
    before = device.bytes_written()
    found = work_.write(where, pattern)
    run(["sync", "--file-system", mount])
    return account(found, before, device.bytes_written())


@contextlib.contextmanager
def mounted(device, name, directory):
    """A new file system of that kind."""
    make, options = FILE_SYSTEMS[name]
    run([*make, device.path])
    mount = directory / "mount"
    mount.mkdir(exist_ok=True)
    run(["mount", "-o", options, device.path, mount])
    try:
        yield mount
    finally:
        run(["umount", mount])


def device_size(directory, size, journal):
    """The size of a device that has extents for the volume and its share of journal space: asked of
    `flipside format` itself."""
    wanted = int(size * (1 + journal)) // MIB
    length = wanted + 32
    file = directory / "sizing.pool"
    for _ in range(4):
        with file.open("wb") as handle:
            handle.truncate(length * MIB)
        printed = run([*format_command(file, size)])
        extents = int(printed.split(" extents of ")[0].split()[-1])
        if extents == wanted:
            break
        length += wanted - extents
    file.unlink()
    return length * MIB


def format_command(device, size):
    """As journal space is given by the size of the device, next to none is kept in reserve."""
    return [FLIPSIDE, "format", "--force", "--journal-reserve", RESERVE,
            "--volume", f"vol0={size}", device]


class Pool(targets.Flipside):
    """Ours, on a device of the least size."""

    def prepare(self, place):
        """It keeps no journal space beyond what the device has."""
        return format_command(place.device, place.size)


def run_ours(work_, name):
    """All patterns on ours, each amount of journal space on a device of its own."""
    found = {}
    for journal in sorted({pattern.journal for pattern in work_.patterns}, reverse=True):
        length = device_size(work_.directory, work_.size, journal)
        with devices.device(work_.directory, name, length) as device:
            place = targets.Place(work_.directory, device.path, work_.size)
            with Pool(name, "", OURS[name]).serve(place) as served:
                if journal != 1.0:
                    work_.write(served.fio, PATTERNS[0])
                for pattern in (one for one in work_.patterns if one.journal == journal):
                    work_.begin(pattern, name)
                    found[pattern.name] = measure_ours(work_, device, served, pattern)
    return found


def run_wide(work_, name):
    """Random writes over a large volume that was empty."""
    wide = dataclasses.replace(work_, size=WIDE)
    length = WIDE * 2 + GIB
    with devices.device(work_.directory, name, length, is_filled=False) as device:
        place = targets.Place(work_.directory, device.path, WIDE)
        with targets.Flipside(name, "", OURS[name]).serve(place) as served:
            wide.begin(WIDE_PATTERN, name)
            return measure_ours(wide, device, served, WIDE_PATTERN)


def run_file_system(work_, name):
    """The patterns that differ for a file system: journal space is nothing to it."""
    found = {}
    length = max(int(work_.size * ROOM), FILE_SYSTEM_MIN) // MIB * MIB
    with devices.device(work_.directory, "file-system", length) as device:
        with mounted(device, name, work_.directory) as mount:
            uniform = next(one for one in work_.patterns if one.name.startswith("uniform"))
            for pattern in work_.patterns:
                if pattern.name.startswith("uniform") and pattern != uniform:
                    continue
                work_.begin(pattern, name)
                key = "uniform" if pattern == uniform else pattern.name
                found[key] = measure_file(work_, device, mount, pattern)
    return found


def run_engine(work_, name):
    """The engine without a socket, over the part that the pattern that fits works on: IOPS."""
    pattern = next(one for one in work_.patterns if one.name == "fits")
    span = int(work_.size * pattern.span) // MIB * MIB
    flags = [flag.replace("NVRAM", str(work_.directory / "flags")) for flag in ENGINE_FLAGS[name]]
    work_.begin(pattern, f"{name}, no socket")
    with devices.device(work_.directory, "engine", span * 5 // 2) as device:
        printed = run([FLIPSIDE, "bench", "--json", "--force", "--case", ENGINE_CASE,
                       "--size", span, "--time", f"{work_.limit}s", "--rounds", 1, *flags,
                       device.path])
    [case] = json.loads(printed)["cases"]
    return case["engine"]["iops"]


def measure(options, progress):
    """All systems: `{"what": {pattern: words}, "systems": {name: {pattern: figures}}, "engine":
    {name: IOPS}}`."""
    systems, engine = {}, {}
    with devices.workspace("ram") as directory:
        todo = work(options, progress, directory)
        for name in OURS:
            systems[name] = run_ours(todo, name)
            if not options.quick:
                systems[name]["wide"] = run_wide(todo, name)
            engine[name] = run_engine(todo, name)
        for name in file_systems(options):
            systems[name] = run_file_system(todo, name)
    what = {pattern.name: pattern.what for pattern in [*PATTERNS, WIDE_PATTERN]}
    return {"what": what, "systems": systems, "engine": engine, "size_mib": options.price_size}
