"""Ratings and purchases by who and what is new: the test split in parts, beside baselines that count.

    SRSJAX_DATA=data python tests/bench/unseen.py --run runs/ratings
    SRSJAX_DATA=data python tests/bench/unseen.py --run runs/purchases

For runs of `configs/ratings.py` and `purchases.py`: AUC of the binary task and of the baselines on all test candidates
and on those of users, of items, and of pairs of both that training has or has not (a repeated purchase is a pair that
training has). Baselines: the item's share of positives, the user's own count of the item, and item-kNN, the mean cosine
between the item and those that the user took in training, over the users that took each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import sparse

from srsjax.data.preparing.prepare import prepare
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.arrays import Split
from srsjax.inference.scorer import Scorer
from srsjax.metrics.auc import auc
from srsjax.metrics.baselines import number_items, number_users, popularity_scores


def personal(train: Split, test: Split, task: int, items: int) -> dict[str, np.ndarray]:
    """Scores of the test candidates by what their users took in training."""
    user, other, users = number_users(train, test)
    took = train.labels[:, task] > 0
    counts = sparse.csr_matrix((np.ones(took.sum()), (user[took], train.item[took])), (users, items))
    binary = (counts > 0).astype(np.float64)
    norms = np.maximum(np.sqrt(np.asarray(binary.sum(0)).ravel()), 1e-9)
    scaled = binary @ sparse.diags(1 / norms)
    cosine = (scaled.T @ scaled).tocsr()
    cosine.setdiag(0)
    near = (binary @ cosine).tocsr()
    taken = np.maximum(np.asarray(binary.sum(1)).ravel(), 1)
    at = other, np.asarray(test.item)
    return {
        "the user's own count": np.asarray(counts[at]).ravel(),
        "item-kNN": np.asarray(near[at]).ravel() / taken[other],
    }


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    given = parser.parse_args()
    scorer = Scorer.load(given.run)
    task = next(t for t, each in enumerate(scorer.config.schema.tasks) if each.kind == "binary")
    store = prepare(scorer.config, log=lambda _: None)
    train, test = store.split("train"), store.split("test")
    _, own = scorer.session.objectives(scorer.config)[task]
    scores = {"srsjax": scorer.logits(test, store.items)[:, own.start]}
    items = len(store.items.tokens)
    if Sources(scorer.config.schema, scorer.config.data).home is None:
        train, test, items = number_items(store.items, train, test)
    scores["popularity"] = popularity_scores(train, test, items, task)
    scores |= personal(train, test, task, items)
    user, other, _ = number_users(train, test)
    known_user, known_item = np.isin(other, user), np.isin(test.item, train.item[train.labels[:, task] > 0])
    pairs = user * items + train.item
    known_pair = np.isin(other * items + test.item, pairs[train.labels[:, task] > 0])
    parts = {
        "all": np.ones(len(other), bool),
        "users of training": known_user,
        "new users": ~known_user,
        "items of training": known_item,
        "new items": ~known_item,
        "new users and items": ~known_user & ~known_item,
        "pairs that training has not": ~known_pair,
    }
    print("| test candidates | count | " + " | ".join(scores) + " |\n|---|---|" + "---|" * len(scores))
    for name, part in parts.items():
        labels, weights = test.labels[part, task], test.weights[part, task]
        found = [auc(values[part].astype(np.float64), labels, weights) for values in scores.values()]
        print(f"| {name} | {part.sum():,} | " + " | ".join(f"{value:.3f}" for value in found) + " |")


if __name__ == "__main__":
    main()
