"""The prepared store of a run of one process or several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from srsjax.config import TrainConfig
from srsjax.data.preparing.prepare import prepare
from srsjax.data.store.arrays import Store, open_store
from srsjax.distributed import on_first, process_count, wait_until_seen


def shared_store(config: TrainConfig, log: Callable[[str], None] = print) -> Store:
    """The prepared store of this config. Process 0 prepares it if necessary; the others wait and open it.

    Raises InputError for bad input, and on a process that cannot see what process 0 wrote.
    """
    if process_count() == 1:
        return prepare(config, log=log)
    folder = Path(on_first(lambda: str(prepare(config, log=log).folder)))
    wait_until_seen(folder / "manifest.json")
    return open_store(folder)
