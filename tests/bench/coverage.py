"""How often the 95 % intervals of a report hold the true value: on many logs of one simulated shop.

    python tests/bench/coverage.py --logs 200

Writes one large shop and divides its users by lot into as many logs. A model (the known log-odds of a click, stretched
and with noise, so that it is neither perfect nor calibrated) is measured on each; the truth is its metric on all users.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

from srsjax.config import Shop
from srsjax.data.shop import write_shop
from srsjax.metrics import intervals, report
from srsjax.metrics.table import Candidates

KEYS = ("auc", "log_loss", "ece", "gauc", "ndcg@10", "recall", "f1")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=200)
    parser.add_argument("--users", type=int, default=225, help="of a log")
    parser.add_argument("--impressions", type=int, default=2400, help="of a log")
    given = parser.parse_args()
    users, labels, logits, groups = _shop(given.logs * given.users, given.logs * given.impressions)
    own = np.random.default_rng(1).permutation(users.max() + 1) % given.logs  # the log of each user
    whole = report.measure(_candidates(users, labels, logits, groups), ("click", "ranking"))
    held, widths = {key: [] for key in KEYS}, {key: [] for key in KEYS}
    for log in range(given.logs):
        rows = own[users] == log
        of = _candidates(users[rows], labels[rows], logits[rows], groups[rows])
        found = intervals.intervals(intervals.spreads(of, KEYS))
        for key, each in found.items():
            held[key].append(each.low <= whole[key] <= each.high)
            widths[key].append(each.high - each.low)
    print(f"{given.logs} logs of {given.users} users, about {len(labels) // given.logs:,} candidates each\n")
    print("| metric | true value | mean width | intervals that hold it |\n|---|---|---|---|")
    for key in KEYS:
        print(f"| {key} | {whole[key]:.4f} | {np.mean(widths[key]):.4f} | {np.mean(held[key]):.1%} |")


def _shop(users: int, impressions: int) -> tuple[np.ndarray, ...]:
    """User, label, logit and impression of every candidate [M]."""
    with tempfile.TemporaryDirectory() as folder:
        write_shop(Shop(folder, impressions=impressions, users=users))
        files = sorted(Path(folder).glob("log-*.parquet"))
        names = ["user_id", "request_id", "click", "click_probability"]
        table = ds.dataset([str(file) for file in files]).to_table(columns=names)
    user, group = (table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in names[:2])
    p = table["click_probability"].to_numpy()
    logits = 1.3 * np.log(p / (1 - p)) + np.random.default_rng(0).normal(0, 1, len(p))
    return user, table["click"].to_numpy().astype(float), logits, group


def _candidates(users, labels, logits, groups) -> Candidates:
    return Candidates(logits, labels, np.ones(len(labels)), groups, users, None, 0.5, 10)


if __name__ == "__main__":
    main()
