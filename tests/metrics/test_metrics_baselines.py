import math

import numpy as np
import pytest
from batches import make_split

from srsjax.errors import InputError
from srsjax.metrics.baselines import gap_closed, popularity_scores, prior_strength


def split_of(item, labels, weights):
    """One candidate an impression."""
    return make_split(labels, weights, item=np.array(item))


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
