"""The report in Markdown, from what was measured."""

import statistics

import cases
import goals
from results import median, ratio, values
from tools import GIB, MIB

OURS = goals.OURS
# The load before a part above which others are at work on the machine.
QUIET = 0.7


def table(rows):
    """A table, its columns aligned so that it can be read as it is; the first row is its head."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(row, widths)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def number(value, unit=""):
    """A figure for people."""
    if value is None:
        return "–"
    if unit == "mib_s":
        return f"{value:,.0f} MiB/s"
    if unit == "iops":
        return f"{value / 1000:.1f} k"
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"


def spread(found, case, target, unit):
    """The median, and the lowest and the highest of several rounds."""
    known = values(found, case, target, unit)
    if not known:
        return "–"
    middle = number(statistics.median(known), unit)
    if len(known) == 1:
        return middle
    return f"{middle} ({number(min(known), unit)} – {number(max(known), unit)})"


def speeds(found, named):
    """Throughput of all targets in these cases, and ours in terms of others."""
    names = list(dict.fromkeys(name for case in named for name in found[case.name]))
    beside = [(one, other) for other in (cases.QEMU, cases.BARE) for one in OURS
              if one in names and other in names]
    rows = [["case", *names, *(f"{one.removeprefix('flipside-')} × {other}"
                               for one, other in beside)]]
    for case in named:
        ratios = [number(ratio(found, case.name, one, other, case.unit)) for one, other in beside]
        rows.append([case.name, *(spread(found, case.name, name, case.unit) for name in names),
                     *ratios])
    return table(rows)


def latencies(found, named):
    """Median and 99th and 99.9th percentile of all targets, in microseconds."""
    names = list(dict.fromkeys(name for case in named for name in found[case.name]))
    rows = [["case", *names]]
    for case in named:
        row = [case.name]
        for name in names:
            known = [median(found, case.name, name, f"{one}_us") for one in ("p50", "p99", "p999")]
            row.append(" / ".join(number(value) for value in known))
        rows.append(row)
    return table(rows)


def shown(drawn, *names):
    """Those of these plots that were drawn."""
    return [f"![{name}]({name}.svg)" for name in names if f"{name}.svg" in drawn]


def nbd(kind, part, drawn):
    """The comparison over NBD on one kind of device."""
    found = part["cases"]
    measured = [case for case in cases.every() if case.name in found]
    main = [case for case in measured if case.is_main]
    rest = [case for case in measured if not case.is_main]
    lines = [f"## Over NBD, {kind}", f"Device: {part['device']}.", ""]
    if main:
        lines += [speeds(found, main), "", "Latency in µs, 50th / 99th / 99.9th percentile:", "",
                  latencies(found, main), ""]
    if rest:
        lines += ["<details><summary>All other cases</summary>", "", speeds(found, rest), "",
                  latencies(found, rest), "", "</details>", ""]
    return [*lines, *shown(drawn, *(f"{name}-{kind}" for name in
                                    ("throughput", "latency", "commits"))), ""]


def price(part, drawn):
    """Bytes and speed of ours and of file systems."""
    systems = part["systems"]
    lines = ["## The price of atomicity",
             f"Bytes written to the device for each byte written, in all (of ours: data + copies + "
             f"destaged + metadata), and IOPS, on a volume or file of {part['size_mib']} MiB, "
             "32 requests at a time. Ours is written to over NBD, file systems through fio's ring.",
             ""]
    rows = [["pattern", *systems]]
    for pattern, what in part["what"].items():
        if not any(pattern in systems.get(name, {}) for name in OURS):
            continue
        row = [what]
        for found in systems.values():
            shared = "uniform" if pattern.startswith("uniform") else pattern
            figures = found.get(pattern) or found.get(shared)
            row.append(price_cell(figures) if figures else "–")
        rows.append(row)
    engine = ", ".join(f"{name} {number(iops, 'iops')}" for name, iops in part["engine"].items())
    lines += [table(rows), "",
              "The engine without a socket, 4 KiB random over a quarter, a flush every 32: "
              f"{engine}.", ""]
    return [*lines, *shown(drawn, "amplification", "journal-space"), ""]


def price_cell(figures):
    """One pattern on one system."""
    said = f"{figures['device']:.3f}"
    if "data" in figures:
        parts = (figures[reason] for reason in ("data", "copies", "destaged", "metadata"))
        said += f" ({' + '.join(f'{part:.3f}' for part in parts)})"
    large = figures["mib_s"] > 0.5 * figures["iops"]
    unit = "mib_s" if large else "iops"
    return f"{said}, {number(figures[unit], unit)}"


def growth(part):
    """Memory, start-up and recovery."""
    def rows(head, found, named, keys):
        return table([[head, *keys.values()],
                      *([named(one), *(number(row.get(key)) for key in keys)]
                        for one, row in found.items())])

    def megabytes(found):
        return {one: {**row, "rss_mib": row["rss"] / MIB} for one, row in found.items()}

    start = {"ready_ms": "ready after, ms", "recovery_ms": "of it recovery, ms",
             "rss_mib": "memory, MiB"}
    crash = {"journal_used": "journal in use", "groups": "groups applied", **start}
    connect = {"connect_ms": "to connect each, ms", "rss_mib": "memory, MiB"}

    def size(one):
        return f"{int(one) // GIB:,} GiB"

    return ["## Growth", "Sparse files in memory; a volume and a quarter of it for the journal.",
            "", rows("empty volume of", megabytes(part["sizes"]), size, start), "",
            rows("killed under load, volume of", megabytes(part["crash"]), size, crash), "",
            rows("killed under load, volumes", megabytes(part["volumes"]), str, crash), "",
            rows("idle connections", megabytes(part["connections"]), str, connect), ""]


def cost(part):
    """What a request costs a server."""
    names = list(dict.fromkeys(name for found in part.values() for name in found))
    rows = [["case", *names]]
    for case, found in part.items():
        rows.append([case, *(" / ".join(number(found[name][key]) for key in
                                        ("system_calls", "switches", "cpu_us"))
                             if name in found else "–" for name in names)])
    return ["## Cost of a request", "System calls / context switches / µs of processor time of the "
            "server's process, for each request.", "", table(rows), ""]


def engine(part):
    """The engine on the ring beside the device alone, and beside fio's ring on it."""
    rows = [["flags", "case", "device, fio", "device, our load", "engine", "of fio's", "of ours",
             "its p50", "p99", "p99.9"]]
    for place, found in part.items():
        for case in found["cases"]:
            ours = case["engine"]
            unit = "mib_s" if ours["mib_s"] > 0.5 * ours["iops"] else "iops"
            raw = [number(case["raw"][unit], unit), number(case["raw_ratio"])] \
                if "raw" in case else ["–", "–"]
            rows.append([place, case["name"], raw[0], number(case["alone"][unit], unit),
                         number(ours[unit], unit), raw[1], number(case["ratio"]),
                         *(number(ours[key]) for key in ("p50_us", "p99_us", "p999_us"))])
    return ["## The engine itself", "`flipside bench`: load from the ring, no socket; times in µs.",
            "", table(rows), ""]


def about(results):
    """Machine, and when each part was measured."""
    lines = ["## How it was measured", ""]
    for part, when in results["about"].items():
        lines.append(f"- {part}: {when['at']}, {when['machine']}, load {when['load']:.1f} before, "
                     f"commit {when['commit']}; `{when['command']}`")
        if when["load"] > QUIET:
            lines.append(f"  **The machine was busy: times of {part} say little.**")
    for name, said in results.get("versions", {}).items():
        lines.append(f"- {name}: {said}")
    for part in results.get("nbd", {}).values():
        lines += ["", f"Commands ({part['device']}):", "", "```",
                  *(command for commands in part["commands"].values() for command in commands),
                  "```"]
    return [*lines, ""]


def render(results, drawn):
    """All of it, with the plots that were drawn."""
    lines = ["# Flipside beside its peers", ""]
    verdicts = goals.every(results)
    if verdicts:
        lines += ["## Goals", "", table([["goal", "wanted", "measured"],
                                         *(verdict.cells() for verdict in verdicts)]), ""]
    lines += ["Medians over the rounds (lowest – highest). IOPS in thousands.", ""]
    for kind, part in results.get("nbd", {}).items():
        lines += nbd(kind, part, drawn)
    if "price" in results:
        lines += price(results["price"], drawn)
    for name, write in (("growth", growth), ("cost", cost), ("engine", engine)):
        if name in results:
            lines += write(results[name])
    return "\n".join([*lines, *about(results)])
