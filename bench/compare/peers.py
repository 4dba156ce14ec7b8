"""The comparison over NBD: every case on every target, taken in turn, in several rounds."""

import devices
import targets
from cases import Case
from fio import Amount, arguments, load, measure
from tools import FLIPSIDE, KIB, MIB
from tools import run as run_command

# What fio takes to start and to end, in seconds.
FIO_SECONDS = 0.4
FILL = Case("write", MIB, 8)
SCATTER = Case("randwrite", 4 * KIB, 32)


def takes(target, case, number, rounds):
    """Whether a target takes a case in a round: the main cases are measured in every one, but those
    that are there for the plots, and targets that are there for information, in half of them. The
    latter take the main cases alone."""
    is_full = case.is_main and not target.is_informal
    return (number < rounds if is_full else number < max(rounds // 2, 1)) \
        and (case.is_main or not target.is_informal)


def takers_on(kind, chosen):
    """The targets on devices of that kind: what the page cache does is no matter of the disk."""
    return [target for target in chosen
            if kind == "ram" or not target.is_informal or target.name == "raw"]


def plan(cases, chosen, rounds, kind):
    """What is measured: for each round its cases, each with the targets that take it. On disk, the
    main cases alone."""
    chosen = takers_on(kind, chosen)
    planned = []
    for number in range(rounds):
        steps = []
        for case in cases:
            if kind == "disk" and not case.is_main:
                continue
            takers = [target.name for target in chosen if takes(target, case, number, rounds)]
            # Who goes first changes, so that whatever else the machine does meets all.
            turn = (number + len(steps)) % max(len(takers), 1)
            if takers:
                steps.append((case, takers[turn:] + takers[:turn]))
        planned.append(steps)
    return planned


def seconds(planned, options, count):
    """How long that takes with so many targets, as a guess."""
    measured = sum(len(takers) for steps in planned for _, takers in steps)
    prepared = 3 * options.size / 512 * count * len(planned)
    return measured * (options.seconds + FIO_SECONDS) + prepared


def prepare(served, case, size, directory):
    """Fills the volume in order, or overwrites half of its blocks at random, and commits. What is
    in order is settled, too: an earlier round may have left blocks on either side, where they stay
    when they are written over in order."""
    amount = Amount(bytes=size if case == FILL else size // 2)
    load(served.fio, [*arguments(case, size, amount), "--end_fsync=1"], directory)
    if case == FILL and served.control:
        run_command([FLIPSIDE, "settle", "--control", served.control])


def run(kind, chosen, cases, options, progress):
    """All rounds on devices of that kind: `{"device", "commands", "cases": {case: {target:
    [figures of each round]}}}`."""
    size = options.size * MIB
    planned = plan(cases, chosen, options.rounds, kind)
    found = {}
    with devices.workspace(kind) as directory:
        with targets.all_serving(takers_on(kind, chosen), directory, size) as served:
            for number, steps in enumerate(planned):
                measure_round(served, steps, (number, size, options, kind), directory, progress,
                              found)
            commands = {name: [" ".join(map(str, command)) for command in one.commands]
                        for name, one in served.items()}
    return {"device": devices.describe(kind), "commands": commands, "cases": found}


def measure_round(served, steps, about, directory, progress, found):
    """One round, into `found`."""
    number, size, options, kind = about
    scattered = None
    for case, takers in steps:
        if case.is_scattered != scattered:
            scattered = case.is_scattered
            for one in served.values():
                progress.step(options.size / 512,
                              f"{kind}, round {number + 1}: {one.name} is prepared")
                prepare(one, SCATTER if scattered else FILL, size, directory)
        for name in takers:
            progress.step(options.seconds + FIO_SECONDS,
                          f"{kind}, round {number + 1}: {case.name} {name}")
            figures = measure(served[name], case, size, Amount(seconds=options.seconds), directory)
            found.setdefault(case.name, {}).setdefault(name, []).append(figures)
