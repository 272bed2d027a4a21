"""Whether a customer recommends a garment, from the title and text of the review: MiniLM-L6, binary.

    SRSJAX_DATA=data SRSJAX_MINILM=all-MiniLM-L6-v2 python -m srsjax.train --config reviews

Data: Women's E-Commerce Clothing Reviews (CC0), published on Kaggle as nicapotato/womens-ecommerce-clothing-reviews; a
copy is `womens-ecommerce-clothing-reviews.zip` of github.com/MichalSzopinski00/The-Best-Classifier. Columns review_id,
title, review_text, recommended (0 or 1), and split: 70 % train, 10 % valid, 20 % test by a hash of the text, so that
identical reviews are in one split.

SRSJAX_MINILM is a folder of weights; without it they come from the Hugging Face hub. Results: configs/README.md.
"""

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
