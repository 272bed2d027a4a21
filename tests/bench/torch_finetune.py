"""The peer: a MiniLM fine-tuned by PyTorch and transformers, as a good engineer would write it.

It reads the texts, splits, token budgets, task, learning rate, epochs and tokens per step from a srsjax config and
shares no other code with srsjax. float32, or bfloat16 autocast where that is faster on this CPU; batches of similar
length, padded to their longest pair; the best epoch on valid is kept.

    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/torch_finetune.py --config upworthy --seed 0 --out x.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass

import numpy as np
import torch
from bench_examples import Examples, load_config, read_examples
from bench_metrics import metrics, monitored
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from srsjax.config import Task, TrainConfig

HOPELESS = 5
TIMED = 16
"""Texts of a batch in which both precisions are timed."""


@dataclass(frozen=True)
class Encoded:
    """Token ids and token types of n pairs."""

    tokens: list[list[int]]
    types: list[list[int]]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(tokens) for tokens in self.tokens])


def encode(config: TrainConfig, examples: Examples) -> Encoded:
    """[CLS] context [SEP] candidate [SEP], or [CLS] candidate [SEP] without context fields; each field cut to its
    budget, the non-empty fields of a side joined by [SEP]."""
    tokenizer = AutoTokenizer.from_pretrained(config.model.pretrained)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def side(features, rows: list[list[str]]) -> list[list[int]]:
        joined: list[list[int]] = [[] for _ in rows]
        for f, feature in enumerate(features):
            ids = tokenizer([row[f] for row in rows], add_special_tokens=False, verbose=False)["input_ids"]
            for out, field in zip(joined, ids, strict=True):
                out += ([sep] if out and field else []) + field[: feature.max_tokens]
        return joined

    contexts = side(config.schema.context, examples.context)
    candidates = side(config.schema.candidate, examples.candidate)
    if not config.schema.context:
        tokens = [[cls, *candidate, sep] for candidate in candidates]
        return Encoded(tokens, [[0] * len(t) for t in tokens])
    pairs = list(zip(contexts, candidates, strict=True))
    return Encoded(
        [[cls, *context, sep, *candidate, sep] for context, candidate in pairs],
        [[0] * (len(context) + 2) + [1] * (len(candidate) + 1) for context, candidate in pairs],
    )


def pad(encoded: Encoded, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """The model's inputs for some rows, [B, longest]; token id 0 is BERT's [PAD]."""
    tokens = pad_sequence([torch.tensor(encoded.tokens[i]) for i in rows], batch_first=True)
    types = pad_sequence([torch.tensor(encoded.types[i]) for i in rows], batch_first=True)
    lengths = torch.tensor([len(encoded.tokens[i]) for i in rows])
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    return {"input_ids": tokens, "token_type_ids": types, "attention_mask": mask.long()}


def training_batches(units: list[np.ndarray], lengths: np.ndarray, size: int, rng: np.random.Generator):
    """One epoch of batches of `size` units (pairs, or whole impressions) of similar length, in random order.

    Shuffles, sorts stretches of 32 batches by the unit's longest text, cuts them into batches and shuffles those.
    """
    longest = np.array([lengths[unit].max() for unit in units])
    order = rng.permutation(len(units))
    stretches = np.split(order, range(32 * size, len(order), 32 * size))
    order = np.concatenate([stretch[np.argsort(longest[stretch], kind="stable")] for stretch in stretches])
    batches = np.split(order, range(size, len(order), size))
    for i in rng.permutation(len(batches)):
        yield [units[unit] for unit in batches[i]]


def loss_of(task: Task, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, sizes: list[int]):
    """Binary cross-entropy with soft labels and weights, softmax cross-entropy within each impression, or a mix.

    `logits`, `labels`, `weights`: [B] float32, impressions one after another; `sizes`: their candidates.
    """
    share = 1.0 if task.kind == "listwise" else task.softmax
    weights = weights**task.weight_power
    loss = torch.zeros(())
    if share < 1:
        binary = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        loss = loss + (1 - share) * (weights * binary).sum() / weights.sum()
    if share > 0:
        scores = pad_sequence(logits.split(sizes), batch_first=True, padding_value=-1e9)
        mass = pad_sequence((labels * weights).split(sizes), batch_first=True)
        scores, mass = (x[mass.sum(1) > 0] for x in (scores, mass))
        target = mass / mass.sum(1, keepdim=True)
        loss = loss + share * F.cross_entropy(scores, target)
    return loss


def autocast(dtype: str) -> torch.autocast:
    """The context of a forward pass in `float32` or `bfloat16`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def faster_dtype(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> str:
    """`float32` or `bfloat16`: in which a forward and a backward pass take less time here, the best of two each.

    Without dropout, so that no random numbers are used up. A type that takes `HOPELESS` times as long while warming up
    is not measured: without units for it, bfloat16 takes minutes.
    """
    model.eval()
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for number in range(3):  # the first one warms up
        if number == 1:
            least = min(min(taken) for taken in seconds.values())
            seconds = {dtype: taken for dtype, taken in seconds.items() if taken[0] < HOPELESS * least}
        for dtype, taken in seconds.items():
            started = time.perf_counter()
            with autocast(dtype):
                loss = model(**inputs).logits.float().sum()
            loss.backward()
            taken.append(time.perf_counter() - started)
    model.zero_grad()
    return min(seconds, key=lambda dtype: min(seconds[dtype][1:]))


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW without decay of biases and LayerNorm."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.optimizer.weight_decay}, {"params": plain, "weight_decay": 0}]
    return torch.optim.AdamW(groups, lr=config.optimizer.learning_rate, fused=True)


def fine_tune(
    model: torch.nn.Module, name: str, config: TrainConfig, examples: Examples, encoded: Encoded, seed: int, dtype: str
) -> None:
    """Fine-tunes the model in place and leaves it as it was after the epoch with the best monitored metric on valid."""
    units, size = training_units(config, examples, encoded)
    rng, epochs = np.random.default_rng(seed), round(config.epochs)
    optimizer = make_optimizer(model, config)
    steps = epochs * -(-len(units) // size)
    schedule = get_linear_schedule_with_warmup(optimizer, round(config.optimizer.warmup * steps), steps)
    best, kept, started = -1.0, {}, time.time()
    for epoch in range(epochs):
        batches = training_batches(units, encoded.lengths, size, rng)
        loss = train_epoch(model, config, examples, encoded, batches, optimizer, schedule, dtype)
        scores = {"valid": predict(model, encoded, examples.rows("valid"), dtype)}
        value = metrics(name, examples, scores, "valid")[monitored(config)]
        print(f"epoch {epoch + 1}: loss {loss:.4f}, valid {value:.4f}, {time.time() - started:.0f} s", flush=True)
        if value > best:
            best, kept = value, {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict(kept)


def train_epoch(
    model: torch.nn.Module,
    config: TrainConfig,
    examples: Examples,
    encoded: Encoded,
    batches,
    optimizer,
    schedule,
    dtype: str,
) -> float:
    """Steps over the batches, each a list of units, in `float32` or `bfloat16`; the mean loss."""
    labels = torch.tensor(examples.labels, dtype=torch.float32)
    weights = torch.tensor(examples.weights, dtype=torch.float32)
    model.train()
    losses = []
    for batch in batches:
        rows = np.concatenate(batch)
        with autocast(dtype):
            logits = model(**pad(encoded, rows)).logits.float()[:, 0]
        loss = loss_of(config.schema.tasks[0], logits, labels[rows], weights[rows], [len(unit) for unit in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return float(np.mean(losses))


def training_units(config: TrainConfig, examples: Examples, encoded: Encoded) -> tuple[list[np.ndarray], int]:
    """The training rows by impression, and how many impressions make a batch: about as many tokens as a packed batch
    of srsjax holds."""
    rows = examples.rows("train")
    rows = rows[np.argsort(examples.groups[rows], kind="stable")]
    units = np.split(rows, 1 + np.flatnonzero(np.diff(examples.groups[rows])))
    tokens = encoded.lengths[rows].sum() / len(units)
    return units, max(1, round(config.batch.rows * config.batch.tokens / tokens))


@torch.inference_mode()
def predict(model: torch.nn.Module, encoded: Encoded, rows: np.ndarray, dtype: str, batch_size: int = 64) -> np.ndarray:
    """Probabilities of the rows, in their order, [m] float64."""
    model.eval()
    order = rows[np.argsort(encoded.lengths[rows], kind="stable")]
    scores = np.zeros(len(encoded.tokens))
    for batch in np.split(order, range(batch_size, len(order), batch_size)):
        with autocast(dtype):
            logits = model(**pad(encoded, batch)).logits.double()[:, 0]
        scores[batch] = torch.sigmoid(logits).numpy()
    return scores[rows]


def run(name: str, config: TrainConfig, seed: int, splits: tuple[str, ...] = ("valid", "test")) -> dict:
    """Trains once and returns the metrics of the splits and the seconds taken."""
    started = time.time()
    torch.manual_seed(seed)
    examples = read_examples(config)
    encoded = encode(config, examples)
    model = AutoModelForSequenceClassification.from_pretrained(config.model.pretrained, num_labels=1)
    dtype = faster_dtype(model, pad(encoded, examples.rows("train")[:TIMED]))
    fine_tune(model, name, config, examples, encoded, seed, dtype)
    trained = time.time()
    scores = {split: predict(model, encoded, examples.rows(split), dtype) for split in splits}
    result = {split: metrics(name, examples, scores, split) for split in splits}
    seconds = {"seconds": trained - started, "eval_seconds": time.time() - trained}
    return {"config": name, "seed": seed, "dtype": dtype, **result, **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="name in configs/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 lets torch decide")
    parser.add_argument("--out", default="", help="JSON-lines file to append the result to")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    line = json.dumps({"system": "torch", **run(args.config, load_config(args.config), args.seed)})
    print(line)
    if args.out:
        with open(args.out, "a") as out:
            out.write(line + "\n")


if __name__ == "__main__":
    main()
