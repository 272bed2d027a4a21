"""Diverse and exploring lists, against brute force and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsjax.errors import InputError
from srsjax.inference.rerank import DPP, MMR, EpsilonGreedy, PlackettLuce, within_limits


def problem(seed, n=9, width=6):
    rng = np.random.default_rng(seed)
    return np.sort(rng.random(n))[::-1], rng.standard_normal((n, width))


def scaled(relevance):
    return (relevance - relevance.min()) / (relevance.max() - relevance.min())


def cosines(vectors):
    lengths = np.sqrt((vectors**2).sum(1))
    return vectors @ vectors.T / np.outer(lengths, lengths)


@given(st.integers(0, 2**32), st.floats(0, 0.95), st.integers(1, 6))
def test_dpp_takes_the_item_of_the_largest_determinant(seed, weight, count):
    relevance, vectors = problem(seed)
    quality = np.exp(weight / (2 * (1 - weight)) * scaled(relevance))
    kernel = quality[:, None] * cosines(vectors) * quality
    chosen = []
    for item in DPP(weight).order(relevance, vectors, count):
        left = [i for i in range(len(vectors)) if i not in chosen]
        determinants = {i: np.linalg.det(kernel[np.ix_([*chosen, i], [*chosen, i])]) for i in left}
        # Of six vectors at most: determinants in float64 are right to far more than 1e-6 of the largest.
        assert item in left and determinants[item] >= max(determinants.values()) * (1 - 1e-6)
        chosen.append(item)
    assert len(chosen) == count


def test_dpp_goes_on_by_relevance_where_no_vector_is_independent():
    relevance, vectors = problem(3, n=8, width=3)
    order = DPP(0.5).order(relevance, vectors, 8)
    assert sorted(order) == list(range(8)) and list(order[3:]) == sorted(order[3:])


@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 9))
def test_mmr_takes_the_item_of_the_largest_margin(seed, weight, count):
    relevance, vectors = problem(seed)
    r, near, chosen = scaled(relevance), cosines(vectors), []
    for item in MMR(weight).order(relevance, vectors, count):
        left = [i for i in range(len(r)) if i not in chosen]
        margin = {i: weight * r[i] - (1 - weight) * max((near[i, j] for j in chosen), default=0.0) for i in left}
        assert margin[item] >= max(margin.values()) - 1e-12
        chosen.append(item)
    assert len(chosen) == count


@pytest.mark.parametrize("method", [MMR(1.0), DPP(0.0)])
def test_the_ends_of_the_weight(method):
    relevance, vectors = problem(1)
    order = method.order(relevance, vectors, 9)
    if isinstance(method, MMR):
        assert list(order) == list(range(9))
    else:  # relevance counts for nothing: the two first are as good as at right angles
        assert abs(cosines(vectors)[order[0], order[1]]) == np.abs(cosines(vectors)[order[0]]).min()


@pytest.mark.parametrize("policy", [EpsilonGreedy(0.3), PlackettLuce(0.7)])
def test_propensities_are_the_frequencies(policy):
    """Of every list of three of four items, the product of the propensities is how often it is drawn."""
    utility, draws = np.array([1.0, 0.6, 0.5, -0.4]), 20_000
    rng, counts, said = np.random.default_rng(0), {}, {}
    for _ in range(draws):
        chosen, propensity = policy.draw(utility, 3, rng)
        key = tuple(chosen)
        counts[key] = counts.get(key, 0) + 1
        assert said.setdefault(key, propensity.prod()) == pytest.approx(propensity.prod(), abs=1e-12)
    assert sum(said.values()) == pytest.approx(1, abs=1e-9) and len(said) == 24  # all lists came up
    for key in itertools.permutations(range(4), 3):
        # Five standard deviations of a binomial share: a right policy fails once in 70,000 runs of 24 lists.
        deviation = np.sqrt(said[key] * (1 - said[key]) / draws)
        assert abs(counts[key] / draws - said[key]) < 5 * deviation


def test_no_exploration_is_the_order_itself():
    chosen, propensity = EpsilonGreedy(0.0).draw(np.arange(5.0), 3, np.random.default_rng(0))
    assert list(chosen) == [0, 1, 2] and list(propensity) == [1, 1, 1]
    chosen, propensity = PlackettLuce(1e-3).draw(np.array([3.0, 2.0, 1.0]), 3, np.random.default_rng(0))
    assert list(chosen) == [0, 1, 2] and np.allclose(propensity, 1)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 3), st.integers(1, 12))
def test_at_most_so_many_of_a_value(values, limit, count):
    kept = within_limits({"category": values}, {"category": limit}, count)
    expected = [i for i, value in enumerate(values) if values[:i].count(value) < limit][:count]
    assert list(kept) == expected


@pytest.mark.parametrize(
    "make", [lambda: MMR(1.5), lambda: DPP(1.0), lambda: EpsilonGreedy(-0.1), lambda: PlackettLuce(0)]
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(InputError, match="expected"):
        make()
