"""The goals of issue 8, held against what was measured."""

import dataclasses

from cases import BARE, QEMU
from results import ratio
from tools import MIB, TIB

OURS = ("flipside-device", "flipside-nvram")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A goal, the figures of those it is for, and whether each is as good as wanted."""

    goal: str
    wanted: str
    measured: dict

    def cells(self):
        """The row of a table: what was measured, and met or missed."""
        said = [f"{name.removeprefix('flipside-')} {value:.2f} {'met' if is_met else '**missed**'}"
                for name, (value, is_met) in self.measured.items()]
        return [self.goal, self.wanted, ", ".join(said) or "not measured"]


def at_least(goal, wanted, figures):
    """More is better."""
    return Verdict(goal, f"≥ {wanted:g}", {name: (value, value >= wanted)
                                           for name, value in figures.items() if value is not None})


def at_most(goal, wanted, figures):
    """Less is better."""
    return Verdict(goal, f"≤ {wanted:g}", {name: (value, value <= wanted)
                                           for name, value in figures.items() if value is not None})


def over_nbd(found):
    """Ours beside qemu-nbd, and beside our own pass-through."""
    verdicts = []

    def beside(case, other, key="iops"):
        return {name: ratio(found, case, name, other, key) for name in OURS}

    for words in ("write", "read"):
        case = f"4k-rand{words}-d32-c1"
        verdicts.append(at_least(f"NBD 4 KiB random {words}, depth 32, × qemu-nbd", 2,
                                 beside(case, QEMU)))
        verdicts.append(at_least(f"NBD 4 KiB random {words}, depth 32, of our pass-through", 0.9,
                                 beside(case, BARE)))
    for words in ("write", "read"):
        verdicts.append(at_least(f"NBD 4 KiB random {words}, depth 1, × qemu-nbd", 1.3,
                                 beside(f"4k-rand{words}-d1-c1", QEMU)))
    # Polling is what is done unless told otherwise.
    for words in ("write", "read"):
        verdicts.append(at_least(f"the same, {words}, with polling", 1.8,
                                 beside(f"4k-rand{words}-d1-c1", QEMU)))
    for words in ("write", "read"):
        verdicts.append(at_least(f"NBD 1 MiB {words}, depth 8, × qemu-nbd", 2.5,
                                 beside(f"1m-{words}-d8-c1", QEMU)))
    # What the socket costs is no matter of the sides: the bare device is read through it, too.
    verdicts.append(at_least("NBD 1 MiB read of mixed sides, depth 8, of our pass-through", 0.8,
                             beside("1m-scattered-read-d8-c1", BARE)))
    return verdicts


def of_price(price):
    """Bytes and speed beside a file system that journals data."""
    systems = price["systems"]

    def bytes_of(pattern, *reasons):
        rows = {name: systems.get(name, {}).get(pattern) for name in OURS}
        return {name: sum(row[reason] for reason in reasons) for name, row in rows.items() if row}

    data = ("data", "copies", "destaged")
    verdicts = [at_most(f"write amplification, data and copies: {words}", bound,
                        bytes_of(pattern, *data))
                for words, pattern, bound in (("sequential", "sequential", 1.01),
                                              ("full overwrite", "overwrite", 1.01),
                                              ("working set that fits", "fits", 1.01),
                                              ("Zipfian 0.9, r = 25 %", "zipf-25", 1.3),
                              ("Zipfian 0.9, what is hot together, r = 25 %", "zipf-near-25",
                               1.3))]
    for percent in (10, 25, 50, 100):
        verdicts.append(at_most(f"the same: uniformly random, r = {percent} %",
                                2 - percent / 100 + 0.05, bytes_of(f"uniform-{percent}", *data)))
    verdicts.append(at_most("metadata, working set that fits, a flush every 32", 0.02,
                            bytes_of("fits", "metadata")))
    verdicts.append(at_most("metadata, worst case at 16 GiB", 0.15, bytes_of("wide", "metadata")))
    journal = systems.get("ext4 data=journal", {}).get("fits")
    if journal:
        ours = {name: systems[name]["fits"] for name in OURS}
        over_nbd_too = {name: row["iops"] for name, row in ours.items()}
        for words, iops in (("engine", price["engine"]), ("over NBD", over_nbd_too)):
            verdicts.append(at_least(
                f"random 4 KiB, a flush every 32, {words}: IOPS × ext4 data=journal", 2.5,
                {name: value / journal["iops"] for name, value in iops.items()}))
        verdicts.append(at_most("the same: bytes × ext4 data=journal", 0.5,
                                {name: row["device"] / journal["device"]
                                 for name, row in ours.items()}))
    return verdicts


def of_growth(growth):
    """Recovery and memory."""
    verdicts = []
    crash = growth["crash"].get(str(TIB))
    if crash:
        used = crash["journal_used"]
        verdicts.append(at_most(f"recovery at 1 TiB after a crash, journal {used:.0%} full, s", 1,
                                {"device": crash["recovery_ms"] / 1000}))
    sizes = {int(size): row["rss"] for size, row in growth["sizes"].items() if int(size) >= TIB}
    if len(sizes) > 1:
        low, high = min(sizes), max(sizes)
        more = (sizes[high] - sizes[low]) / MIB / ((high - low) / TIB)
        verdicts.append(at_most("memory for each further TiB, MiB", 100, {"device": more}))
    return verdicts


def of_engine(engine):
    """The engine on the ring beside fio's ring on the device; commits beside the device alone."""
    found = {place: {case["name"]: case for case in part["cases"]}
             for place, part in engine.items()}
    verdicts = []
    for name, words, wanted in (
            ("random-write-qd32", "4 KiB random write, depth 32", 0.85),
            ("random-read-qd32", "4 KiB random read, depth 32", 0.9),
            ("sequential-write-qd8", "1 MiB write, depth 8", 0.95),
            ("sequential-read-qd8", "1 MiB read, depth 8", 0.95),
            ("sequential-read-mixed-qd8", "1 MiB read of mixed sides", 0.8)):
        verdicts.append(at_least(f"engine, {words}, of the raw device", wanted,
                                 {place: cases[name]["raw_ratio"]
                                  for place, cases in found.items() if name in cases}))
    for place, wanted in (("nvram", 1.1), ("device", 1.5)):
        case = found.get(place, {}).get("write-flush-1")
        verdicts.append(at_most(f"engine, write and flush, flags {place}, × the raw device's",
                                wanted, {place: case["p50_ratio"]} if case else {}))
    return verdicts


def every(results):
    """All goals of which anything was measured; those over NBD on the device in memory."""
    verdicts = []
    ram = results.get("nbd", {}).get("ram", {}).get("cases", {})
    if ram:
        verdicts += over_nbd(ram)
    for part, judge in (("price", of_price), ("growth", of_growth)):
        if part in results:
            verdicts += judge(results[part])
    if "engine" in results:
        verdicts += of_engine(results["engine"])
    return verdicts
