"""What the kernel counts for a process: memory, processor time, context switches."""

import os
import pathlib

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def status(folder):
    """The fields of a status file."""
    lines = (folder / "status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def has_ended(pid):
    """Whether a process is gone, or would be if its parent took notice."""
    try:
        return status(pathlib.Path(f"/proc/{pid}"))["State"].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def memory(process):
    """Bytes of memory that a process has now, without what it shares with files."""
    fields = status(pathlib.Path(f"/proc/{process.pid}"))
    return {key: int(fields[name].split()[0]) * 1024
            for key, name in (("rss", "VmRSS"), ("anonymous", "RssAnon"))}


def usage(process):
    """Processor time in microseconds and context switches so far, of all threads that live; nothing
    where there is no process, or it works in children of its own."""
    if process is None:
        return None
    folder = pathlib.Path(f"/proc/{process.pid}")
    # After the name, which ends with the last bracket, user and system time are 12th and 13th.
    fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    switches = 0
    for thread in (folder / "task").iterdir():
        try:
            found = status(thread)
        except FileNotFoundError:
            continue
        switches += int(found["voluntary_ctxt_switches"])
        switches += int(found["nonvoluntary_ctxt_switches"])
    return {"cpu_us": ticks * 1_000_000 // TICKS_A_SECOND, "switches": switches}
