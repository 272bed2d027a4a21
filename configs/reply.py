"""Which reply comes next in a dialogue, of ten: towers over MiniLM-L6, contrastive, English or Chinese.

    python configs/reply.py data/taskmaster4_coffee                    # once: writes replies.parquet there
    SRSJAX_DATA=data SRSJAX_MINILM=all-MiniLM-L6-v2 python -m srsjax.train --config reply

Data: Taskmaster-4 coffee orders (CC BY 4.0; github.com/google-research-datasets/Taskmaster) or CrossWOZ (Apache-2.0;
github.com/thu-coai/CrossWOZ), as `turns.parquet` (dialogue_id, turn, role, text), `responses.parquet` (example_id,
dialogue_id, turn, response, split) and `eval_candidates.parquet` (example_id, candidates, positive_index: ten replies
for each example of valid and test). The first command joins them to a log with a column for the turns so far, newest
first, one row a candidate.

A row of training is a dialogue and the reply it got; every other reply of the batch is one that it did not get. For
Chinese: `--data.log.files '${SRSJAX_DATA}/crosswoz_zh/replies.parquet'`, with an encoder that knows the language.
`top_1` of the test table is R10@1, how often the reply that was given comes first. Results: configs/README.md.
"""

import os
import sys

from srsjax.config import Batch, Data, Model, Optimizer, Schema, Split, Table, Task, Text, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        schema=Schema(
            context=(Text("dialogue", max_tokens=64),),
            candidate=(Text("reply", max_tokens=40),),
            # The nine others of each example are drawn as often as they occur: common replies are not to lead.
            tasks=(Task("next", kind="contrastive", sampling_correction=False),),
        ),
        data=Data(
            log=Table("${SRSJAX_DATA}/taskmaster4_coffee/replies.parquet"),
            group_by="example_id",
            split=Split(by="column", column="split"),
        ),
        model=Model(
            pretrained=os.environ.get("SRSJAX_MINILM", "sentence-transformers/all-MiniLM-L6-v2"),
            interaction="towers",
            readout="mean",
        ),
        batch=Batch(rows=16, tokens=128),
        optimizer=Optimizer(learning_rate=2e-4),
        epochs=4,
    )


def write_replies(folder: str) -> str:
    """Joins turns, responses and candidates of a folder to one log, and says where it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = {
        name: pq.read_table(f"{folder}/{name}.parquet").to_pylist()
        for name in ("turns", "responses", "eval_candidates")
    }
    turns: dict[str, list[dict]] = {}
    for turn in tables["turns"]:
        turns.setdefault(turn["dialogue_id"], []).append(turn)
    lists = {row["example_id"]: row for row in tables["eval_candidates"]}
    rows = []
    for response in tables["responses"]:
        before = [turn for turn in turns[response["dialogue_id"]] if turn["turn"] < response["turn"]]
        newest_first = sorted(before, key=lambda turn: -turn["turn"])
        said = " | ".join(f"{turn['role']}: {turn['text']}" for turn in newest_first)
        ten = lists.get(response["example_id"], {"candidates": [response["response"]], "positive_index": 0})
        for number, reply in enumerate(ten["candidates"]):
            rows.append(
                {
                    "example_id": response["example_id"],
                    "dialogue": said,
                    "reply": reply,
                    "next": int(number == ten["positive_index"]),
                    "split": response["split"],
                }
            )
    pq.write_table(pa.Table.from_pylist(rows), f"{folder}/replies.parquet", compression="zstd")
    return f"{folder}/replies.parquet"


if __name__ == "__main__":
    print(write_replies(sys.argv[1]))
