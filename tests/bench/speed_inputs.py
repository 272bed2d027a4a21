"""What the systems of the speed tables share: model folders with a head, and synthetic full rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from bench_examples import Examples

GATE_ROWS = 32
"""Texts whose logits the fine-tuning systems must agree on."""
HISTORY, CANDIDATE, CANDIDATES = 200, 20, 20
"""Tokens of a context and of a candidate, special ones included, and candidates of an impression, where interactions
are compared."""


def save_bert_base(folder: Path) -> None:
    """A BERT of base size with random weights and a head of one output, as transformers saves it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(num_labels=1)).save_pretrained(folder)


def save_with_head(pretrained: str, folder: Path) -> None:
    """A copy of a checkpoint and its tokenizer with a fresh head of one output, the same for every system."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(pretrained, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pretrained).save_pretrained(folder)


def full_rows(rows: int, tokens: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Random token ids of rows without padding, [R, L] int32, and labels 0 or 1, [R] float32."""
    rng = np.random.default_rng(step)
    ids = rng.integers(1000, 30000, (rows, tokens), dtype=np.int32)
    ids[:, 0], ids[:, -1] = 101, 102  # [CLS], [SEP]
    return ids, rng.integers(0, 2, rows).astype(np.float32)


def training_subset(examples: Examples, count: int) -> np.ndarray:
    """Rows of whole impressions of the training split drawn at random, at least `count` rows (all if fewer)."""
    rows = examples.rows("train")
    groups, first = np.unique(examples.groups[rows], return_inverse=True)
    rank = np.random.default_rng(0).permutation(len(groups))[first]
    sizes = np.cumsum(np.bincount(rank))
    return rows[rank <= np.searchsorted(sizes, min(count, len(rows)))]


def training_flops(folder: Path, tokens: int, squares: int) -> float:
    """FLOPs of training on `tokens` real tokens: three times those of the forward products.

    A layer multiplies by 4 D^2 + 2 D F weights, 2 FLOPs a weight and token; the scores and the read-out of attention
    add 4 D for each token and token it sees (`squares`: the sum over texts of their length squared). The whole last
    layer is counted for every system, also where it computes only what is read; embeddings and the head are not.

    Args:
      folder: the model, for its sizes.
    """
    sizes = json.loads((folder / "config.json").read_text())
    width = sizes["hidden_size"]
    weights = 4 * width**2 + 2 * width * sizes["intermediate_size"]
    return 3.0 * sizes["num_hidden_layers"] * (2 * tokens * weights + 4 * width * squares)
