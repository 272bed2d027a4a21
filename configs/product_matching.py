"""Whether the offers of two shops are the same product: MiniLM-L6, binary, two catalogues.

    SRSJAX_DATA=data SRSJAX_MINILM=all-MiniLM-L6-v2 python -m srsjax.train --config product_matching

Data: the benchmarks Abt-Buy and Amazon-GoogleProducts of the database group at the University of Leipzig (Koepcke,
Thor, Rahm, VLDB 2010; reported to be CC BY 4.0), in the candidate pairs of DeepMatcher (Mudgal et al., SIGMOD 2018),
from `data/er_magellan` of github.com/megagonlabs/ditto (Apache-2.0). `pairs`: pair_id, source, left_id, right_id, label
and split, where train is the published training set, valid and test are halves of the published validation set;
`left_products` and `right_products`: source, left_id or right_id, title, brand.

SRSJAX_MINILM is a folder of weights; without it they come from the Hugging Face hub. Results: configs/README.md.
"""

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
        batch=Batch(rows=16, tokens=128),
        optimizer=Optimizer(learning_rate=1e-4),
        epochs=2,
    )
