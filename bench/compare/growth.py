"""What grows with what: memory and start-up time with the volume, recovery with the journal, both
with the number of volumes, and memory with the number of connections.

Devices are sparse files in memory: what is not written takes no room.
"""

import contextlib
import json
import threading
import time

import devices
import procfs
from cases import Case
from fio import Amount, arguments, load
from nbd_client import Client, RefusedError
from tools import FLIPSIDE, GIB, KIB, TIB, BenchError, run, running

SIZES = (GIB, 16 * GIB, 128 * GIB, TIB, 4 * TIB, 16 * TIB)
QUICK_SIZES = (GIB, TIB)
COUNTS = (1, 10, 100, 1000)
# What is written before the process is killed: every block into another extent.
LOAD = Case("randwrite", 4 * KIB, 32, flush=32)
STEP_SECONDS = 2
LOAD_SECONDS = 3
# As full as a journal gets: at half of its slots it begins to make room.
FULL = 0.45
LOADS_MAX = 6


def seconds(options):
    """How long all of it takes, as a guess."""
    sizes, counts = chosen(options)
    return (len(sizes) + 2 * len(counts)) * STEP_SECONDS + (LOADS_MAX + len(counts)) * LOAD_SECONDS


def chosen(options):
    """The sizes and counts that are tried."""
    return (QUICK_SIZES, COUNTS[-1:]) if options.quick else (SIZES, COUNTS)


class Pool:
    """A pool on a sparse file, that is served again and again."""

    def __init__(self, directory, size, volumes):
        self.directory = directory
        self.file = directory / "pool"
        self.socket = directory / "nbd.sock"
        self.control = directory / "control.sock"
        self.volumes = volumes
        with self.file.open("wb") as handle:
            handle.truncate(size)
        named = [f"--volume={name}={length}" for name, length in volumes.items()]
        run([FLIPSIDE, "format", "--force", *named, self.file])

    @contextlib.contextmanager
    def served(self, is_killed=False):
        """It is served; gives the process, and how long it took until it was ready."""
        command = [FLIPSIDE, "--log", "warn", "serve", "--commit-interval", "never",
                   "--listen", f"unix:{self.socket}", "--control", self.control, self.file]
        begun = time.monotonic()

        def is_ready(printed):
            return printed.count("ready nbd+unix://") == len(self.volumes)

        with running(command, self.directory / "log", is_ready,
                     is_killed) as process:
            yield process, (time.monotonic() - begun) * 1000

    def load(self, name):
        """Random writes with many flushes, which fill the journal."""
        where = ["--ioengine=nbd", f"--uri=nbd+unix:///{name}?socket={self.socket}"]
        amount = Amount(seconds=LOAD_SECONDS)
        load(where, arguments(LOAD, self.volumes[name], amount), self.directory)

    def status(self):
        """What the target says of itself."""
        return json.loads(run([FLIPSIDE, "status", "--json", "--control", self.control]))

    def journal_used(self):
        """The share of the journal's slots that are taken."""
        status = self.status()
        return 1 - status["journal_slots_free"] / status["journal_slots"]

    def crash(self, name, loads):
        """Served, loaded so many times at most, and killed under load as soon as the journal is
        full; how full it was."""
        used = 0
        with self.served(is_killed=True) as (process, _):
            loading = threading.Thread(target=self.load_until_killed, args=(name, loads))
            loading.start()
            while loading.is_alive() and used < FULL:
                used = self.journal_used()
            process.kill()
            process.wait()
            loading.join()
        return used

    def load_until_killed(self, name, loads):
        """Loads it so many times, unless it is killed meanwhile."""
        with contextlib.suppress(BenchError):
            for _ in range(loads):
                self.load(name)


def figures(pool):
    """Start-up and memory of a pool that is served anew."""
    with pool.served() as (process, ready_ms):
        recovery = pool.status()["recovery"]
        return {"ready_ms": ready_ms, "recovery_ms": recovery["took_us"] / 1000,
                "groups": recovery["groups"], "extents": recovery["pairs"],
                **procfs.memory(process)}


def by_size(directory, size):
    """An empty volume of that size, with a quarter more for the journal."""
    return figures(Pool(directory, size + max(size // 4, GIB), {"vol0": size}))


def after_crash(directory, size, loads):
    """A volume that was killed under load."""
    pool = Pool(directory, size + size // 4, {"vol0": size})
    share = pool.crash("vol0", loads)
    return {"journal_used": share, **figures(pool)}


def by_volumes(directory, count):
    """So many volumes, one of them loaded and then killed."""
    pool = Pool(directory, 2 * TIB, {f"vol{number}": GIB for number in range(count)})
    share = pool.crash("vol0", 1)
    return {"journal_used": share, **figures(pool)}


def by_connections(directory, count):
    """So many clients that are connected and idle."""
    pool = Pool(directory, 4 * GIB, {"vol0": GIB})
    with pool.served() as (process, ready_ms):
        begun = time.monotonic()
        try:
            clients = [Client(pool.socket, "vol0") for _ in range(count)]
        except RefusedError as error:
            raise BenchError(f"{count} connections: {error}") from error
        connect_ms = (time.monotonic() - begun) * 1000 / count
        found = {"ready_ms": ready_ms, "connect_ms": connect_ms, **procfs.memory(process)}
        for client in clients:
            client.close()
        return found


def measure(options, progress):
    """All of it: `{"sizes": {bytes: figures}, "crash": …, "volumes": …, "connections": …}`."""
    sizes, counts = chosen(options)
    found = {"sizes": {}, "crash": {}, "volumes": {}, "connections": {}}
    with devices.workspace("ram") as directory:
        for size in sizes:
            progress.step(STEP_SECONDS, f"growth: a volume of {size // GIB} GiB")
            found["sizes"][str(size)] = by_size(directory, size)
        loads = 1 if options.quick else LOADS_MAX
        progress.step(loads * LOAD_SECONDS, "growth: recovery at 1 TiB")
        found["crash"][str(TIB)] = after_crash(directory, TIB, loads)
        for count in counts:
            progress.step(STEP_SECONDS + LOAD_SECONDS, f"growth: {count} volumes")
            found["volumes"][str(count)] = by_volumes(directory, count)
        for count in counts:
            progress.step(STEP_SECONDS, f"growth: {count} connections")
            found["connections"][str(count)] = by_connections(directory, count)
    return found
