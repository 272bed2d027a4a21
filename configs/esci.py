"""Whether a product is an exact match of a shopping query. DRAFT"""

import os

from srsjax.config import Batch, Catalogue, Data, Model, Optimizer, Schema, Split, Table, Task, Text, TrainConfig


def get_config() -> TrainConfig:
    folder = "${SRSJAX_DATA}/esci_sample"
    return TrainConfig(
        schema=Schema(
            context=(Text("query", column="queries.query", max_tokens=24),),
            candidate=(
                Text("title", column="products.product_title", max_tokens=48),
                Text("brand", column="products.product_brand", max_tokens=8),
                Text("bullet_points", column="products.product_bullet_point", max_tokens=32),
            ),
            tasks=(Task("exact", column="esci_label", positive="Exact"),),
        ),
        data=Data(
            log=Table(f"{folder}/labels.parquet"),
            catalogues=(
                Catalogue(f"{folder}/queries.parquet", name="queries", key="query_id", side="context"),
                Catalogue(f"{folder}/products.parquet", name="products", key=("product_id", "locale")),
            ),
            keys=("query_id", "product_id", "locale"),
            split=Split(by="column", column="queries.split"),
        ),
        model=Model(pretrained=os.environ.get("SRSJAX_MINILM", "sentence-transformers/all-MiniLM-L6-v2")),
        batch=Batch(rows=8, tokens=256),
        optimizer=Optimizer(learning_rate=1e-4),
        epochs=3,
    )
