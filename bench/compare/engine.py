"""The engine itself: `flipside bench`, which loads it from its own ring, without a socket, in turns
with the device alone on that ring, and with fio's io_uring on the device."""

import json
import statistics

import devices
from cases import Case
from fio import Amount, arguments, figures, load
from tools import FLIPSIDE, KIB, MIB, run

# Cases, each of which is measured on the device alone and under the engine.
CASES = 12
FLAGS = {"device": [], "nvram": ["--nvram", "NVRAM"], "mds": ["--flags", "mds"]}
# What fio does to the device for each case that is held against it.
RAW = {"sequential-write-qd8": Case("write", MIB, 8),
       "sequential-read-qd8": Case("read", MIB, 8),
       "random-write-qd32": Case("randwrite", 4 * KIB, 32),
       "random-read-qd32": Case("randread", 4 * KIB, 32),
       "sequential-read-mixed-qd8": Case("read", MIB, 8)}
# What a round takes besides, to format and to fill.
FILL_SECONDS = 3
COMMAND_SECONDS = 1800


def seconds(options):
    """How long all of it takes, as a guess."""
    return len(FLAGS) * round_seconds(options) * options.rounds


def round_seconds(options):
    """How long a round takes with the flags at one place, as a guess."""
    return (2 * CASES + len(RAW)) * options.seconds + FILL_SECONDS


def median(documents):
    """The same with the medians of all numbers; lists and texts as in the first."""
    first = documents[0]
    if isinstance(first, dict):
        return {key: median([each[key] for each in documents]) for key in first}
    if isinstance(first, (int, float)):
        return statistics.median(documents)
    return first


def raw(device, size, options, directory):
    """fio on the device, which is full: `{case: figures}`."""
    where = ["--ioengine=io_uring", "--direct=1", f"--filename={device.path}"]
    amount = Amount(seconds=options.seconds)
    return {name: figures(load(where, arguments(case, size, amount), directory))
            for name, case in RAW.items()}


def measure(options, progress):
    """Flags at each place: `{place: what it printed}`, medians of rounds, each case with fio's
    figures where it is held against these."""
    found = {}
    size = options.size * MIB
    with devices.workspace("ram") as directory:
        for place, flags in FLAGS.items():
            progress.step(round_seconds(options) * options.rounds, f"engine: flags {place}")
            flags = [flag.replace("NVRAM", str(directory / "flags")) for flag in flags]
            with devices.device(directory, "engine", size * 5 // 2) as device:
                command = [FLIPSIDE, "bench", "--json", "--force", "--size", size, "--rounds", 1,
                           "--time", f"{round(options.seconds * 1000)}ms", *flags, device.path]
                rounds, beside = [], []
                for _ in range(options.rounds):
                    printed = json.loads(run(command, timeout=COMMAND_SECONDS))
                    rounds.append({case["name"]: case for case in printed["cases"]})
                    beside.append(raw(device, size, options, directory))
            found[place] = combined(rounds, beside)
    return found


def combined(rounds, beside):
    """The cases over all rounds, with ratios of the medians."""
    cases = list(median(rounds).values())
    fio = median(beside)
    for case in cases:
        ours, alone = case["engine"], case["alone"]
        case["ratio"] = ours["iops"] / alone["iops"]
        case["p50_ratio"] = ours["p50_us"] / alone["p50_us"]
        if case["name"] in fio:
            case["raw"] = fio[case["name"]]
            case["raw_ratio"] = ours["iops"] / case["raw"]["iops"]
    return {"cases": cases}
