import math
from dataclasses import replace

import numpy as np
import pytest
from batches import make_split

from srsjax.data.batches.identity import ITEM, with_identities
from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import Ragged
from srsjax.errors import InputError
from srsjax.metrics.baselines import (
    gap_closed,
    number_items,
    popularity_scores,
    prior_strength,
    share_seen,
    user_item_scores,
)


def split_of(item, labels, weights, user=None):
    """One candidate an impression."""
    users = np.arange(len(item)) if user is None else np.array(user)
    return replace(make_split(labels, weights, item=np.array(item)), user=users)


def clicks_of_items(strength, items=4000, mean=0.1, seed=0):
    random = np.random.default_rng(seed)
    rates = random.beta(mean * strength, (1 - mean) * strength, items) if math.isfinite(strength) else mean
    counts = random.integers(1, 200, items)
    return random.binomial(counts, rates).astype(float), counts.astype(float)


@pytest.mark.parametrize("strength", [5, 30, 200])
def test_strength_of_a_simulated_prior_is_found(strength):
    found = [prior_strength(*clicks_of_items(strength, seed=seed)) for seed in range(8)]
    # Over 4000 items the estimate spreads by about 5 % (15 % at 200); the mean of eight by a third of that.
    assert np.mean(found) == pytest.approx(strength, rel=0.15)


def test_equal_rates_or_items_seen_once_are_not_told_apart():
    strengths = [prior_strength(*clicks_of_items(math.inf, seed=seed)) for seed in range(8)]
    assert min(strengths) > 1000
    assert prior_strength(np.array([0.0, 1.0, 0.0]), np.ones(3)) == math.inf


def test_popularity_shrinks_each_item_towards_the_rate_of_all():
    clicks, counts = clicks_of_items(30, items=300)
    item = np.repeat(np.arange(300), 2)
    # Each item as one row of clicks and one without, weighted by counts; item 300 is never seen.
    train = split_of(item, np.tile([1, 0], 300), np.stack([clicks, counts - clicks], 1).ravel())
    scores = popularity_scores(train, split_of(np.arange(301), np.zeros(301), np.ones(301)), 301)
    rate, strength = clicks.sum() / counts.sum(), prior_strength(clicks, counts)
    np.testing.assert_allclose(scores[:300], (clicks + strength * rate) / (counts + strength), rtol=1e-6)
    assert scores[300] == pytest.approx(rate)


def test_popularity_without_any_difference_is_the_rate_of_all():
    train = split_of([0, 1, 2, 2], [0, 1, 0, 1], [1, 1, 1, 1])
    np.testing.assert_array_equal(popularity_scores(train, train, 3), np.full(4, 0.5))


def test_popularity_needs_a_label():
    train = split_of([0, 1], [0, 0], [0, 0])
    with pytest.raises(InputError, match="no known label of task 0"):
        popularity_scores(train, train, 2)


def test_gap_closed():
    assert gap_closed(0.75, 0.6, 0.8) == pytest.approx(0.75)
    assert math.isnan(gap_closed(0.7, 0.8, 0.8))


def test_user_and_item_add_up_as_logits():
    """A simulated shop whose truth is additive is found again: the prediction is near each pair's own rate."""
    random = np.random.default_rng(0)
    of_item, of_user = random.normal(0, 1, 40), random.normal(0, 1, 30)
    item, user = random.integers(0, 40, 60000), random.integers(0, 30, 60000)
    truth = 1 / (1 + np.exp(1 - of_item[item] - of_user[user]))
    train = split_of(item, random.random(60000) < truth, np.ones(60000), user)
    test = replace(train, labels=np.zeros((60000, 1), np.float32))
    found, popular = user_item_scores(train, test, 40), popularity_scores(train, test, 40)
    assert np.abs(found - truth).mean() < 0.05 < np.abs(popular - truth).mean()
    # The formula, for a user and an item by hand.
    stranger = split_of([0, 0], [0, 0], [1, 1], [999, user[0]])
    alone, known = user_item_scores(train, stranger, 40)
    counts, clicks = np.bincount(user), np.bincount(user, train.labels[:, 0])
    strength, rate = prior_strength(clicks, counts.astype(float)), train.labels.mean(dtype=np.float64)
    of_user_0 = (clicks[user[0]] + strength * rate) / (counts[user[0]] + strength)
    first = popularity_scores(train, stranger, 40)[0]

    def odds(p):
        return p / (1 - p)

    assert alone == pytest.approx(first)  # a user not seen has the rate of all
    assert odds(known) == pytest.approx(odds(first) * odds(of_user_0) / odds(rate))


def test_equal_texts_have_one_number_wherever_they_are():
    texts = [[5, 6], [], [6, 5], [5, 6], [5], [0], []]
    items = Items(Ragged.from_rows(texts, np.int32))
    train, test = split_of([0, 1, 2], [1, 0, 1], [1, 1, 1]), split_of([3, 4, 5, 6], [0, 0, 0, 0], [1, 1, 1, 1])
    first, second, count = number_items(items, train, test)
    assert count == 5 and second.item[0] == first.item[0] and second.item[3] == first.item[1]
    assert len({*first.item.tolist(), *second.item.tolist()}) == 5
    assert share_seen(first, second, "item") == 0.5
    assert share_seen(first, replace(second, weights=np.float32([[3], [1], [0], [0]])), "item") == 0.75


def test_candidates_without_text_are_told_apart_by_their_categories():
    items = Items(Ragged.from_rows([[], []], np.int32))
    brands = {"brand": np.int32([1, 2, 1]), "price": np.float32([1, 2, 3])}
    train = replace(split_of([0, 0, 0], [1, 0, 1], [1, 1, 1]), candidate_features=brands)
    first, second, count = number_items(items, train, train)
    assert count == 2 and first.item.tolist() == second.item.tolist()
    assert first.item[0] == first.item[2] != first.item[1]


def test_a_candidate_is_the_same_item_wherever_it_was_shown():
    items = Items(Ragged.from_rows([[], []], np.int32))
    shown = {"brand": np.int32([1, 2, 1]), "slot": np.int32([1, 1, 2]), "fairness/cohort": np.int32([0, 0, 1])}
    train = replace(split_of([0, 0, 0], [1, 0, 1], [1, 1, 1]), candidate_features=shown)
    _, second, count = number_items(items, train, train, ignored=("slot",))
    assert count == 2 and second.item[0] == second.item[2]
    told, _ = with_identities(train, items, catalogue=False, ignored=("slot",))
    np.testing.assert_array_equal(told.candidate_features[ITEM], second.item)


def test_the_share_of_users_seen_counts_known_labels_only():
    train = split_of([0, 1], [1, 0], [1, 0], [7, 8])
    assert share_seen(train, split_of([0] * 4, [0] * 4, [1, 1, 2, 0], [7, 8, 9, 7]), "user") == 0.25
    assert share_seen(train, split_of([0], [0], [0]), "user") == 0
