"""What every part needs: running commands, errors for the user, where things are."""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
FLIPSIDE = BUILD / "release/flipside"
PASSTHROUGH = BUILD / "release/examples/passthrough"
RESULTS = ROOT / "bench/results"
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

READY_SECONDS = 60
COMMAND_SECONDS = 300


class BenchError(Exception):
    """What keeps the benchmark from going on, for the user to read."""


def said(command):
    """A command as a user would type it."""
    return shlex.join(map(str, command))


def run(command, timeout=COMMAND_SECONDS, **options):
    """Runs a command that must succeed; its standard output."""
    try:
        done = subprocess.run([str(word) for word in command], check=True, capture_output=True,
                              text=True, timeout=timeout, **options)
    except FileNotFoundError as error:
        raise BenchError(f"{command[0]} is not there: `tools/setup.sh bench` installs the tools, "
                         "`make bench` builds what is ours first") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{said(command)}: no end within {timeout} s; is the machine busy, or "
                         "does a target hang?") from error
    except subprocess.CalledProcessError as error:
        output = f"{error.stdout}{error.stderr}".strip()
        raise BenchError(f"{said(command)} failed with status {error.returncode}:\n{output}") \
            from error
    return done.stdout


@contextlib.contextmanager
def running(command, log, is_ready, is_killed=False):
    """A process of that command within this context, from when it is ready until it was asked to
    end, which alone those that `is_killed` need not await; `is_ready` gets what it has printed."""
    with log.open("wb") as output:
        try:
            process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=subprocess.STDOUT)
        except FileNotFoundError as error:
            raise BenchError(f"{command[0]} is not there: `make bench` builds what is ours and "
                             "installs the rest") from error
    try:
        await_ready(process, command, log, is_ready)
        yield process
        if process.poll() is not None and not is_killed:
            raise BenchError(f"{said(command)} ended before it was asked to:\n{log.read_text()}")
    finally:
        end(process)


def await_ready(process, command, log, is_ready):
    """Waits until a process can be used."""
    deadline = time.monotonic() + READY_SECONDS
    while not is_ready(log.read_text(errors="replace")):
        if process.poll() is not None:
            raise BenchError(f"{said(command)} ended at its start:\n{log.read_text()}")
        if time.monotonic() > deadline:
            raise BenchError(f"{said(command)} is not ready after {READY_SECONDS} s:\n"
                             f"{log.read_text()}")
        time.sleep(0.002)


def end(process):
    """Asks a process to end, and makes it where it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(READY_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
