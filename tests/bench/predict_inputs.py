"""The pairs of `speed.py predict`: real queries and products, at three mixes of lengths.

`esci_sample` of $SRSJAX_DATA (see configs/esci.py). Texts are cut to their budgets before any system sees them, so that
all of them read the same tokens.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq


class Mix(NamedTuple):
    """Contexts with candidates each, and the most tokens of both."""

    context: int
    candidate: int
    candidates: int
    """Of each context."""


MIXES = {
    "query and title": Mix(24, 48, 10),
    "query and description": Mix(24, 224, 10),
    "history and title": Mix(200, 40, 100),
}


def read_pairs(mix: str, contexts: int, tokenizer) -> tuple[list[str], list[list[str]]]:
    """Texts of so many contexts, and of the candidates of each; `tokenizer` of transformers.

    Candidates are drawn at random from all products: what is measured is speed, which depends on lengths alone.
    """
    folder, lengths, rng = f"{os.environ['SRSJAX_DATA']}/esci_sample", MIXES[mix], np.random.default_rng(0)
    products = pq.read_table(f"{folder}/products.parquet").to_pylist()
    english = [row for row in products if row["locale"] == "us" and row["product_title"]]
    titles = [row["product_title"] for row in english]
    long = [f"{row['product_title']} {row['product_description'] or row['product_bullet_point']}" for row in english]
    queries = [row["query"] for row in pq.read_table(f"{folder}/queries.parquet").to_pylist() if row["locale"] == "us"]

    def cut(text: str, most: int) -> str:
        ids = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return text if len(ids) <= most else text[: ids[most - 1][1]]

    if mix == "history and title":
        found = [" ".join(titles[i] for i in rng.integers(0, len(titles), 8)) for _ in range(contexts)]
    else:
        found = [queries[i] for i in rng.integers(0, len(queries), contexts)]
    texts = long if mix == "query and description" else titles
    drawn = rng.integers(0, len(texts), (contexts, lengths.candidates))
    return (
        [cut(text, lengths.context) for text in found],
        [[cut(texts[i], lengths.candidate) for i in own] for own in drawn],
    )
