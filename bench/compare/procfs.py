"""What the kernel tells of a process."""

import pathlib


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
