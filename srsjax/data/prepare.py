"""Tables to a token store: `prepare(config)` is the only way from files to training data."""

from __future__ import annotations

from srsjax.config import TrainConfig
from srsjax.data.store import Store


def prepare(config: TrainConfig, log=print) -> Store:
    """The store of this config: an existing one where nothing it depends on has changed, else a new one.

    What it depends on: schema, data settings, tokenizer, the input files and the code's format version. `log` is told
    which of the two happened and why. Raises InputError for wrong settings and for bad input.
    """
    raise NotImplementedError
