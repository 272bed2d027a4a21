"""The table's metrics agree with srsjax's own report, on real tests of headlines and scores drawn at random."""

from dataclasses import replace

import numpy as np
import pytest
from bench_examples import load_config, read_examples
from bench_metrics import metrics, monitored

from srsjax.data.preparing.prepare import prepare
from srsjax.metrics.report import evaluate_split
from srsjax.runs.monitor import resolve_monitor


def test_headline_pairs_agree_with_the_report(tmp_path, data_sets, minilm):
    config = load_config("upworthy")
    config = replace(config, data=replace(config.data, store=str(tmp_path)))
    examples, split = read_examples(config), prepare(config).split("test")
    rows = examples.rows("test")
    logits = np.random.default_rng(0).normal(size=len(rows)).round(1)  # rounded: some are tied
    found = metrics("upworthy", examples, {"test": logits}, "test")
    report = evaluate_split(logits[np.searchsorted(rows, split.example)], split)
    # Sums of the same terms in float64, in another order.
    assert found == pytest.approx({name: report[name] for name in found}, abs=1e-9)
    # The counts of pairs that the published reference numbers of this split are given for.
    assert (found["pairwise_pairs"], found["pairwise_significant_pairs"]) == (2265, 605)


@pytest.mark.parametrize("name", ["upworthy", "reviews", "esci", "product_matching"])
def test_both_systems_choose_their_best_epoch_by_the_same_metric(name):
    config = load_config(name)
    assert monitored(config) == resolve_monitor(config).key
