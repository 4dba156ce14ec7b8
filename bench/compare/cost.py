"""What a request costs its server: system calls, context switches, processor time.

All are counted by the kernel (perf stat), which, unlike strace, does not slow the server down, and
so does not change how many requests share a system call.
"""

import devices
import targets
from cases import Case
from fio import Amount, measure as measure_case
from peers import FILL, prepare
from tools import KIB, MIB, BenchError, run

CASES = [Case(rw, 4 * KIB, depth) for rw in ("randread", "randwrite") for depth in (1, 32)]
CASES += [Case("randwrite", 4 * KIB, 32, flush=32), Case("read", MIB, 8), Case("write", MIB, 8)]
SIZE_MIB = 256
# perf's name, ours, and what of ours one of perf's is.
EVENTS = {"raw_syscalls:sys_enter": ("system_calls", 1), "context-switches": ("switches", 1),
          "task-clock": ("cpu_us", 1000)}


def cases(options):
    """Those that are measured."""
    return CASES[::2] if options.quick else CASES


def seconds(options, chosen):
    """How long all of it takes, as a guess."""
    return len(cases(options)) * len(takers(chosen)) * (options.seconds + 1) + 5


def takers(chosen):
    """Those whose work is done in one process that lives as long as it serves."""
    return [target for target in chosen if not target.is_informal]


def counter(served, output):
    """The command that counts for the server while another one runs."""
    return ["perf", "stat", "--event", ",".join(EVENTS), "--field-separator", ",", "--output",
            output, "--pid", str(served.process.pid), "--"]


def counted(output, requests):
    """What was counted, a request."""
    found = {}
    for line in output.read_text().splitlines():
        fields = line.split(",")
        if len(fields) > 2 and fields[2] in EVENTS:
            name, scale = EVENTS[fields[2]]
            found[name] = float(fields[0]) * scale / (requests or 1)
    if len(found) < len(EVENTS):
        raise BenchError(f"perf stat did not count {', '.join(EVENTS)}:\n{output.read_text()}")
    return found


def check():
    """Refuses to begin where nothing can be counted."""
    try:
        run(["perf", "stat", "--event", ",".join(EVENTS), "true"])
    except BenchError as error:
        raise BenchError(f"{error}\nThe part `cost` counts system calls with perf (Debian: "
                         "linux-perf), as root; choose other --parts to go without") from error


def measure(options, chosen, progress):
    """All targets: `{case: {target: {"system_calls", "switches", "cpu_us"}}}`, a request."""
    check()
    found = {}
    size = SIZE_MIB * MIB
    with devices.workspace("ram") as directory:
        with targets.all_serving(takers(chosen), directory, size) as served:
            for one in served.values():
                prepare(one, FILL, size, directory)
            for case in cases(options):
                for name, one in served.items():
                    progress.step(options.seconds + 1, f"cost: {case.name} {name}")
                    output = directory / "perf.csv"
                    figures = measure_case(one, case, size, Amount(seconds=options.seconds),
                                           directory, counter(one, output))
                    found.setdefault(case.name, {})[name] = counted(output, figures["requests"])
    return found
