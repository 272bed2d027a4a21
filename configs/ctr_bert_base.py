"""Clicks on a team's own catalogue with BERT-base on a slice of TPUs or GPUs: a log and items as Parquet.

    SRSJAX_DATA=data python -m srsjax.plan --config ctr_bert_base --topology v5e:4x4              # does it fit?
    bash launch/tpu_pod.sh loop train --config ctr_bert_base.py                                 # see launch/README.md

`${SRSJAX_DATA}/log/*.parquet` has one row a candidate shown: request_id, query, user_id, item_id, position, time,
click. `${SRSJAX_DATA}/items/*.parquet` has item_id, title, description, brand, category and price. Change the names
here to those of the tables at hand; `python -m srsjax.prepare --config ctr_bert_base` checks them and says how much of
each text the budgets keep.

Parameters and optimizer state are divided over the chips of a host (`fsdp`), rows over all; ids have tables of their
own with row-wise Adagrad. The position, which decides clicks but is not known beforehand, is read in training only.
"""

from srsjax.config import (
    Batch,
    Catalogue,
    Categorical,
    Checkpoints,
    Data,
    Evaluate,
    Mesh,
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
    folder = "${SRSJAX_DATA}"
    return TrainConfig(
        schema=Schema(
            context=(
                Text("query", max_tokens=16),
                Categorical("user", column="user_id", hash_buckets=2**24, width=32, dropout=0.1),
            ),
            candidate=(
                Text("title", column="items.title", max_tokens=32),
                Text("description", column="items.description", max_tokens=64),
                Categorical("item", column="items.item_id", hash_buckets=2**22, width=32, dropout=0.1),
                Categorical("brand", column="items.brand", min_count=5),
                Categorical("category", column="items.category"),
                Numeric("price", column="items.price", scale="log", missing="indicator"),
                Categorical("position", training_only=True, fill="1"),
            ),
            tasks=(Task("click", softmax=0.2),),
        ),
        data=Data(
            log=Table(f"{folder}/log/*.parquet"),
            catalogues=(Catalogue(f"{folder}/items/*.parquet", unknown="missing"),),
            group_by="request_id",
            user="user_id",
            keys=("request_id", "user_id", "item_id"),
            on_bad_row="skip",
            split=Split(by="time", column="time", valid=0.02, test=0.05),
        ),
        model=Model(pretrained="google-bert/bert-base-uncased", interaction="shared", remat="dots"),
        mesh=Mesh(data=-1, fsdp=4),
        batch=Batch(rows=512, tokens=512, workers=4),
        optimizer=Optimizer(learning_rate=5e-5, tables="rowwise_adagrad", table_learning_rate=0.02),
        evaluate=Evaluate(every=2000, patience=5),
        checkpoints=Checkpoints(every=1000),
        epochs=2,
        log_every=100,
    )
