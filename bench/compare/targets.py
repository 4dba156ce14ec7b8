"""Who is compared: each serves one device, and says where its volume is found."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import time

import devices
import procfs
from tools import BUILD, FLIPSIDE, MIB, PASSTHROUGH, READY_SECONDS, ROOT, BenchError, run, running


@dataclasses.dataclass(frozen=True)
class Place:
    """What a target has to itself: a directory, a device, and the size of the volume in bytes."""

    directory: pathlib.Path
    device: pathlib.Path
    size: int


@dataclasses.dataclass(frozen=True)
class Served:
    """A target that serves: where fio finds it, its process, and the commands that led here."""

    name: str
    fio: list
    process: object
    commands: list
    control: pathlib.Path | None = None


class Target:
    """A peer: what is common to all."""

    name = ""
    # Measured beside the others, for information, and not in all cases.
    is_informal = False
    what = ""

    def device_size(self, size):
        """Bytes of the device that it needs for a volume of that size."""
        return size

    def serve(self, place):
        """A context within which it serves, as `Served`."""
        socket = place.directory / f"{self.name}.sock"
        command = self.command(place, socket)
        uri = f"nbd+unix:///{self.export}?socket={socket}"
        return serving(self.name, place, command, uri, lambda _: socket.exists())

    export = ""


@contextlib.contextmanager
def serving(name, place, command, uri, is_ready, before=(), control=None):
    """Runs a target's commands."""
    for one in before:
        run(one)
    with running(command, place.directory / f"{name}.log", is_ready) as process:
        fio = ["--ioengine=nbd", f"--uri={uri}"]
        yield Served(name, fio, process, [*before, command], control)


class Flipside(Target):
    """Ours, with its defaults: every promise on."""

    def __init__(self, name, what, options):
        self.name = name
        self.what = what
        self.options = options

    def device_size(self, size):
        """As much again for the journal, and a half more that nothing ever runs short."""
        return size * 5 // 2

    def prepare(self, place):
        """The command that makes the volume."""
        return [FLIPSIDE, "format", "--force", "--volume", f"vol0={place.size}", place.device]

    def serve(self, place):
        """Formats the device and serves it."""
        name = self.name
        nvram = place.directory / f"{name}.nvram"
        socket, control = (place.directory / f"{name}.{kind}" for kind in ("sock", "control"))
        # What is in it belongs to a pool that was here before.
        nvram.unlink(missing_ok=True)
        options = [str(option).replace("NVRAM", str(nvram)) for option in self.options]
        command = [FLIPSIDE, "--log", "warn", "serve", "--listen", f"unix:{socket}",
                   "--control", control, *options, place.device]
        return serving(name, place, command, f"nbd+unix:///vol0?socket={socket}",
                       lambda printed: "ready nbd+unix://" in printed, [self.prepare(place)],
                       control)

    def version(self):
        """What it says of itself, and the state of the sources."""
        return f"{run([FLIPSIDE, '--version']).strip()} ({commit()})"


def commit():
    """The state of the sources."""
    with contextlib.suppress(BenchError):
        return run(["git", "describe", "--always", "--dirty"], cwd=ROOT).strip()
    return "no git"


class Passthrough(Target):
    """The price of the socket: our front end without the engine."""

    name = "pass-through"
    what = "our own front end and ring on the bare device, no engine: the price of the socket"

    def serve(self, place):
        """Serves the device as it is."""
        socket = place.directory / "passthrough.sock"
        command = [PASSTHROUGH, "--listen", f"unix:{socket}", place.device]
        return serving(self.name, place, command, f"nbd+unix:///disk?socket={socket}",
                       lambda printed: "ready nbd+unix://" in printed)

    def version(self):
        """It is built with the rest."""
        return commit()


class QemuNbd(Target):
    """The peer: past the page cache, on a ring, several clients allowed, raw format."""

    name = "qemu-nbd"
    what = "past the page cache, on a ring"

    def command(self, place, socket):
        """Its options are fixed."""
        return ["qemu-nbd", "--cache=none", "--aio=io_uring", "--format=raw", "--persistent",
                "--shared=128", f"--socket={socket}", place.device]

    def version(self):
        """What it says of itself."""
        return run(["qemu-nbd", "--version"]).splitlines()[0]


class Nbdkit(Target):
    """nbdkit with one of its plugins."""

    is_informal = True

    def __init__(self, plugin, what, arguments):
        self.name = f"nbdkit-{plugin}"
        self.what = what
        self.plugin = plugin
        self.arguments = arguments

    def command(self, place, socket):
        """In the foreground; it makes threads of its own."""
        arguments = [one.replace("DEVICE", str(place.device)).replace("SIZE", str(place.size))
                     for one in self.arguments]
        return ["nbdkit", "--foreground", "--unix", socket, self.plugin, *arguments]

    def version(self):
        """What it says of itself."""
        return run(["nbdkit", "--version"]).strip()


class NbdServer(Target):
    """The NBD project's own server: a process for each client."""

    name = "nbd-server"
    what = "page cache: for information"
    is_informal = True

    @contextlib.contextmanager
    def serve(self, place):
        """It takes its options from a file, and serves several clients as a daemon alone. The port
        is not used where there is a unix socket, and must be there."""
        socket, configuration, pid = (place.directory / f"nbd-server.{kind}"
                                      for kind in ("sock", "conf", "pid"))
        configuration.write_text(
            f"[generic]\nunixsock = {socket}\nport = 10809\n"
            f"[disk]\nexportname = {place.device}\nfilesize = {place.size}\n"
            "flush = true\nfua = true\n")
        command = ["nbd-server", "-C", configuration, "-p", pid]
        run(command)
        daemon = Daemon(pid)
        try:
            fio = ["--ioengine=nbd", f"--uri=nbd+unix:///disk?socket={socket}"]
            # Its work is done by children, of whom nothing is known here.
            yield Served(self.name, fio, None, [command])
        finally:
            daemon.end()

    def version(self):
        """What it says of itself."""
        return run(["nbd-server", "-V"]).splitlines()[0].removeprefix("This is ")


class Daemon:
    """A process that left its number in a file."""

    def __init__(self, file):
        deadline = time.monotonic() + READY_SECONDS
        while not (file.exists() and file.read_text().strip()):
            if time.monotonic() > deadline:
                raise BenchError(f"no process has left its number in {file}; see the system's log")
            time.sleep(0.01)
        self.pid = int(file.read_text())

    def end(self):
        """Asks it to end, and waits until it has let go of its device."""
        deadline = time.monotonic() + READY_SECONDS
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        while not procfs.has_ended(self.pid) and time.monotonic() < deadline:
            time.sleep(0.02)


class Raw(Target):
    """The device itself, without a server: fio's own ring, past the page cache."""

    name = "raw"
    what = "fio's io_uring on the device itself, no socket"
    is_informal = True

    def serve(self, place):
        """Nothing is served."""
        fio = ["--ioengine=io_uring", "--direct=1", f"--filename={place.device}"]
        return contextlib.nullcontext(Served(self.name, fio, None, []))

    def version(self):
        """What measures it."""
        return run(["fio", "--version"]).strip()


NVRAM = ["--flags", "nvram", "--nvram", "NVRAM", "--nvram-trust-memory"]


def everyone(variants):
    """All targets; `variants` are more of ours, as NAME=FLAGS of `flipside serve`."""
    ours = [Flipside("flipside-device", "ours, flags and journal on the device: the default", []),
            Flipside("flipside-nvram", "ours, flags and journal in trusted memory", NVRAM)]
    for variant in variants:
        name, separator, options = variant.partition("=")
        if not (name and separator):
            raise BenchError(f"--variant {variant}: say NAME=FLAGS, as in 'poll=--poll-us 50'")
        ours.append(Flipside(f"flipside-{name}", f"ours, with {options}", options.split()))
    return [*ours, Passthrough(), QemuNbd(),
            Nbdkit("file", "page cache: for information", ["DEVICE"]), NbdServer(),
            Nbdkit("null", "no device at all: the client's own ceiling", ["size=SIZE"]), Raw()]


@contextlib.contextmanager
def all_serving(chosen, directory, size):
    """Every target serves a device of its own, at the same time: `{name: Served}`. Idle ones cost
    nothing, and so the same case can be run on one after the other within seconds."""
    devices.check_room(directory, sum(target.device_size(size) for target in chosen))
    with contextlib.ExitStack() as stack:
        served = {}
        for target in chosen:
            length = target.device_size(size) // MIB * MIB
            made = stack.enter_context(devices.device(directory, target.name, length))
            place = Place(directory, made.path, size)
            served[target.name] = stack.enter_context(target.serve(place))
        yield served


def missing(chosen):
    """What has not been built."""
    ours = [(FLIPSIDE, "make build", Flipside),
            (PASSTHROUGH, "cargo build --release --example passthrough", Passthrough)]
    for binary, command, kind in ours:
        if any(isinstance(target, kind) for target in chosen) and not binary.exists():
            return f"{binary} is not built (in {BUILD}): run `{command}`"
    return None
