"""Flipside beside its peers, on the same devices: `make bench`.

Each part is measured, kept in bench/results/compare.json in place of what an earlier run had, and
all of it is written anew as compare.md and plots. Parts: nbd (throughput and latency over NBD),
engine (`flipside bench`: on the ring, beside the device alone), price (bytes written, beside file
systems), growth (memory, start-up, recovery), cost (system calls and context switches).
"""

import argparse
import fnmatch
import os
import pathlib
import platform
import shlex
import signal
import sys
import time

import cases
import cost
import engine
import growth
import peers
import plots
import price
import report
import results
import targets
from progress import Progress
from tools import RESULTS, ROOT, BenchError

PARTS = ("nbd", "engine", "price", "growth", "cost")
EXAMPLES = """examples:
  all of it, 20 minutes:          make bench
  a smoke run, 2 minutes:         make bench ARGS=--quick
  one case, ours and qemu-nbd:    make bench ARGS="--parts nbd --device ram \\
                                    --cases '4k-randwrite-d32-c1' --targets 'flipside-*,qemu-nbd'"
  a setting of ours beside it:    make bench ARGS="--parts nbd --variant 'poll=--poll-us 50'"
  the report alone, anew:         make bench ARGS="--parts ''" """


def comma(text):
    """A list as users type it."""
    return [part for part in text.split(",") if part]


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/compare", description=__doc__.splitlines()[0], epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", type=comma, default=list(PARTS), metavar="LIST",
        help=f"what to measure (default: {','.join(PARTS)})")
    add("--cases", type=comma, default=["*"], metavar="GLOBS",
        help="cases over NBD, as in '4k-*-c1,1m-*' (default: all); --list shows their names")
    add("--targets", type=comma, default=["*"], metavar="GLOBS", help="targets (default: all)")
    add("--variant", action="append", default=[], metavar="NAME=FLAGS",
        help="one more target: ours with these flags of `flipside serve`; may be repeated")
    add("--rounds", type=int, default=3, help="rounds over NBD (default: 3)")
    add("--seconds", type=float, default=0.7, help="seconds a case (default: 0.7)")
    add("--size", type=int, default=512, metavar="MIB", help="size of volumes (default: 512)")
    add("--price-size", type=int, default=1024, metavar="MIB",
        help="size of volumes and files of the part price, 320 at least: in small ones the 32 "
             "extents of an epoch are much of the journal space (default: 1024)")
    add("--device", choices=("ram", "disk", "both"), default="both",
        help="where the devices of the part nbd lie (default: both)")
    add("--quick", action="store_true",
        help="a smoke run: one short round on RAM, the main cases, no peer that is "
             "there for information")
    add("--list", action="store_true", help="print the names of cases and targets, and end")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.device = 1, 0.3, "ram"
        options.size, options.price_size = 256, 320
    if options.rounds < 1 or options.seconds <= 0 or options.size < 64 or options.price_size < 320:
        parser.error("one round at least, some time for each case, volumes of 64 MiB at least, "
                     "and of 320 for the price")
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    return options


def choose(options):
    """Targets and cases that were asked for."""
    chosen = [target for target in targets.everyone(options.variant)
              if any(fnmatch.fnmatch(target.name, pattern) for pattern in options.targets)
              and not (options.quick and target.is_informal)]
    if not chosen:
        names = ", ".join(target.name for target in targets.everyone(options.variant))
        raise BenchError(f"no target matches {','.join(options.targets)}; there are: {names}")
    found = cases.chosen(options.cases)
    if options.quick:
        found = [case for case in found if case.is_main] or found
    return chosen, found


def kinds(options):
    """The kinds of devices."""
    return ("ram", "disk") if options.device == "both" else (options.device,)


def plan_seconds(options, chosen, named):
    """How long everything takes, as a guess."""
    total = 0
    if "nbd" in options.parts:
        for kind in kinds(options):
            planned = peers.plan(named, chosen, options.rounds, kind)
            total += peers.seconds(planned, options, len(chosen))
    total += engine.seconds(options) if "engine" in options.parts else 0
    total += price.seconds(options) if "price" in options.parts else 0
    total += growth.seconds(options) if "growth" in options.parts else 0
    total += cost.seconds(options, chosen) if "cost" in options.parts else 0
    return total


def machine():
    """What it is measured on."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")),
                 "unknown processor")
    return f"{os.cpu_count()} cores ({model}), Linux {platform.release()}"


def circumstances():
    """Where, when and by which command a part is measured."""
    arguments = [f"ARGS={shlex.join(sys.argv[1:])}"] if sys.argv[1:] else []
    return {"at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "machine": machine(),
            "load": os.getloadavg()[0], "commit": targets.commit(),
            "command": shlex.join(["make", "bench", *arguments])}


def measure(options, chosen, named, found, progress):
    """Each part, kept as soon as it is there."""
    parts = {
        "nbd": lambda: {kind: peers.run(kind, chosen, named, options, progress)
                        for kind in kinds(options)},
        "engine": lambda: engine.measure(options, progress),
        "price": lambda: price.measure(options, progress),
        "growth": lambda: growth.measure(options, progress),
        "cost": lambda: cost.measure(options, chosen, progress),
    }
    if options.parts:
        found["versions"] = {target.name: f"{target.version()}; {target.what}" for target in chosen}
    for part in options.parts:
        about = circumstances()
        found[part] = parts[part]()
        found.setdefault("about", {})[part] = about
        results.save(found)


def bench(options):
    """Measures, and writes it down."""
    if options.list:
        print("\n".join(case.name for case in cases.every()))
        print("\n".join(f"{one.name}: {one.what}" for one in targets.everyone(options.variant)))
        return
    chosen, named = choose(options)
    lacking = targets.missing(chosen)
    if lacking and options.parts:
        raise BenchError(lacking)
    found = results.load()
    progress = Progress(plan_seconds(options, chosen, named))
    measure(options, chosen, named, found, progress)
    progress.end()
    found.setdefault("about", {})
    results.save(found)
    drawn = plots.every(found)
    text = report.render(found, drawn)
    (RESULTS / "compare.md").write_text(text)
    for name, picture in drawn.items():
        (RESULTS / name).write_text(picture)
    print(text)
    print(f"Written to {RESULTS.relative_to(ROOT)}: compare.md, compare.json, {', '.join(drawn)}")


def main():
    """The exit status is that of the benchmark; what it started ends with it."""
    # As an exception, so that targets end and devices are detached.
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
