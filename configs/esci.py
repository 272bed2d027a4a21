"""Whether a product is an exact match of a shopping query: MiniLM-L6, binary, two catalogues.

    SRSJAX_DATA=data SRSJAX_MINILM=all-MiniLM-L6-v2 python -m srsjax.train --config esci

Data: 2,300 judgements of Amazon's Shopping Queries Dataset (Apache-2.0; github.com/amazon-science/esci-data), from
`data/training_set_fraction.csv` of github.com/Ratansairohith/Query-Product-Ranking-Product-Classification and
`data/esci.csv` of github.com/malusamayo/underspec-analysis. `labels`: query_id, product_id, locale, esci_label;
`queries`: query_id, query, split (70 % train, 10 % valid, 20 % test by query); `products`: product_id, locale,
product_title, product_brand. Two thirds are English, the rest Japanese and Spanish.

SRSJAX_MINILM is a folder of weights; without it they come from the Hugging Face hub. Results: configs/README.md.
"""

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
        batch=Batch(rows=8, tokens=128),
        optimizer=Optimizer(learning_rate=1e-4),
        epochs=4,
    )
