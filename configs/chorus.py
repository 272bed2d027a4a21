"""Search relevance in an electronics shop, ranked within each query: towers over MiniLM-L6, softmax cross-entropy.

    SRSJAX_DATA=data SRSJAX_MINILM=all-MiniLM-L6-v2 python -m srsjax.train --config chorus

Data: the Chorus project's human ratings, from 0 (irrelevant) to 3 (exactly what was asked for) (Apache-2.0;
`katas/Broad_Query_Set_rated.csv` of github.com/querqy/chorus), and its products from Open Icecat (Icecat Open Content
License; `data-encoder/ecommerce/vectors/data/*.json.zip` there). `labels`: query_id, product_id, rating; `queries`:
query_id, query, split (70 % train, 10 % valid, 20 % test by query); `products`: product_id, title, short_description.

There are few ratings, and these weights were pre-trained to compare two sentences: towers go on from there, and rank
better here than a cross-encoder (`--model.interaction cross --model.readout pooled`), which has to unlearn it.
SRSJAX_MINILM is a folder of weights; without it they come from the Hugging Face hub. Results: configs/README.md.
"""

import os

from srsjax.config import (
    Batch,
    Catalogue,
    Data,
    Evaluate,
    Model,
    Optimizer,
    Schema,
    Split,
    Table,
    Task,
    Text,
    TrainConfig,
)


def get_config() -> TrainConfig:
    folder = "${SRSJAX_DATA}/chorus_electronics"
    return TrainConfig(
        schema=Schema(
            context=(Text("query", column="queries.query", max_tokens=16),),
            candidate=(
                Text("title", column="products.title", max_tokens=48, missing="constant"),
                Text("description", column="products.short_description", max_tokens=48, missing="constant"),
            ),
            tasks=(Task("rating", kind="listwise"),),
        ),
        data=Data(
            log=Table(f"{folder}/labels.parquet"),
            catalogues=(
                Catalogue(f"{folder}/queries.parquet", name="queries", key="query_id", side="context"),
                Catalogue(f"{folder}/products.parquet", name="products", key="product_id"),
            ),
            group_by="query_id",
            keys=("query_id", "product_id"),
            split=Split(by="column", column="queries.split"),
        ),
        model=Model(
            pretrained=os.environ.get("SRSJAX_MINILM", "sentence-transformers/all-MiniLM-L6-v2"),
            interaction="towers",
            readout="mean",
        ),
        batch=Batch(rows=2, tokens=1280),
        optimizer=Optimizer(learning_rate=1e-4),
        evaluate=Evaluate(monitor="ndcg@10"),
        epochs=4,
    )
