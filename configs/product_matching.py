"""Whether two shops' offers are the same product. DRAFT"""

import os

from srsjax.config import Batch, Catalogue, Data, Model, Optimizer, Schema, Split, Table, Task, Text, TrainConfig


def get_config() -> TrainConfig:
    folder = "${SRSJAX_DATA}/product_matching"
    return TrainConfig(
        schema=Schema(
            context=(
                Text("left_title", column="left.title", max_tokens=32),
                Text("left_brand", column="left.brand", max_tokens=8),
            ),
            candidate=(
                Text("right_title", column="right.title", max_tokens=32),
                Text("right_brand", column="right.brand", max_tokens=8),
            ),
            tasks=(Task("match", column="label"),),
        ),
        data=Data(
            log=Table(f"{folder}/pairs.parquet"),
            catalogues=(
                Catalogue(f"{folder}/left_products.parquet", name="left", key=("source", "left_id"), side="context"),
                Catalogue(f"{folder}/right_products.parquet", name="right", key=("source", "right_id")),
            ),
            keys=("pair_id", "source"),
            split=Split(by="column", column="split"),
        ),
        model=Model(pretrained=os.environ.get("SRSJAX_MINILM", "sentence-transformers/all-MiniLM-L6-v2")),
        batch=Batch(rows=8, tokens=256),
        optimizer=Optimizer(learning_rate=1e-4),
        epochs=2,
    )
