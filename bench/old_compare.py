#!/usr/bin/env python3
"""Flipside beside qemu-nbd: the same fio cases over NBD on the same RAM-backed device.

In each round each target gets the device to itself, prefills it and runs every case; the targets
take turns at going first, so that whatever else the machine does meets both. Reported are medians
over the rounds with the spread, and the ratio of the medians.

The device is a loop device over a file in memory where that is allowed, else the file itself.
Writes bench/results/bench.md and bench/results/bench.json, and prints the table.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
JOBS = ROOT / "bench/fio/compare.fio"
RESULTS = ROOT / "bench/results"

READY_SECONDS = 30
FIO_PATIENCE_SECONDS = 120
MIB = 1 << 20

# Section of the job file, direction, what is counted.
CASES = [
    ("random-write-qd32", "write", "iops"),
    ("random-read-qd32", "read", "iops"),
    ("random-write-qd1", "write", "iops"),
    ("random-read-qd1", "read", "iops"),
    ("random-write-qd32-fsync32", "write", "iops"),
    ("sequential-write-qd8", "write", "bandwidth"),
    ("sequential-read-qd8", "read", "bandwidth"),
]


class BenchError(Exception):
    """What keeps the benchmark from going on, for the user to read."""


def run(command, **options):
    """Runs a command that must succeed; its standard output."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, **options)
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is not there (make setup installs the tools, make build "
                         "builds flipside)") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{shlex.join(map(str, command))}: no end within {error.timeout} s") \
            from error
    except subprocess.CalledProcessError as error:
        output = f"{error.stdout}{error.stderr}"
        raise BenchError(f"{shlex.join(map(str, command))} failed:\n{output}") from error
    return done.stdout


@contextlib.contextmanager
def ram_device(directory, size_mib):
    """A device over a file in `directory`: its path, and what it is."""
    file = directory / "device"
    # Written to the end, so that nobody pays for pages of memory that are used for the first time.
    with file.open("wb") as handle:
        for _ in range(size_mib):
            handle.write(bytes(MIB))
    for direct in (["--direct-io=on"], []):
        command = ["losetup", "--find", "--show", *direct, str(file)]
        with contextlib.suppress(BenchError):
            path = run(command).strip()
            break
    else:
        yield file, "file in memory (loop devices are not allowed here)"
        return
    try:
        yield pathlib.Path(path), "loop device over a file in memory"
    finally:
        run(["losetup", "--detach", path])


class Flipside:
    """Our target, with its defaults: every promise on."""

    name = "flipside"

    def __init__(self, directory, device, size_mib):
        self.socket = directory / "flipside.sock"
        self.control = directory / "control.sock"
        self.device = device
        build = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        self.binary = build / "release/flipside"
        self.prepare = [self.binary, "format", "--force", "--volume", f"vol0={size_mib}M", device]
        self.command = [self.binary, "serve", "--listen", f"unix:{self.socket}",
                        "--control", self.control, device]
        self.uri = f"nbd+unix:///vol0?socket={self.socket}"

    def version(self):
        """What it says of itself, and the state of the sources."""
        version = run([self.binary, "--version"]).strip()
        with contextlib.suppress(BenchError):
            commit = run(["git", "describe", "--always", "--dirty"], cwd=ROOT)
            return f"{version} ({commit.strip()})"
        return version

    def is_ready(self, printed):
        """Whether the volume can be used."""
        return "ready nbd+unix://" in printed.read_text()


class QemuNbd:
    """The peer: past the page cache, on a ring, several clients allowed, raw format."""

    name = "qemu-nbd"

    def __init__(self, directory, device, _size_mib):
        self.socket = directory / "qemu.sock"
        self.prepare = None
        self.command = ["qemu-nbd", "--cache=none", "--aio=io_uring", "--format=raw",
                        "--persistent", "--shared=4", f"--socket={self.socket}", device]
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def version(self):
        """What it says of itself."""
        return run(["qemu-nbd", "--version"]).splitlines()[0]

    def is_ready(self, _printed):
        """Whether it listens: its socket appears when it does."""
        return self.socket.exists()


@contextlib.contextmanager
def serving(target, directory):
    """The target serves within this context."""
    if target.prepare:
        run(target.prepare)
    target.socket.unlink(missing_ok=True)
    printed = directory / f"{target.name}.log"
    with printed.open("wb") as log:
        process = subprocess.Popen(target.command, stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not target.is_ready(printed):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{target.name} is not ready:\n{printed.read_text()}")
            time.sleep(0.02)
        yield
        if process.poll() is not None:
            raise BenchError(f"{target.name} ended early:\n{printed.read_text()}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def fio(section, target, directory, options):
    """Runs one section of the job file; fio's account of it."""
    output = directory / "fio.json"
    environment = {**os.environ, "FLIPSIDE_URI": target.uri, "BENCH_SIZE": f"{options.size}m",
                   "BENCH_SECONDS": str(options.seconds)}
    # Its standard output begins with a line that is not JSON.
    run(["fio", f"--section={section}", "--output-format=json", f"--output={output}", JOBS],
        env=environment, timeout=FIO_PATIENCE_SECONDS + options.seconds)
    job = json.loads(output.read_text())["jobs"][0]
    if job["error"]:
        raise BenchError(f"{section} on {target.name}: fio reports error {job['error']}")
    return job


def measure(case, target, directory, options):
    """The figures of one case in one round."""
    section, direction, _ = case
    result = fio(section, target, directory, options)[direction]
    percentiles = result["clat_ns"]["percentile"]
    return {
        "iops": result["iops"],
        "bandwidth": result["bw_bytes"] / MIB,
        **{f"p{percent:g}_us": percentiles[f"{percent:.6f}"] / 1000
           for percent in (50, 99, 99.9)},
    }


def show(value, unit):
    """A figure with its unit, for people."""
    if unit == "bandwidth":
        return f"{value:,.0f} MiB/s"
    return f"{value / 1000:.1f} k"


def run_rounds(targets, directory, options):
    """All rounds: {target: {section: [figures of each round]}}."""
    figures = {target.name: {case[0]: [] for case in CASES} for target in targets}
    steps, step = options.rounds * len(targets) * len(CASES), 0
    for number in range(options.rounds):
        for target in targets if number % 2 == 0 else targets[::-1]:
            with serving(target, directory):
                fio("prefill", target, directory, options)
                for case in CASES:
                    step += 1
                    print(f"[{step:{len(str(steps))}}/{steps}] round {number + 1}, "
                          f"{target.name:8} {case[0]:26}", end=" ", flush=True)
                    figure = measure(case, target, directory, options)
                    figures[target.name][case[0]].append(figure)
                    print(f"{show(figure[case[2]], case[2]):>12}  p99 {figure['p99_us']:,.0f} us",
                          flush=True)
    return figures


def spread(rounds, unit):
    """The median over the rounds, with the lowest and the highest."""
    values = [figure[unit] for figure in rounds]
    middle = show(statistics.median(values), unit)
    return f"{middle} ({show(min(values), unit)} – {show(max(values), unit)})"


def table(figures, targets):
    """The table in Markdown, its columns aligned so that it can be read as it is."""
    ours, peer = (target.name for target in targets)
    lines = [["case", ours, peer, f"{ours} / {peer}", "p50 us", "p99 us"]]
    for section, _, unit in CASES:
        rounds = [figures[name][section] for name in (ours, peer)]
        medians = [statistics.median(figure[unit] for figure in one) for one in rounds]
        latencies = [" / ".join(f"{statistics.median(figure[key] for figure in one):,.0f}"
                                for one in rounds) for key in ("p50_us", "p99_us")]
        lines.append([section, *(spread(one, unit) for one in rounds),
                      f"{medians[0] / medians[1]:.2f}", *latencies])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def describe(targets, device_is, options):
    """What was run on what, so that it can be run again."""
    lines = [
        f"- machine: {os.cpu_count()} cores, Linux {platform.release()}, load before: "
        f"{os.getloadavg()[0]:.1f}",
        f"- device: {device_is}, {options.device} MiB; {options.size} MiB of it are used",
        f"- cases: bench/fio/compare.fio with {run(['fio', '--version']).strip()}, one connection "
        f"over a unix socket, {options.rounds} rounds of {options.seconds} s each",
    ]
    for target in targets:
        lines.append(f"- {target.name}: {target.version()}")
        commands = [target.prepare] if target.prepare else []
        lines.extend(f"  `{shlex.join(map(str, command))}`"
                     for command in [*commands, target.command])
    return "\n".join(lines)


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--seconds", type=int, default=5, help="seconds a case (default: 5)")
    parser.add_argument("--size", type=int, default=1024,
                        help="MiB that the cases work on (default: 1024)")
    parser.add_argument("--device", type=int, default=2560,
                        help="MiB of the device (default: 2560)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one round of 1 s each")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 1
    if min(options.rounds, options.seconds, options.size) < 1 or options.size > options.device:
        parser.error("at least one round of one second, on a part of the device")
    return options


def choose_parent(size_mib):
    """Where the device's file can be: in memory, or else among the temporary files."""
    for parent in ("/dev/shm", tempfile.gettempdir()):
        if os.access(parent, os.W_OK) and shutil.disk_usage(parent).free >= size_mib * MIB:
            return parent
    raise BenchError(f"neither /dev/shm nor {tempfile.gettempdir()} has {size_mib} MiB free")


def bench(options):
    """Runs everything, prints it, and writes it down."""
    parent = choose_parent(options.device)
    with tempfile.TemporaryDirectory(prefix="flipside-bench-", dir=parent) as name:
        directory = pathlib.Path(name)
        with ram_device(directory, options.device) as (device, device_is):
            targets = [kind(directory, device, options.size) for kind in (Flipside, QemuNbd)]
            description = describe(targets, f"{device_is} ({parent})", options)
            print(f"{description}\n", flush=True)
            figures = run_rounds(targets, directory, options)
    text = (f"{table(figures, targets)}\n\nMedians (lowest – highest); IOPS in thousands, "
            f"latencies {' / '.join(target.name for target in targets)}.")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "bench.md").write_text(f"# Flipside beside qemu-nbd\n\n{text}\n\n{description}\n")
    record = {"description": description.splitlines(), "rounds": options.rounds,
              "seconds": options.seconds, "size_mib": options.size,
              "device_mib": options.device, "figures": figures}
    (RESULTS / "bench.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"\n{text}\n\nWritten to {RESULTS.relative_to(ROOT)}/bench.md and bench.json.")


def main():
    """The exit status is that of the benchmark; what it started ends with it."""
    # As an exception, so that targets end and the device is detached.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    try:
        bench(parse_arguments())
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
