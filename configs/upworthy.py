"""Clicks on news headlines, compared within randomised A/B tests: MiniLM-L6, softmax cross-entropy over each test.

    SRSJAX_DATA=data SRSJAX_MINILM=all-MiniLM-L6-v2 python -m srsjax.train --config upworthy

Data: the exploratory packages of the Upworthy Research Archive (CC BY 4.0; Matias et al., Scientific Data 8:195, 2021),
from `data/processed/upworthy_clean.parquet` of github.com/elilk2/Upworthy-Analysis-Project. One row a package (headline
and image) of a test; columns test_id, arm (its number within the test), headline, impressions, clicks, and split: whole
tests by time, the oldest 70 % train, the next 10 % valid, the next 10 % test.

The click rate of a headline depends on when and where it was shown; which headline of a test is better does not. So the
target is each headline's share of the clicks of its test. The arms of a test have nearly equal numbers of impressions.
SRSJAX_MINILM is a folder of weights; without it they come from the Hugging Face hub. Results: configs/README.md.
"""

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
        batch=Batch(rows=12, tokens=192),
        optimizer=Optimizer(learning_rate=1e-4),
        evaluate=Evaluate(monitor="pairwise"),
        epochs=1,
    )
