"""A progress bar with an estimate of the time left, on the standard error."""

import sys
import time

WIDTH = 24


class Progress:
    """Steps whose lengths were guessed; the guess is corrected by how long they took."""

    def __init__(self, seconds):
        self.planned = seconds
        self.done = 0
        self.begun = time.monotonic()
        self.is_terminal = sys.stderr.isatty()
        self.last = ""

    def step(self, seconds, what):
        """The next step begins, which was guessed to take so long."""
        elapsed = time.monotonic() - self.begun
        share = min(self.done / self.planned, 1) if self.planned else 1
        # Early on the plan knows better than the little that was measured.
        pace = (elapsed + 20) / (self.done + 20)
        left = max(self.planned - self.done, 0) * pace
        filled = round(share * WIDTH)
        line = (f"[{'#' * filled}{'.' * (WIDTH - filled)}] {share:4.0%} "
                f"{left // 60:.0f}:{left % 60:02.0f} left  {what}")
        if self.is_terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif line.split()[-1] != self.last:
            print(line, file=sys.stderr, flush=True)
        self.last = line.split()[-1]
        self.done += seconds

    def end(self):
        """Nothing comes any more."""
        if self.is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        elapsed = time.monotonic() - self.begun
        print(f"done in {elapsed // 60:.0f}:{elapsed % 60:02.0f}", file=sys.stderr)
