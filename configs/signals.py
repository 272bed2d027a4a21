"""Everything a shop knows, and three questions of it: texts, ids, prices, incomes and images; click, purchase, rating.

    bash launch/local.sh train --config signals.py

The shop of `ctr.py` where clicks also depend on what no text says (`srsjax.data.shop_signals`), written to
`data/signals` by the run. A small BERT reads the texts; embeddings of the item's id, its price, image vector and the
user's income are combined with what it read. A purchase is asked after a click (ESMM). Results: configs/README.md.
"""

from dataclasses import replace

from srsjax.config import (
    Batch,
    Catalogue,
    Categorical,
    Data,
    Evaluate,
    History,
    Model,
    Numeric,
    Optimizer,
    Schema,
    Shop,
    Split,
    Table,
    Task,
    Text,
    Tokenizer,
    TrainConfig,
    Vector,
)

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
    folder = "data/signals"
    context, candidate = (sum((SIGNALS[name][side] for name in names), ()) for side in (0, 1))
    config = TrainConfig(
        schema=Schema(
            context=(
                Text("query", max_tokens=8),
                History("history", item_tokens=8, max_items=2, max_tokens=16),
                *context,
            ),
            candidate=(
                Text("title", column="items.title", max_tokens=12),
                Text("description", column="items.description", max_tokens=16),
                *candidate,
            ),
            tasks=tasks,
        ),
        data=Data(
            shop=Shop(folder, impressions=24000, signals=True),
            log=Table(f"{folder}/log-*.parquet"),
            catalogues=(
                Catalogue(f"{folder}/items.parquet", name="items", key="item_id"),
                Catalogue(f"{folder}/users.parquet", name="users", key="user_id", side="context"),
            ),
            group_by="request_id",
            user="user_id",
            keys=("request_id", "user_id", "item_id"),
            oracle="click_probability",
            split=Split(by="time", column="time"),
        ),
        tokenizer=Tokenizer(vocab_size=1000),
        model=Model(
            combine="concat",
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            intermediate_size=128,
            max_positions=128,
            initializer_range=0.1,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            head_dropout=0.0,
        ),
        batch=Batch(rows=16, tokens=128),
        optimizer=Optimizer(learning_rate=1e-3),
        evaluate=Evaluate(every=1500),
        epochs=4,
        log_every=500,
    )
    return config if names else replace(config, model=replace(config.model, combine="text"))
