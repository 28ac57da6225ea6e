"""Many cases by hand, without torch: ``python tests/fuzz/run.py 50000 [FIRST_SEED]``. Prints every case that breaks.

One in twenty-five is a table of recipes, of which each has dozens.
"""

from __future__ import annotations

import faulthandler
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.drive import Broken, check, check_table
from fuzz.mutate import case, table_case

HANGS_AFTER = 60
"""Seconds; then where it hangs is printed, and the process ends."""
REPORT = 5000
"""Cases between two lines."""
TABLES = 25
MEMORY = 4 * 2**30
MIB = 1024


def run(cases: int, first: int) -> int:
    """The number of cases that break."""
    started, broken, good = time.monotonic(), 0, 0
    for seed in range(first, first + cases):
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                is_table = seed % TABLES == 0
                good += check_table(table_case(seed), Path(folder)) if is_table else check(case(seed), Path(folder))
            except Broken as error:
                broken += 1
                print(f"seed {seed}: {str(error)[:1500]}", flush=True)
        faulthandler.cancel_dump_traceback_later()
        if (seed - first + 1) % REPORT == 0:
            print(f"{seed - first + 1} cases, {good} of them good recipes, {broken} broken", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    print(
        f"{cases} cases, {good} of them good recipes, {broken} broken, "
        f"{time.monotonic() - started:.0f} s, {peak:.0f} MiB"
    )
    for module in ("torch", "timm", "numpy"):
        if module in sys.modules:
            print(f"{module} was imported")
            broken += 1
    return broken


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(run(arguments[0] if arguments else 2000, arguments[1] if len(arguments) > 1 else 0) > 0)
