"""Which article of a page of news a reader opens: impression lists, the titles read before and a listwise share.

    python configs/news.py MINDsmall_train MINDsmall_dev         # once: writes impressions.parquet, articles.parquet
    SRSJAX_MINILM=all-MiniLM-L6-v2 python -m srsjax.train --config news

Data: folders as those of MIND (msnews.github.io; Microsoft Research licence, which forbids to pass it on), each with
`behaviors.tsv` (impression id, user, time, clicked articles, shown articles as N1-0 N2-1) and `news.tsv` (article,
category, subcategory, title, abstract, ...). The first command turns the first folder into training rows, but for its
last tenth of the time, which is valid, and the second folder into test rows: one row an impression, with lists.

The reader is the titles opened before, newest first, encoded once for all articles of the page (`shared`), and their
categories, weighed by attention to the candidate's (DIN). No result is given here: the data may not be had everywhere.
"""

import csv
import os
import sys
from datetime import datetime

from srsjax.config import (
    Batch,
    Catalogue,
    Categorical,
    Data,
    History,
    Model,
    Numeric,
    Optimizer,
    Schema,
    Split,
    Table,
    Task,
    Text,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        schema=Schema(
            context=(
                History("read", catalogue="articles", item_tokens=20, max_items=8, max_tokens=160),
                Categorical(
                    "topics", column="read", of="articles.topic", max_values=20, like="topic", pooling="attention"
                ),
                Numeric("hour", column="time", scale="cyclic"),
            ),
            candidate=(
                Text("title", column="articles.title", max_tokens=24),
                Categorical("topic", column="articles.topic"),
            ),
            tasks=(Task("click", softmax=0.5),),
        ),
        data=Data(
            log=Table("impressions.parquet"),
            catalogues=(Catalogue("articles.parquet", name="articles", key="article", unknown="drop"),),
            explode=("article", "click"),
            user="user",
            keys=("impression", "user", "article"),
            split=Split(by="column", column="split"),
        ),
        model=Model(
            pretrained=os.environ.get("SRSJAX_MINILM", "sentence-transformers/all-MiniLM-L6-v2"),
            interaction="shared",
            readout="mean",
        ),
        batch=Batch(rows=16, tokens=512),
        optimizer=Optimizer(learning_rate=1e-4),
        epochs=2,
    )


def write_impressions(train: str, test: str) -> None:
    """Writes `impressions.parquet` and `articles.parquet` of two folders of MIND."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    articles: dict[str, dict] = {}
    rows: list[dict] = []
    for folder, split in ((train, "train"), (test, "test")):
        for article, topic, _, title, *_ in _lines(f"{folder}/news.tsv"):
            articles.setdefault(article, {"article": article, "topic": topic, "title": title})
        for impression, user, time, read, shown in _lines(f"{folder}/behaviors.tsv"):
            pairs = [each.rsplit("-", 1) for each in shown.split()]
            rows.append(
                {
                    "impression": f"{split}-{impression}",
                    "user": user,
                    "time": datetime.strptime(time, "%m/%d/%Y %I:%M:%S %p"),
                    "read": read.split()[::-1],  # MIND has the oldest first
                    "article": [article for article, _ in pairs],
                    "click": [int(click) for _, click in pairs],
                    "split": split,
                }
            )
    times = sorted(row["time"] for row in rows if row["split"] == "train")
    for row in rows:
        if row["split"] == "train" and row["time"] >= times[9 * len(times) // 10]:
            row["split"] = "valid"
    pq.write_table(pa.Table.from_pylist(list(articles.values())), "articles.parquet")
    pq.write_table(pa.Table.from_pylist(rows), "impressions.parquet")


def _lines(path: str) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


if __name__ == "__main__":
    write_impressions(*sys.argv[1:3])
