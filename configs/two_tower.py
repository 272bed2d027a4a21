"""Two towers: a vector of who is looking and what for, and a vector of each item, that meet in one product.

    bash launch/local.sh train --config two_tower.py

The shop of `ctr.py`. The context's tower reads the query and the items clicked before, the item's its texts, its id
and its price. The scores of all items for one context are then one matmul with the items' vectors; `python -m
srsjax.export` writes both towers of a model of texts alone for sentence-transformers. Results: configs/README.md.
"""

from dataclasses import replace
from pathlib import Path

from srsjax.cli import read_config
from srsjax.config import Categorical, Numeric, TrainConfig


def get_config() -> TrainConfig:
    base = read_config(str(Path(__file__).with_name("ctr.py")))
    signals = (
        Categorical("item", column="items.item_id", dropout=0.05),
        Numeric("price", column="items.price", scale="log"),
    )
    schema = replace(base.schema, candidate=(*base.schema.candidate, *signals))
    return replace(base, schema=schema, model=replace(base.model, interaction="towers", readout="mean"))
