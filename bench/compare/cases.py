"""What is measured over NBD: the cases as data."""

import dataclasses
import fnmatch

from tools import KIB, MIB, BenchError

QEMU = "qemu-nbd"
BARE = "pass-through"
DEPTHS = (1, 8, 32, 128)
# Who commit each of their writes, at the same time.
WRITERS = (1, 4, 16, 64)
# fio's word for the pattern, ours, and the same in a table.
PATTERNS = {"read": "randread", "write": "randwrite", "mix": "randrw"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One load of fio, on a volume in one of two states."""

    rw: str
    block: int
    # Of each connection.
    depth: int
    connections: int = 1
    # A flush after so many writes; 0: none.
    flush: int = 0
    # Whether every other block of the volume was overwritten at random, and committed, before.
    is_scattered: bool = False
    # The bytes that it works on, from the start of the volume; the whole of it if 0.
    span: int = 0

    @property
    def name(self):
        """As `--cases` knows it."""
        block = f"{self.block // MIB}m" if self.block >= MIB else f"{self.block // KIB}k"
        parts = [block, "scattered" if self.is_scattered else "", self.rw, f"d{self.depth}",
                 f"f{self.flush}" if self.flush else "", f"c{self.connections}"]
        return "-".join(part for part in parts if part)

    @property
    def is_sequential(self):
        """Whether each request follows the one before."""
        return not self.rw.startswith("rand")

    @property
    def unit(self):
        """What counts: requests, or bytes of large ones."""
        return "mib_s" if self.block >= MIB else "iops"

    @property
    def is_main(self):
        """Whether the tables show it by default: the cases of the goals and their neighbours."""
        if self.connections > 1 or self.block not in (4 * KIB, MIB):
            return False
        return self.block == MIB or self.flush > 0 or self.depth in (1, 32)

    @property
    def rank(self):
        """The order within a round: reads before writes, in order before at random, so that no
        case finds what another has scattered, but for those that want just that."""
        return (self.is_scattered, self.is_scattered and self.is_sequential,
                not self.rw.endswith("read"), not self.is_sequential, self.flush)


def every():
    """All cases, in the order that they are run in."""
    found = [Case(rw, block * KIB, depth, connections)
             for rw in PATTERNS.values() for block in (4, 16) for depth in DEPTHS
             for connections in (1, 4)]
    for connections in (1, 4):
        found += [Case(rw, MIB, 8, connections) for rw in ("read", "write")]
        found.append(Case("randwrite", 4 * KIB, 32, connections, flush=32))
    found += [Case("randwrite", 4 * KIB, 1, writers, flush=1) for writers in WRITERS]
    found += [Case("randread", 4 * KIB, 32, is_scattered=True),
              Case("read", MIB, 8, is_scattered=True)]
    return sorted(found, key=lambda case: case.rank)


def chosen(patterns):
    """The cases whose names match one of the patterns."""
    found = [case for case in every()
             if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]
    if not found:
        names = "\n  ".join(case.name for case in every())
        raise BenchError(f"no case matches {' '.join(patterns)}; there are:\n  {names}")
    return found
