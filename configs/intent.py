"""What a customer wants, one of 77 intents, from the text of a question: MiniLM-L6, multiclass.

    SRSJAX_DATA=data SRSJAX_MINILM=all-MiniLM-L6-v2 python -m srsjax.train --config intent

Data: BANKING77 (CC BY 4.0; github.com/PolyAI-LDN/task-specific-datasets, `banking_data`) as one Parquet file with the
columns text, intent and split: the official test set, and a tenth of the official training set as valid. Other
intents are another file: `--data.log.files clinc150.parquet` for CLINC150, where queries out of scope are a class of
their own (`oos`); the table of classes in `report.json` has its recall.

SRSJAX_MINILM is a folder of weights; without it they come from the Hugging Face hub. Results: configs/README.md.
"""

import os

from srsjax.config import Batch, Data, Model, Optimizer, Schema, Split, Table, Task, Text, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        schema=Schema(
            candidate=(Text("text", max_tokens=64),),
            tasks=(Task("intent", kind="multiclass"),),
        ),
        data=Data(
            log=Table("${SRSJAX_DATA}/banking77/utterances.parquet"),
            split=Split(by="column", column="split"),
        ),
        model=Model(
            pretrained=os.environ.get("SRSJAX_MINILM", "sentence-transformers/all-MiniLM-L6-v2"),
            readout="mean",
        ),
        batch=Batch(rows=8, tokens=128),
        optimizer=Optimizer(learning_rate=3e-4),
        epochs=8,
    )
