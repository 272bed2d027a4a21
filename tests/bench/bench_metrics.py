"""The metrics of the results table, from scores alone: the same code judges srsjax and PyTorch."""

from __future__ import annotations

import itertools
import math

import numpy as np
from bench_examples import Examples
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score

from srsjax.config import TrainConfig


def metrics(name: str, examples: Examples, scores: dict[str, np.ndarray], split: str = "test") -> dict[str, float]:
    """Metrics of the config `name` on a split; `scores` holds one score a row for `valid` and `test`."""
    rows = examples.rows(split)
    labels = examples.labels[rows]
    if name == "upworthy":
        return headline_tests(examples, rows, scores[split])
    result = {"auc": float(roc_auc_score(labels, scores[split]))}
    if name != "product_matching":
        return result
    valid = examples.rows("valid")
    source, valid_source = (np.array(examples.log["source"].take(at)) for at in (rows, valid))
    parts = {"": (slice(None), slice(None))}
    parts |= {f"{s}_": (source == s, valid_source == s) for s in np.unique(source)}
    for prefix, (part, valid_part) in parts.items():
        threshold = best_f1_threshold(examples.labels[valid][valid_part], scores["valid"][valid_part])
        result[f"{prefix}auc"] = float(roc_auc_score(labels[part], scores[split][part]))
        result[f"{prefix}f1"] = float(f1_score(labels[part], scores[split][part] >= threshold))
    return result


def monitored(config: TrainConfig) -> str:
    """The metric by which a config chooses its best epoch; only listwise configs name one."""
    return config.evaluate.monitor or "auc"


def headline_tests(examples: Examples, rows: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Upworthy: how often the headline with more clicks per impression of two in a test has the higher score (all
    pairs of different headlines, and those whose rates differ with |z| > 1.96), and the AUC over single impressions.
    """
    headline = examples.log["headline"].take(rows).to_pylist()
    rate, shown, group = examples.labels[rows], examples.weights[rows], examples.groups[rows]
    right, significant = [], []
    for _, members in itertools.groupby(np.argsort(group, kind="stable"), key=lambda i: group[i]):
        for a, b in itertools.combinations(members, 2):
            if headline[a] == headline[b] or rate[a] == rate[b]:
                continue
            agreement = (rate[a] - rate[b]) * (scores[a] - scores[b])
            right.append(0.5 * (np.sign(agreement) + 1))
            significant.append(abs(z_score(rate[a], shown[a], rate[b], shown[b])) > 1.96)
    right, significant = np.array(right), np.array(significant)
    clicked = np.repeat([1.0, 0.0], len(rows))
    counts = np.concatenate([rate * shown, (1 - rate) * shown])
    return {
        "pairwise": float(right.mean()),
        "pairwise_significant": float(right[significant].mean()),
        "auc": float(roc_auc_score(clicked, np.tile(scores, 2), sample_weight=counts)),
        "pairwise_pairs": len(right),
        "pairwise_significant_pairs": int(significant.sum()),
    }


def z_score(rate_a: float, shown_a: float, rate_b: float, shown_b: float) -> float:
    """z of the two-proportion test with pooled variance."""
    pooled = (rate_a * shown_a + rate_b * shown_b) / (shown_a + shown_b)
    return (rate_a - rate_b) / math.sqrt(pooled * (1 - pooled) * (1 / shown_a + 1 / shown_b))


def best_f1_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the largest F1 (score >= threshold is positive)."""
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.argmax(f1[:-1])])
