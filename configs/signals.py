"""Everything a shop knows, and three questions of it: texts, ids, prices, incomes and images; click, purchase, rating.

    bash launch/local.sh train --config signals.py

The shop of `ctr.py` where clicks also depend on what no text says (`srsjax.data.shop_signals`), written to
`data/signals` by the run. A small BERT reads the texts; embeddings of the item's id, its price, image vector and the
user's income are combined with what it read. A purchase is asked after a click (ESMM). For clicks alone the product of
two vectors (`multimodal.py`) is better here, for all three it is not. Results: configs/README.md.
"""

from dataclasses import replace
from pathlib import Path

from srsjax.cli import read_config
from srsjax.config import Catalogue, Categorical, Numeric, Shop, Table, Task, TrainConfig, Vector

SIGNALS = {
    "ids": ((), (Categorical("item", column="items.item_id", dropout=0.05),)),
    "numbers": (
        (Categorical("income", column="users.income"),),
        (Numeric("price", column="items.price", scale="log"),),
    ),
    "images": ((), (Vector("image", column="items.image", size=8),)),
}
"""Features besides text, of the context and of the candidate."""
TASKS = (Task("click"), Task("buy", after="click"), Task("rating", kind="regression", loss_weight=0.5))


def get_config() -> TrainConfig:
    """All signals and tasks."""
    return with_signals(tuple(SIGNALS), TASKS)


def with_signals(names: tuple[str, ...], tasks: tuple[Task, ...]) -> TrainConfig:
    """The texts and these signals, for these tasks."""
    folder, base = "data/signals", read_config(str(Path(__file__).with_name("ctr.py")))
    context, candidate = (sum((SIGNALS[name][side] for name in names), ()) for side in (0, 1))
    return replace(
        base,
        schema=replace(
            base.schema,
            context=(*base.schema.context, *context),
            candidate=(*base.schema.candidate, *candidate),
            tasks=tasks,
        ),
        data=replace(
            base.data,
            shop=Shop(folder, impressions=24000, signals=True),
            log=Table(f"{folder}/log-*.parquet"),
            catalogues=(
                Catalogue(f"{folder}/items.parquet", name="items", key="item_id"),
                Catalogue(f"{folder}/users.parquet", name="users", key="user_id", side="context"),
            ),
        ),
        model=replace(base.model, combine="concat" if names else "text"),
    )
