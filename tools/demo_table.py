#!/usr/bin/env python3
"""The closing table of tools/demo.sh: demo_table.py DIRECTORY BYTES_THE_KERNEL_COUNTED."""

import json
import pathlib
import sys


def load(name):
    """A JSON file of the demo."""
    return json.loads((pathlib.Path(sys.argv[1]) / name).read_text())


def speed_row(job, direction):
    """One fio job: operations and bytes a second, latency percentiles."""
    result = job[direction]
    percentiles = result["clat_ns"]["percentile"]
    microseconds = [percentiles[f"{percent:.6f}"] / 1000 for percent in (50, 99, 99.9)]
    return [f"{result['iops']:,.0f}", f"{result['bw_bytes'] / 2**20:,.0f}",
            *(f"{value:,.0f}" for value in microseconds)]


def print_table(head, rows):
    """Columns as wide as they must be, numbers to the right."""
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
    for line in [head, ["-" * width for width in widths], *rows]:
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths))
        print("  " + "  ".join([first.strip().ljust(widths[0]), *others]))


def amplification(kernel_bytes):
    """Bytes to the disk for each byte of the client, with what they were."""
    before, after = load("before.json"), load("after.json")
    client = after["client_bytes_written"] - before["client_bytes_written"]
    parts = {name: after["device_bytes_written"][name] - before["device_bytes_written"][name]
             for name in ("data", "copies", "metadata")}
    written, counted_by = (kernel_bytes, "the kernel") if kernel_bytes else (
        sum(parts.values()), "the target")
    shares = ", ".join(f"{name} {size / client:.3f}" for name, size in parts.items())
    return f"{written / client:.3f} (counted by {counted_by}; by the target: {shares})"


def main():
    """Prints everything."""
    jobs = {job["jobname"]: job for job in load("fio.json")["jobs"]}
    print_table(
        ["", "IOPS", "MiB/s", "p50 us", "p99 us", "p99.9 us"],
        [["fill, 1 MiB, depth 8", *speed_row(jobs["fill"], "write")],
         ["random 4 KiB writes, depth 32, fsync=32", *speed_row(jobs["random-writes"], "write")],
         ["random 4 KiB reads, depth 32", *speed_row(jobs["random-reads"], "read")]])
    recovery = load("recovered.json")["recovery"]
    print(f"\n  written to the disk per byte written by the client: "
          f"{amplification(int(sys.argv[2]))}")
    print(f"  recovery after the kill: {recovery['took_us'] / 1000:.1f} ms "
          f"({recovery['groups']} groups of the journal, {recovery['pairs']} pairs of extents)")


if __name__ == "__main__":
    main()
