"""Prepares the data of a config: `python -m srsjax.prepare --config ctr.py`.

Reads the tables once, checks, joins, cleans and tokenises them, and writes the token store that training reads. Does
nothing where the store is there and nothing it depends on has changed. `train` does the same before it trains.

`--verify` then reads every file of the store and compares it with its checksum.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from srsjax import cli, distributed
from srsjax.console import say
from srsjax.data.preparing.shared import shared_store


@dataclass(frozen=True)
class Arguments(cli.ConfigArgument):
    """What the command takes besides the fields of the config."""

    verify: bool = False
    """Read every file of the store, and exit with 2 at the first that is not as it was written."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, arguments = cli.load_config_and(Arguments, argv, "prepare", __doc__)
    distributed.initialize()
    store = shared_store(config, log=say)
    say(f"store: {store.folder}")
    if arguments.verify:
        began = time.monotonic()
        size = store.checks.everything()
        seconds = time.monotonic() - began
        say(f"verified: {len(store.checks.files):,} files, {size / 1e6:,.1f} MB, in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    cli.run(main)
