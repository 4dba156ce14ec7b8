"""What was measured, as compare.json has it, and how it is read."""

import json
import statistics

from tools import RESULTS, BenchError

FILE = RESULTS / "compare.json"


def values(found, case, target, key):
    """A figure of each round."""
    rounds = found.get(case, {}).get(target, [])
    return [figures[key] for figures in rounds if key in figures]


def median(found, case, target, key):
    """The median of a figure over the rounds; nothing where it was not measured."""
    known = values(found, case, target, key)
    return statistics.median(known) if known else None


def ratio(found, case, one, other, key):
    """One target's median in terms of another's; nothing where either was not measured."""
    top, bottom = (median(found, case, target, key) for target in (one, other))
    return top / bottom if top and bottom else None


def load(path=FILE):
    """The results of earlier runs."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BenchError(f"{path} is not JSON ({error}); remove it to begin anew") from error


def save(results):
    """Keeps them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(results, indent=1) + "\n")
