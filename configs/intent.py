"""What a customer wants, one of 77 intents, from the text of a question: MiniLM-L6, multiclass.

    SRSJAX_DATA=data SRSJAX_MINILM=all-MiniLM-L6-v2 python -m srsjax.train --config intent

Data: BANKING77 (CC BY 4.0; github.com/PolyAI-LDN/task-specific-datasets, `banking_data`) as one Parquet file with the
columns text, intent and split: the official test set, and a tenth of the official training set as valid. Other
intents are another file: `--data.log.files clinc150.parquet` for CLINC150, where queries out of scope are a class of
their own (`oos`); the table of classes in `report.json` has its recall. They are 1 of 150 training rows and more in
use: `--evaluate.class_shares oos=0.2` finds twice as many, for one in a hundred of the others.

Turns of a dialogue want what was said before: of MultiDoGO (CDLA-Permissive 1.0;
github.com/awslabs/multi-domain-goal-oriented-dialogues-dataset; domain, conversation_id, turn, text, intents, split)

    python configs/intent.py data/multidogo_intents

writes `turns.parquet` with the text and the four turns before it, newest first, and `domain intent` as the class.

SRSJAX_MINILM is a folder of weights; without it they come from the Hugging Face hub. Results: configs/README.md.
"""

import os
import sys

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


def write_turns(folder: str, before: int = 4) -> str:
    """Joins the turns of MultiDoGO with those before them, and says where the table is; turns of several intents are
    left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = pq.read_table(f"{folder}/utterances.parquet").to_pylist()
    turns.sort(key=lambda row: (row["domain"], row["conversation_id"], row["turn"]))
    rows, said, at = [], [], None
    for turn in turns:
        if at != (turn["domain"], turn["conversation_id"]):
            at, said = (turn["domain"], turn["conversation_id"]), []
        if len(turn["intents"]) == 1:
            text = " | ".join([turn["text"], *said[:before]])
            rows.append({"text": text, "intent": f"{turn['domain']} {turn['intents'][0]}", "split": turn["split"]})
        said = [turn["text"], *said[: before - 1]]
    pq.write_table(pa.Table.from_pylist(rows), f"{folder}/turns.parquet", compression="zstd")
    return f"{folder}/turns.parquet"


if __name__ == "__main__":
    print(write_turns(sys.argv[1]))
