"""The engine itself: `flipside bench`, which loads it from its own ring, without a socket, in turns
with the device alone."""

import json

import devices
from tools import FLIPSIDE, MIB, run

# Cases, each of which is measured on the device alone and under the engine.
CASES = 12
FLAGS = {"device": [], "nvram": ["--nvram", "NVRAM"]}
# What a round takes besides, to format and to fill.
FILL_SECONDS = 3
COMMAND_SECONDS = 1800


def seconds(options):
    """How long all of it takes, as a guess."""
    return len(FLAGS) * round_seconds(options) * options.rounds


def round_seconds(options):
    """How long a round takes with the flags at one place, as a guess."""
    return 2 * CASES * options.seconds + FILL_SECONDS


def measure(options, progress):
    """Flags on the device, and in trusted memory: `{place: what it printed}`."""
    found = {}
    size = options.size * MIB
    with devices.workspace("ram") as directory:
        for place, flags in FLAGS.items():
            progress.step(round_seconds(options) * options.rounds, f"engine: flags {place}")
            flags = [flag.replace("NVRAM", str(directory / "flags")) for flag in flags]
            with devices.device(directory, "engine", size * 5 // 2) as device:
                printed = run([FLIPSIDE, "bench", "--json", "--force", "--size", size,
                               "--time", f"{round(options.seconds * 1000)}ms",
                               "--rounds", options.rounds, *flags, device.path],
                              timeout=COMMAND_SECONDS)
            found[place] = json.loads(printed)
    return found
