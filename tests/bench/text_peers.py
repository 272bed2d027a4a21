"""Intents and replies: the same MiniLM fine-tuned by PyTorch, to compare `configs/intent.py` and `reply.py` with.

    python tests/bench/text_peers.py --config intent --seeds 0 --examples 63
    python tests/bench/text_peers.py --config reply --seeds 0 --examples 42

Texts, splits, budgets, learning rate, epochs and the examples of a step are those of the config. transformers'
`AutoModel`, mean over tokens; a linear layer and cross-entropy for intents; for replies cosines times 20 and the
softmax over the replies of the batch, as sentence-transformers' MultipleNegativesRankingLoss, which leaves out neither
equal replies nor how common each is. AdamW, linear warm-up and decay, bfloat16 autocast where the CPU has units for it,
batches of similar length, the epoch that is best on valid. Prints one JSON line a seed.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F
from torch_finetune import Encoded, autocast, make_optimizer, pad, training_batches
from transformers import AutoModel, AutoTokenizer, get_linear_schedule_with_warmup

from srsjax.cli import read_config
from srsjax.config import TrainConfig
from srsjax.data.reading import tables
from srsjax.hardware import cpu

SCALE = 20.0


class Reader(torch.nn.Module):
    """The mean over the tokens of a text, and for intents their logits."""

    def __init__(self, name: str, classes: int):
        super().__init__()
        self.bert = AutoModel.from_pretrained(name)
        self.head = torch.nn.Linear(self.bert.config.hidden_size, classes) if classes else None

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[B, D], or [B, classes]."""
        mask = inputs["attention_mask"][..., None].float()
        x = (self.bert(**inputs).last_hidden_state.float() * mask).sum(1) / mask.sum(1)
        return x if self.head is None else self.head(F.dropout(x, 0.1, self.training))


def encode(config: TrainConfig, texts: list[str], budget: int) -> Encoded:
    """[CLS] text [SEP]."""
    tokenizer = AutoTokenizer.from_pretrained(config.model.pretrained)
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    tokens = [[tokenizer.cls_token_id, *each[:budget], tokenizer.sep_token_id] for each in ids]
    return Encoded(tokens, [[0] * len(each) for each in tokens])


def read(config: TrainConfig) -> dict[str, list]:
    """The log's columns."""
    return pa.Table.from_batches([chunk.batch for chunk in tables.read(config.data.log, None)]).to_pydict()


@torch.no_grad()
def vectors(model: Reader, encoded: Encoded, rows: np.ndarray, dtype: str) -> torch.Tensor:
    """What the model gives for these rows, in their order."""
    model.eval()
    order = rows[np.argsort(encoded.lengths[rows], kind="stable")]
    out = {}
    for part in np.array_split(order, max(len(order) // 64, 1)):
        with autocast(dtype):
            found = model(pad(encoded, part))
        out |= dict(zip(part.tolist(), found.float(), strict=True))
    return torch.stack([out[row] for row in rows.tolist()])


class Intents:
    """A class for every text."""

    def __init__(self, config: TrainConfig, log: dict[str, list]):
        feature, task = config.schema.candidate[0], config.schema.tasks[0]
        self.encoded = [encode(config, log[feature.column or feature.name], feature.max_tokens)]
        names = sorted({name for name, part in zip(log[task.name], log["split"], strict=True) if part == "train"})
        self.labels = torch.tensor([names.index(name) for name in log[task.name]])
        self.classes, self.trained = len(names), np.array(log["split"]) == "train"

    def loss(self, model: Reader, rows: np.ndarray, dtype: str) -> torch.Tensor:
        """Cross-entropy."""
        with autocast(dtype):
            logits = model(pad(self.encoded[0], rows))
        return F.cross_entropy(logits.float(), self.labels[rows])

    def metric(self, model: Reader, rows: np.ndarray, dtype: str) -> float:
        """Accuracy."""
        found = vectors(model, self.encoded[0], rows, dtype).argmax(1)
        return float((found == self.labels[rows]).float().mean())


class Replies:
    """A dialogue and its reply; valid and test have ten replies for each."""

    classes = 0

    def __init__(self, config: TrainConfig, log: dict[str, list]):
        sides = (config.schema.context[0], config.schema.candidate[0])
        self.encoded = [encode(config, log[side.name], side.max_tokens) for side in sides]
        self.groups, self.labels = np.array(log["example_id"]), np.array(log["next"])
        self.trained = (np.array(log["split"]) == "train") & (self.labels == 1)

    def loss(self, model: Reader, rows: np.ndarray, dtype: str) -> torch.Tensor:
        """The softmax over the replies of the batch."""
        with autocast(dtype):
            sides = [F.normalize(model(pad(encoded, rows)).float(), dim=1) for encoded in self.encoded]
        return F.cross_entropy(SCALE * sides[0] @ sides[1].T, torch.arange(len(rows)))

    def metric(self, model: Reader, rows: np.ndarray, dtype: str) -> float:
        """R10@1."""
        sides = [F.normalize(vectors(model, encoded, rows, dtype), dim=1) for encoded in self.encoded]
        scores, hits = (sides[0] * sides[1]).sum(1).numpy(), []
        for group in np.unique(self.groups[rows]):
            own = self.groups[rows] == group
            hits.append(self.labels[rows][own][scores[own].argmax()])
        return float(np.mean(hits))


def fine_tune(config: TrainConfig, task: Intents | Replies, split: np.ndarray, seed: int, size: int, dtype: str):
    """The test metric of the epoch that is best on valid, by (valid, test), and seconds of the training steps."""
    torch.manual_seed(seed)
    rng, rows = np.random.default_rng(seed), np.flatnonzero(task.trained)
    model = Reader(config.model.pretrained, task.classes)
    optimizer = make_optimizer(model, config)
    epochs, best, seconds = int(config.epochs), (-1.0, -1.0), 0.0
    steps = epochs * -(-len(rows) // size)
    schedule = get_linear_schedule_with_warmup(optimizer, round(config.optimizer.warmup * steps), steps)
    lengths = np.maximum.reduce([encoded.lengths for encoded in task.encoded])
    for _ in range(epochs):
        begun = time.perf_counter()
        for units in training_batches([rows[[i]] for i in range(len(rows))], lengths, size, rng):
            model.train()
            optimizer.zero_grad(set_to_none=True)
            task.loss(model, np.concatenate(units), dtype).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
            optimizer.step()
            schedule.step()
        seconds += time.perf_counter() - begun
        found = tuple(task.metric(model, np.flatnonzero(split == part), dtype) for part in ("valid", "test"))
        best = max(best, found)
    return best, seconds, epochs * len(rows) / seconds


def main() -> None:
    """One line for every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=("intent", "reply"), required=True)
    parser.add_argument("--files", default="", help="another log than the config's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--examples", type=int, required=True, help="of a step, as srsjax says at its start")
    given = parser.parse_args()
    config = read_config(given.config)
    if given.files:
        config = replace(config, data=replace(config.data, log=replace(config.data.log, files=given.files)))
    log = read(config)
    task = (Intents if given.config == "intent" else Replies)(config, log)
    dtype = "bfloat16" if cpu().has_bfloat16 else "float32"
    for seed in given.seeds:
        (valid, test), seconds, speed = fine_tune(config, task, np.array(log["split"]), seed, given.examples, dtype)
        line = {"seed": seed, "valid": valid, "test": test, "seconds": seconds, "examples_per_second": speed}
        print(json.dumps(line | {"dtype": dtype}), flush=True)


if __name__ == "__main__":
    main()
