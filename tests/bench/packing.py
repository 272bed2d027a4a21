"""Padding after packing, on real lengths: the share of token slots that hold nothing.

    SRSJAX_DATA=data SRSJAX_MINILM=all-MiniLM-L6-v2 python tests/bench/packing.py

prints a Markdown table. Each cell is `train / evaluation`; `cross` packs pairs (in training with a listwise loss: all
pairs of an impression in one row), `shared` packs contexts with their candidates, and the last column is what batches
of 32 pairs of similar length pad (as `group_by_length` of transformers makes them: sorted within 50 random batches,
each padded to its longest).
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from packing_data import DATA_SETS, Lengths, read

from srsjax.data.batches.packing import choose_candidates, plan_rows
from srsjax.data.store.tokenizer import load_tokenizer

PREFIX, BETWEEN, SUFFIX = 1, 1, 1
"""Special tokens of BERT: [CLS] before, [SEP] between context and candidate, [SEP] behind."""


def cross_padding(data: Lengths) -> float:
    """Padding where every pair is packed with a context of its own."""
    return _padding(data, pair_lengths(data), data.impressions if data.whole else None, None)


def shared_padding(data: Lengths) -> float | None:
    """Padding where the candidates of an impression share its context; None where there is nothing to share."""
    if data.context is None or len(data.candidate) < 1.05 * len(data.context):
        return None
    return _padding(data, data.candidate + SUFFIX, data.impressions, data.context + PREFIX + BETWEEN)


def pair_lengths(data: Lengths) -> np.ndarray:
    """Tokens of each pair, special ones included, [M] int64."""
    if data.context is None:
        return data.candidate + PREFIX + SUFFIX
    return np.repeat(data.context, np.diff(data.impressions)) + data.candidate + PREFIX + BETWEEN + SUFFIX


def batched_padding(lengths: np.ndarray, size: int = 32, seed: int = 0) -> float:
    """Padding of batches of pairs of similar length, each padded to its longest."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    slots = 0
    for start in range(0, len(order), 50 * size):
        block = np.sort(lengths[order[start : start + 50 * size]])
        for at in range(0, len(block), size):
            batch = block[at : at + size]
            slots += len(batch) * int(batch[-1])
    return 1 - float(lengths.sum()) / slots


def _padding(data: Lengths, lengths, impressions, contexts) -> float:
    slots = choose_candidates(lengths, data.tokens, impressions, contexts)
    limits = {"tokens": data.tokens, "candidates": slots}
    return plan_rows(lengths, **limits, impressions=impressions, contexts=contexts, together=data.whole).padding_share


def table(data_sets: list[Lengths]) -> str:
    """The Markdown table."""
    lines = [
        "| data set | context / candidate | mean pair | L | cross | shared | similar lengths |",
        "|---|---|---|---|---|---|---|",
    ]
    for data in data_sets:
        parts = [data.select(train=True), replace(data.select(train=False), whole=False)]
        pairs = pair_lengths(data)
        columns = (cross_padding, shared_padding, lambda part: batched_padding(pair_lengths(part)))
        cells = [" / ".join(_percent(measure(part)) for part in parts) for measure in columns]
        lines.append(f"| {data.name} | {data.texts} | {pairs.mean():.1f} | {data.tokens} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("SRSJAX_DATA"), help="folder of data sets")
    parser.add_argument("--tokenizer", default=os.environ.get("SRSJAX_MINILM"), help="Hugging Face folder or name")
    parser.add_argument("--names", nargs="+", default=list(DATA_SETS), choices=list(DATA_SETS), metavar="NAME")
    arguments = parser.parse_args()
    encoder = load_tokenizer(arguments.tokenizer)
    print(table([read(name, Path(arguments.data), encoder) for name in arguments.names]))


if __name__ == "__main__":
    main()
