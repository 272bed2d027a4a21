"""Whether a customer recommends a garment, from the text of the review. DRAFT"""

import os

from srsjax.config import Batch, Data, Model, Optimizer, Schema, Split, Table, Task, Text, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        schema=Schema(
            candidate=(Text("title", max_tokens=16), Text("review_text", max_tokens=128)),
            tasks=(Task("recommended"),),
        ),
        data=Data(
            log=Table("${SRSJAX_DATA}/womens_clothing_reviews/reviews.parquet"),
            keys=("review_id",),
            split=Split(by="column", column="split"),
        ),
        model=Model(pretrained=os.environ.get("SRSJAX_MINILM", "sentence-transformers/all-MiniLM-L6-v2")),
        batch=Batch(rows=8, tokens=256),
        optimizer=Optimizer(learning_rate=1e-4),
        epochs=1,
    )
