#!/usr/bin/env python3
"""A table of covered lines per folder and file, and the lines that are not.

    tools/coverage_table.py FOLDER

FOLDER holds reports of cargo-tarpaulin, one in each folder below it. A line counts as covered where
any of them covers it.
"""

import json
import sys
from collections import defaultdict
from itertools import groupby
from pathlib import Path


def read(folder):
    """The lines of each file: whether any report has them covered."""
    files = defaultdict(dict)
    for report in sorted(Path(folder).glob("*/tarpaulin-report.json")):
        for file in json.loads(report.read_text())["files"]:
            parts = file["path"]
            name = "/".join(parts[len(parts) - parts[::-1].index("src") :])
            for trace in file["traces"]:
                hit = trace["stats"]["Line"] > 0
                files[name][trace["line"]] = files[name].get(trace["line"], False) or hit
    return files


def runs(lines):
    """Line numbers as ranges."""
    spans = []
    for _, span in groupby(enumerate(sorted(lines)), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in span]
        spans.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
    return " ".join(spans)


def row(name, lines, missed=""):
    covered, all_of_it = sum(lines), len(lines)
    percent = 100 * covered / all_of_it
    print(f"{name:<28} {covered:>5} of {all_of_it:>5}  {percent:5.1f} %  {missed}")


def main():
    files = read(sys.argv[1])
    folders = defaultdict(list)
    for name, lines in sorted(files.items()):
        folders[name.split("/")[0]].extend(lines.values())
        row(name, list(lines.values()), runs(n for n, hit in lines.items() if not hit))
    print()
    for name, lines in folders.items():
        row(name + "/", lines)
    row("all", [hit for lines in folders.values() for hit in lines])


main()
