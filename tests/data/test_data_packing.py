"""The packing plan: nothing lost, nothing twice, limits kept, the same everywhere."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsjax.data.batches.packing import RowStream, choose_candidates, plan_rows


@dataclass(frozen=True)
class Case:
    lengths: np.ndarray
    tokens: int
    candidates: int
    keep: np.ndarray
    impressions: np.ndarray
    contexts: np.ndarray
    """Tokens of each impression's context: a row that holds any of its candidates holds these once."""

    def plan(self, whole: bool, shared: bool = False, together: bool = True):
        return plan_rows(
            self.lengths,
            tokens=self.tokens,
            candidates=self.candidates,
            keep=self.keep,
            impressions=self.impressions if whole or shared else None,
            contexts=self.contexts if shared else None,
            together=together,
        )

    def used(self, row: np.ndarray, shared: bool) -> int:
        """Tokens of a row that holds these candidates."""
        impressions = np.unique(np.searchsorted(self.impressions, row, side="right") - 1)
        return self.lengths[row].sum() + (self.contexts[impressions].sum() if shared else 0)


@st.composite
def cases(draw) -> Case:
    tokens = draw(st.integers(4, 40))
    counts = draw(st.lists(st.integers(0, 9), max_size=30))
    size = sum(counts)
    longest = draw(st.integers(0, tokens - 1))
    contexts = draw(st.lists(st.integers(0, longest), min_size=len(counts), max_size=len(counts)))
    lengths = draw(st.lists(st.integers(1, tokens - longest), min_size=size, max_size=size))
    keep = draw(st.lists(st.booleans(), min_size=size, max_size=size)) if draw(st.booleans()) else [True] * size
    return Case(
        np.array(lengths, np.int32),
        tokens,
        draw(st.integers(1, 12)),
        np.array(keep, bool),
        np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        np.array(contexts, np.int64),
    )


@given(cases(), st.sampled_from(["single", "whole", "shared", "cut"]), st.integers(0, 3), st.integers(0, 3))
def test_every_candidate_is_packed_once_within_the_limits(case, kind, seed, epoch):
    shared = kind in ("shared", "cut")
    plan, used = case.plan(kind == "whole", shared, kind != "cut"), 0
    for rows in (plan.epoch(seed, epoch), plan.in_order()):
        assert np.array_equal(np.sort(rows.values), np.flatnonzero(case.keep))
        assert len(rows) == len(plan)
        for row in range(len(rows)):
            assert 1 <= len(rows[row]) <= case.candidates
            assert case.used(rows[row], shared) <= case.tokens
            used += case.used(rows[row], shared) / 2
    padding = 1 - used / max(1, len(plan) * case.tokens)
    if kind == "cut":  # two pieces of an impression in one row are counted with a context each
        assert plan.padding_share <= padding + 1e-9
        assert len(plan) <= len(case.plan(whole=True, shared=True))
    else:
        assert plan.padding_share == pytest.approx(padding)


@given(cases(), st.booleans(), st.integers(0, 3))
def test_impressions_stay_together_unless_they_are_larger_than_a_row(case, shared, seed):
    plan = case.plan(whole=True, shared=shared)
    rows = plan.epoch(seed, 0)
    row_of = np.full(len(case.lengths), -1)
    row_of[rows.values] = np.repeat(np.arange(len(rows)), rows.lengths)
    split = 0
    for first, last in zip(case.impressions[:-1], case.impressions[1:], strict=True):
        mine = np.arange(first, last)[case.keep[first:last]]
        its_rows = np.unique(row_of[mine])
        if len(mine) and (len(mine) > case.candidates or case.used(mine, shared) > case.tokens):
            split += 1
            assert len(its_rows) > 1
            assert np.array_equal(its_rows, np.arange(its_rows[0], its_rows[-1] + 1))  # consecutive
        else:
            assert len(its_rows) <= 1
    assert plan.split_impressions == split


def best_fit_rows(lengths: list[int], tokens: int) -> int:
    """Rows that best-fit decreasing needs, one candidate after another."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else tokens) - length)
    return len(spaces)


@given(st.integers(1, 50).flatmap(lambda L: st.tuples(st.just(L), st.lists(st.integers(1, L), max_size=200))))
def test_packing_classes_at_once_is_best_fit_decreasing(case):
    tokens, lengths = case
    plan = plan_rows(np.array(lengths, np.int32), tokens=tokens, candidates=tokens)
    assert len(plan) == best_fit_rows(lengths, tokens)


def test_order_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(5, 60, 2000)
    orders = {
        (seed, epoch): plan_rows(lengths, tokens=128, candidates=8).epoch(seed, epoch)
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    again = plan_rows(lengths, tokens=128, candidates=8).epoch(1, 1)
    assert np.array_equal(orders[1, 1].values, again.values)
    assert np.array_equal(orders[1, 1].offsets, again.offsets)
    assert len({order.values.tobytes() for order in orders.values()}) == 4


def test_epochs_deal_new_row_mates():
    """Few pairs of candidates share a row in two epochs.

    Given where one of a pair is, the other was dealt to one of at most C places of its class in that row, out of all
    places of its class.
    """
    plan = plan_rows(np.random.default_rng(0).integers(5, 60, 20_000), tokens=128, candidates=8)
    mates = [
        {(a, b) for row in range(len(rows)) for a in rows[row].tolist() for b in rows[row].tolist() if a < b}
        for rows in (plan.epoch(0, 0), plan.epoch(0, 1))
    ]
    assert len(mates[0] & mates[1]) < 8 / np.bincount(plan.unit_class).min() * len(mates[0])


def test_rows_are_shuffled_over_the_whole_epoch():
    """The mean candidate number of the first half of the rows is that of the whole to a few standard errors."""
    size = 20_000
    rows = plan_rows(np.random.default_rng(0).integers(5, 60, size), tokens=128, candidates=16).epoch(0, 0)
    half = rows.values[: rows.offsets[len(rows) // 2]]
    standard_error = size / np.sqrt(12 * len(half))  # standard deviation of a uniform number is size / sqrt(12)
    assert abs(half.mean() - size / 2) < 4 * standard_error


RANDOM = np.random.default_rng(0)
REALISTIC = {
    "short pairs": (np.clip(10 + RANDOM.geometric(0.06, 20_000), 5, 80), 128),
    "even": (RANDOM.integers(10, 200, 20_000), 256),
    "long-tailed reviews": (np.clip(RANDOM.lognormal(4, 0.6, 20_000), 8, 256).astype(int), 256),
}


@pytest.mark.parametrize("name", REALISTIC)
def test_padding_is_a_few_percent(name):
    lengths, tokens = REALISTIC[name]
    candidates = choose_candidates(lengths, tokens)
    assert plan_rows(lengths, tokens=tokens, candidates=candidates).padding_share < 0.05


def test_padding_is_a_few_percent_with_whole_impressions():
    counts = RANDOM.integers(2, 12, 4000)
    impressions = np.concatenate([[0], np.cumsum(counts)])
    lengths = RANDOM.integers(12, 45, impressions[-1])
    candidates = choose_candidates(lengths, 512, impressions)
    plan = plan_rows(lengths, tokens=512, candidates=candidates, impressions=impressions)
    assert plan.padding_share < 0.05
    assert plan.split_impressions == 0


def test_large_impressions_fill_rows_where_they_may_be_cut():
    """Contexts of 10 tokens with 30 candidates of 20 do not fit rows of 512 twice: cut, they leave little empty."""
    impressions = np.arange(0, 3001, 30)
    lengths, contexts = np.full(3000, 20), np.full(100, 10)
    options = {"tokens": 512, "candidates": 28, "impressions": impressions, "contexts": contexts}
    whole, cut = (plan_rows(lengths, **options, together=together) for together in (True, False))
    assert whole.padding_share > 0.2
    assert cut.padding_share < 0.05


@given(cases())
def test_chosen_candidate_slots_split_no_impression_that_the_tokens_hold(case):
    candidates = choose_candidates(case.lengths, case.tokens, case.impressions)
    plan = plan_rows(case.lengths, tokens=case.tokens, candidates=candidates, impressions=case.impressions)
    sums = np.add.reduceat(np.append(case.lengths, 0), case.impressions[:-1]) if len(case.lengths) else np.zeros(0)
    sums = np.where(np.diff(case.impressions) > 0, sums, 0)
    assert plan.split_impressions == (sums > case.tokens).sum()


def test_a_pair_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="rows of 8 tokens"):
        plan_rows(np.array([3, 9]), tokens=8, candidates=2)


@given(cases().filter(lambda case: case.keep.any()), st.integers(0, 60), st.integers(1, 40), st.integers(1, 60))
def test_any_rows_of_the_stream_are_found_by_number(case, first, size, end):
    plan = case.plan(whole=False)
    stream = pickle.loads(pickle.dumps(RowStream(plan, end, seed=5)))
    epochs = [plan.epoch(5, epoch) for epoch in range((first + size) // len(plan) + 1)]
    taken = stream.take(np.arange(first, first + size))
    assert len(taken) == size
    for i, row in enumerate(range(first, first + size)):
        expected = epochs[row // len(plan)][row % len(plan)] if row < end else []
        assert np.array_equal(taken[i], expected)
