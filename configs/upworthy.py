"""Clicks on headlines of randomised A/B tests, learnt listwise within each test. DRAFT"""

import os

from srsjax.config import Batch, Data, Evaluate, Model, Optimizer, Schema, Split, Table, Task, Text, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        schema=Schema(
            candidate=(Text("headline", max_tokens=40),),
            tasks=(Task("click", column="clicks", impressions="impressions", kind="listwise"),),
        ),
        data=Data(
            log=Table("${SRSJAX_DATA}/upworthy_ctr/packages.parquet"),
            group_by="test_id",
            keys=("test_id", "arm"),
            split=Split(by="column", column="split"),
        ),
        model=Model(pretrained=os.environ.get("SRSJAX_MINILM", "sentence-transformers/all-MiniLM-L6-v2")),
        batch=Batch(rows=8, tokens=256),
        optimizer=Optimizer(learning_rate=1e-4),
        evaluate=Evaluate(monitor="pairwise"),
        epochs=1,
    )
