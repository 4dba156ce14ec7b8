"""fio: one case on one target."""

import dataclasses
import json

from tools import MIB, BenchError, run, said

PERCENTILES = (1, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99)
SEED = 721800
# Beyond its time, for connecting and for the last requests.
PATIENCE_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Amount:
    """How long a load goes on: for some seconds, or for some bytes."""

    seconds: float = 0
    bytes: int = 0

    def options(self, connections):
        """As fio has it; the bytes are those of all connections."""
        if self.seconds:
            return ["--time_based", f"--runtime={round(self.seconds * 1000)}ms"]
        return [f"--io_size={self.bytes // connections}"]


def arguments(case, size, amount):
    """fio's options for a case on a volume of that size, but for where the volume is."""
    size = case.span or size
    options = [f"--name={case.name}", f"--rw={case.rw}", f"--bs={case.block}",
               f"--iodepth={case.depth}", f"--numjobs={case.connections}", "--group_reporting",
               f"--randseed={SEED}", "--norandommap", "--rwmixread=70",
               *amount.options(case.connections)]
    if case.flush:
        options.append(f"--fsync={case.flush}")
    if case.is_sequential and case.connections > 1:
        share = size // case.connections // MIB * MIB
        return [*options, f"--size={share}", f"--offset_increment={share}"]
    return [*options, f"--size={size}"]


def load(where, options, directory, within=()):
    """Runs fio with these options at that place, `within` another command; its account of reads and
    writes, apart and together."""
    output = directory / "fio.json"
    command = [*within, "fio", *where, *options, "--unified_rw_reporting=both",
               "--output-format=json",
               f"--percentile_list={':'.join(map(str, PERCENTILES))}", f"--output={output}"]
    run(command, timeout=PATIENCE_SECONDS)
    # Before the account there may be warnings.
    printed = output.read_text()
    try:
        job = json.loads(printed[printed.index("{"):])["jobs"][0]
    except ValueError as error:
        raise BenchError(f"{said(command)} gave no account of itself:\n{printed}") from error
    if job["error"]:
        raise BenchError(f"{said(command)} reports error {job['error']}: {printed}")
    return job


def figures(job):
    """What is kept of fio's account, in the units of `flipside bench --json`."""
    both = job["mixed"]
    found = {"iops": both["iops"], "mib_s": both["bw_bytes"] / MIB,
             "requests": both["total_ios"], "bytes": both["io_bytes"],
             "flushes": job["sync"].get("total_ios", 0)}
    found.update(percentiles(both["clat_ns"], ""))
    if found["flushes"]:
        found.update(percentiles(job["sync"]["lat_ns"], "flush_"))
    return found


def percentiles(latencies, prefix):
    """Percentiles in microseconds, named as in p50_us, p999_us, p9999_us."""
    found = latencies.get("percentile", {})
    return {f"{prefix}p{percent:g}_us".replace(".", ""): found[f"{percent:.6f}"] / 1000
            for percent in PERCENTILES if f"{percent:.6f}" in found}


def measure(served, case, size, amount, directory, within=()):
    """The figures of one case on one target."""
    return figures(load(served.fio, arguments(case, size, amount), directory, within))
