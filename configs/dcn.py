"""Clicks of the simulated shop without text: DCN-V2 over ids, categories and prices, with attention over the items
that a user clicked before (DIN). What a team has that reads no text yet, and what the text is worth beside it.

    bash launch/local.sh train --config dcn.py

The data are those of `ctr.py`; the query is a category here. `--model.combine mlp` is the plain multi-layer perceptron.
Results: configs/README.md.
"""

from srsjax.config import (
    Batch,
    Catalogue,
    Categorical,
    Data,
    Evaluate,
    Model,
    Numeric,
    Optimizer,
    Schema,
    Shop,
    Split,
    Table,
    Task,
    TrainConfig,
)


def get_config() -> TrainConfig:
    folder = "data/shop"
    return TrainConfig(
        schema=Schema(
            context=(
                Categorical("user", column="user_id", dropout=0.1),
                Categorical("query"),
                Categorical("clicked", column="history", max_values=5, like="item", pooling="attention"),
            ),
            candidate=(
                Categorical("item", column="item_id", dropout=0.1),
                Categorical("brand", column="items.brand"),
                Categorical("category", column="items.category"),
                Numeric("price", column="items.price", scale="log"),
            ),
            tasks=(Task("click"),),
        ),
        data=Data(
            shop=Shop(folder, impressions=24000),
            log=Table(f"{folder}/log-*.parquet"),
            catalogues=(Catalogue(f"{folder}/items.parquet", name="items", key="item_id"),),
            group_by="request_id",
            user="user_id",
            keys=("request_id", "user_id", "item_id"),
            oracle="click_probability",
            split=Split(by="time", column="time"),
        ),
        model=Model(combine="dcn", hidden_size=16, initializer_range=0.05, combine_layers=(128, 64)),
        batch=Batch(rows=8, tokens=128),
        optimizer=Optimizer(learning_rate=2e-3),
        evaluate=Evaluate(every=300),
        epochs=8,
        log_every=300,
    )
