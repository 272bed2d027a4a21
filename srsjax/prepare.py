"""Prepares the data of a config: `python -m srsjax.prepare --config ctr.py`.

Reads the tables once, checks, joins, cleans and tokenises them, and writes the token store that training reads. Does
nothing where the store is there and nothing it depends on has changed. `train` does the same before it trains.
"""

from __future__ import annotations

from srsjax import cli, distributed
from srsjax.console import say
from srsjax.data.preparing.shared import shared_store


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, _ = cli.load_config(argv, "prepare", __doc__)
    distributed.initialize()
    store = shared_store(config, log=say)
    say(f"store: {store.folder}")
    return 0


if __name__ == "__main__":
    cli.run(main)
