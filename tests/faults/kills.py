"""Random kills of prepare, train, score, export and evaluate: `python tests/faults/kills.py --kills 300 --seed 0`.

Each series starts a command, kills one of its processes (SIGKILL) at a random moment or before a random file operation,
starts it again, up to five times, and then lets it come to its end. What it leaves must be that of a run that nothing
interrupted, bit for bit. Prints counts and every failure; the exit code is 1 where there is one.
"""

from __future__ import annotations

import argparse
import sys
import time

from kill_cases import CASES, run_kills


def main() -> int:
    """Runs the kills that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="how many at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="*", default=(), choices=[case.name for case in CASES], help="only these")
    given = parser.parse_args()
    began = time.monotonic()
    made = run_kills(given.kills, given.seed, tuple(given.cases))
    print(f"\n{made.counts['kills']} kills in {time.monotonic() - began:,.0f} s, {len(made.failures)} failures")
    for name, count in sorted(made.counts.items()):
        print(f"  {count:6} {name}")
    for failure in made.failures:
        print(failure)
    return bool(made.failures)


if __name__ == "__main__":
    sys.exit(main())
