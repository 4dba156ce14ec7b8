"""The plots of the results: each a function from what was measured to panels, or none."""

from cases import DEPTHS, PATTERNS, WRITERS, Case
from results import median
from svg import Panel, figure
from tools import KIB

SHOWN = ("p50", "p90", "p99", "p999", "p9999")


def over_targets(found, make):
    """A series for each target that was measured at all."""
    names = list(dict.fromkeys(name for case in found.values() for name in case))
    series = {name: make(name) for name in names}
    return {name: values for name, values in series.items() if any(values)}


def throughput(found):
    """Requests a second against queue depth, by pattern and block size."""
    panels = []
    for block in (4, 16):
        for words, rw in PATTERNS.items():
            cases = [Case(rw, block * KIB, depth).name for depth in DEPTHS]

            def values(target, cases=cases):
                return [median(found, case, target, "iops") for case in cases]

            series = over_targets(found, values)
            if series:
                panels.append(Panel(f"{block} KiB random {words}", list(DEPTHS), series,
                                    "requests a second", "queue depth"))
    return panels


def latency(found):
    """Latency percentiles of single requests, and of 32 at a time."""
    panels = []
    for depth in (1, 32):
        for words in ("read", "write"):
            case = Case(PATTERNS[words], 4 * KIB, depth).name

            def values(target, case=case):
                return [median(found, case, target, f"{percentile}_us") for percentile in SHOWN]

            series = over_targets(found, values)
            if series:
                panels.append(Panel(f"4 KiB random {words}, depth {depth}",
                                    ["50", "90", "99", "99.9", "99.99"], series, "µs",
                                    "percentile", is_log=True))
    return panels


def commits(found):
    """Writes that are each flushed, and how long such a flush takes, against how many write."""
    panels = []
    for title, key, words in (("writes that are each flushed", "iops", "a second"),
                              ("a flush, median", "flush_p50_us", "µs"),
                              ("a flush, 99th percentile", "flush_p99_us", "µs")):
        cases = [Case("randwrite", 4 * KIB, 1, writers, flush=1).name for writers in WRITERS]

        def values(target, key=key, cases=cases):
            return [median(found, case, target, key) for case in cases]

        series = over_targets(found, values)
        if series:
            panels.append(Panel(title, list(WRITERS), series, words, "writers",
                                is_log=key != "iops"))
    return panels


def amplification(price):
    """Bytes to the device for each byte written, and what for."""
    reasons = ("data", "copies", "destaged", "metadata")
    panels = []
    for pattern in ("sequential", "overwrite", "fits", "uniform-100", "zipf-25"):
        systems = {name: found.get(pattern) or found.get("uniform" if pattern == "uniform-100"
                                                         else pattern)
                   for name, found in price["systems"].items()}
        systems = {name: found for name, found in systems.items() if found}
        if not any("data" in found for found in systems.values()):
            continue
        series = {reason: [found.get(reason, 0) for found in systems.values()]
                  for reason in reasons}
        series["not told apart"] = [0 if "data" in found else found["device"]
                                    for found in systems.values()]
        panels.append(Panel(pattern, [label(name) for name in systems], series, "bytes a byte",
                            is_bars=True))
    return panels


def label(system):
    """A system's name, short enough for an axis."""
    return system.removeprefix("flipside-").replace("data=", "")


def journal_space(price):
    """What uniformly random writes cost, against journal space."""
    spaces = sorted({int(pattern.split("-")[1]) for found in price["systems"].values()
                     for pattern in found if pattern.startswith("uniform-")})
    if len(spaces) < 2:
        return []
    data, speed = {}, {}
    for name, found in price["systems"].items():
        rows = [found.get(f"uniform-{space}") for space in spaces]
        if any(rows):
            data[name] = [row and row["data"] + row["copies"] + row["destaged"] for row in rows]
            speed[name] = [row and row["iops"] for row in rows]
    goal = {"goal: 2 − r + 0.05": [2 - space / 100 + 0.05 for space in spaces]}
    labels = [f"{space}%" for space in spaces]
    return [Panel("uniformly random, 4 KiB: data and copies", labels, {**data, **goal},
                  "bytes a byte", "journal space of the volume's"),
            Panel("the same: speed", labels, speed, "requests a second",
                  "journal space of the volume's")]


def every(results):
    """All plots there is something for: `{file name: SVG}`."""
    drawn = {}
    for kind, found in results.get("nbd", {}).items():
        drawn[f"throughput-{kind}.svg"] = throughput(found["cases"])
        drawn[f"latency-{kind}.svg"] = latency(found["cases"])
        drawn[f"commits-{kind}.svg"] = commits(found["cases"])
    if "price" in results:
        drawn["amplification.svg"] = amplification(results["price"])
        drawn["journal-space.svg"] = journal_space(results["price"])
    return {name: figure(panels) for name, panels in drawn.items() if panels}
