"""Clicks of a simulated shop, from raw Parquet logs to a click model: the default run, no download needed.

    bash launch/local.sh train --config ctr.py

The data (`srsjax.data.shop`) are written to `data/shop` on the first run: queries, users with a history, items with
titles and descriptions, English and Chinese, and clicks whose true probabilities are known. A small fresh BERT and a
WordPiece vocabulary are trained on them. Results: configs/README.md.
"""

from srsjax.config import (
    Batch,
    Catalogue,
    Data,
    Evaluate,
    History,
    Model,
    Optimizer,
    Schema,
    Shop,
    Split,
    Table,
    Task,
    Text,
    Tokenizer,
    TrainConfig,
)


def get_config() -> TrainConfig:
    """The default run."""
    folder = "data/shop"
    return TrainConfig(
        schema=Schema(
            context=(
                Text("query", max_tokens=8),
                History("history", item_tokens=8, max_items=2, max_tokens=16),
            ),
            candidate=(
                Text("title", column="items.title", max_tokens=12),
                Text("description", column="items.description", max_tokens=16),
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
        tokenizer=Tokenizer(vocab_size=1000),
        model=Model(
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
