"""Drift of rows in memory: what moved is named, what did not is not, and nothing private is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
from batches import make_split

from srsjax.config import Categorical, Data, Numeric, Schema, Task, Text, TrainConfig, Vector
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.ragged import Ragged
from srsjax.data.store.tokenizer import train_tokenizer
from srsjax.metrics.calibration import sigmoid
from srsjax.model.spec import Outputs
from srsjax.runs import drift
from srsjax.runs.observation import Mean, Rows, not_watched, numbers, truth
from srsjax.runs.reference import Known, Reference, lacking, observe, summary

TEXT = train_tokenizer(["red blue green dress shirt jacket"] * 3, 100, lowercase=True)
FIRST = len(TEXT.special)
CONFIG = TrainConfig(
    schema=Schema(
        context=(Text("query"), Categorical("country"), Numeric("income", missing="indicator")),
        candidate=(
            Text("title"),
            Numeric("price"),
            Categorical("tags", max_values=3),
            Categorical("position", training_only=True),
            Vector("image", size=4),
        ),
    ),
    data=Data(user="user_id"),
)
CLICK = (Outputs("click", "binary"),)
VOCABULARIES = {"country": ["GB", "US", "CN"], "tags": [f"t{n}" for n in range(9)]}


def shop(seed=0, items=100) -> Items:
    """A catalogue of items with texts and features."""
    rng = np.random.default_rng(seed)
    tags = rng.integers(0, 10, (items, 3)).astype(np.int32)
    return Items(
        Ragged.from_rows([rng.integers(FIRST, 30, 5) for _ in range(items)], np.int32),
        {
            "price": rng.lognormal(3, 1, items).astype(np.float32),
            "tags": tags,
            "image": rng.normal([1, 0, 0, 0], 0.5, (items, 4)).astype(np.float32),
        },
    )


def pages(items: Items, seed, impressions=400, users=150, shown=None, slope=1.0) -> tuple[Split, np.ndarray]:
    """Impressions of 5 candidates, and logits [M, 1] that are as true as can be where `slope` is 1. Users differ in
    country, income and words; `shown` are probabilities of the items."""
    rng = np.random.default_rng([7, seed])
    country, income, word = rng.integers(0, 4, users), rng.lognormal(3, 0.5, users), rng.integers(FIRST, 30, users)
    income[rng.random(users) < 0.1] = np.nan
    user = rng.integers(0, users, impressions)
    item = rng.choice(len(items.tokens), 5 * impressions, p=shown)
    logits = rng.normal(-1, 1, (len(item), 1))
    labels = rng.random(len(item)) < sigmoid(-1 + slope * (logits[:, 0] + 1))
    context = Ragged.from_rows([[word[u], *rng.integers(FIRST, 30, rng.integers(0, 4))] for u in user], np.int32)
    split = make_split(labels, counts=np.full(impressions, 5), item=item, user=user, context=context)
    features = {"country": country[user].astype(np.int32), "income": income[user].astype(np.float32)}
    position = np.tile(np.arange(5, dtype=np.int32), impressions)
    return replace(split, context_features=features, candidate_features={"position": position}), logits


def referred(config, items, split, logits, train) -> Reference:
    known = Known.from_json(json.loads(json.dumps(Known.of(config, train, items, TEXT).to_json())))
    series = observe(Rows(config, split, items, TEXT), known, CLICK, logits)
    found = {each.name: summary(each, known.top.get(each.name, [])) for each in series}
    found = json.loads(json.dumps(found))  # as it is read again
    return Reference("test", 1, "", len(split.item), 150, known, found, {"items not in the catalogue": 0.0})


@pytest.fixture(scope="module")
def made():
    """A catalogue and a reference."""
    items = shop()
    return items, referred(CONFIG, items, *pages(items, 0, 1000), pages(items, 1, 3000)[0])


def found_in(made, split, logits, items=None, lost=0.0, reference=None, config=CONFIG) -> list[drift.Finding]:
    items, reference = items or made[0], reference or made[1]
    series = observe(Rows(config, split, items, TEXT), reference.known, CLICK, logits)
    counts = len(split.item), len(split)

    def name(named, feature, number):
        return f"{named} {feature} {number}"

    return drift.find(reference, series, {"items not in the catalogue": lost}, counts, drift.Limits(), name)


def drifted(*args, **options) -> list[str]:
    return [each.name for each in found_in(*args, **options) if each.drifted]


def test_other_users_and_pages_raise_no_alarm(made):
    # Each has an alarm with a probability of 0.001 at most: of 40, one in 25 tries.
    for seed in range(40):
        assert drifted(made, *pages(made[0], 100 + seed)) == []


def test_without_users_the_same_rows_would(made):
    """Users who differ make counts vary: the same draws, each impression taken for a user of its own."""
    items = made[0]
    alone = [
        replace(split, user=np.arange(len(split))) for split in (pages(items, 0, 1000)[0], pages(items, 1, 3000)[0])
    ]
    reference = referred(CONFIG, items, alone[0], pages(items, 0, 1000)[1], alone[1])
    names = set()
    for seed in range(40):
        split, logits = pages(items, 100 + seed, 400, 40)
        names |= set(drifted(made, replace(split, user=np.arange(len(split))), logits, reference=reference))
    assert names >= {"country", "income"}


def change(items: Items, **features) -> Items:
    return replace(items, features=items.features | features)


def test_what_moved_is_named(made):
    items, split, logits = made[0], *pages(made[0], 50)
    rng = np.random.default_rng(1)
    context = split.context_features
    moved = np.where(rng.random(400) < 0.3, 1, context["country"]).astype(np.int32)
    assert drifted(made, replace(split, context_features=context | {"country": moved}), logits) == ["country"]
    unknown = np.where(rng.random(400) < 0.5, 0, context["country"]).astype(np.int32)
    assert "country unknown" in drifted(made, replace(split, context_features=context | {"country": unknown}), logits)
    dearer = change(items, price=items.features["price"] * 1.5)
    assert drifted(made, split, logits, items=dearer) == ["price"]
    missing = np.where(rng.random(400) < 0.4, np.nan, context["income"]).astype(np.float32)
    found = found_in(made, replace(split, context_features=context | {"income": missing}), logits)
    (income,) = [each for each in found if each.drifted]
    assert income.name == "income" and "missing" in income.said
    turned = change(items, image=np.roll(items.features["image"], 1, axis=1))
    assert drifted(made, split, logits, items=turned) == ["image direction"]
    longer = change(items, image=items.features["image"] * 1.3)
    assert drifted(made, split, logits, items=longer) == ["image length"]
    assert drifted(made, split, logits + 0.7)[0] == "click score"
    assert drifted(made, split, logits, lost=0.1) == ["items not in the catalogue"]


def test_words_and_items_that_moved_are_named(made):
    items, split, logits = made[0], *pages(made[0], 51)
    rng = np.random.default_rng(2)
    values = split.context.values.copy()
    values[rng.random(len(values)) < 0.1] = TEXT.unk_id
    found = drifted(made, replace(split, context=replace(split.context, values=values)), logits)
    assert "context words unknown" in found and "context words" in found
    few = np.r_[np.full(10, 5.0), np.ones(90)]
    assert "items" in drifted(made, *pages(items, 52, shown=few / few.sum()))
    new = shop(9, 100)
    assert "items new" in drifted(made, split, logits, items=replace(items, tokens=new.tokens))
    # Fewer rows, in which chance alone is far: no alarm.
    assert drifted(made, *pages(items, 53, 60, 60)) == []


def test_another_click_model_is_named_and_not_its_inputs(made):
    items = made[0]
    assert drifted(made, *pages(items, 60, slope=0.3)) == ["click slope", "click auc"]
    split, logits = pages(items, 61)
    kept = np.random.default_rng(3).random(len(split.labels)) < 0.6
    assert drifted(made, replace(split, labels=split.labels * kept[:, None]), logits) == ["click calibration"]
    # A better model than before is no reason for an alarm.
    better = found_in(made, *pages(items, 62, slope=1.0))
    assert not any(each.drifted for each in better if each.kind == "metric")


def test_a_context_counts_once(made):
    items, reference = made
    split, _ = pages(items, 0, 1000)
    assert sum(reference.series["country"]["counts"]) == 1000
    assert sum(reference.series["price"]["counts"]) == 5000
    income = next(each for each in numbers(Rows(CONFIG, split, items, TEXT), reference.known.means))
    np.testing.assert_array_equal(income.clusters, split.user)
    assert "position" not in str(reference.series)


def test_nothing_private_is_kept(made):
    items = made[0]
    schema = CONFIG.schema
    hide = {"query", "country", "price"}
    hidden = [
        tuple(replace(each, private=True) if each.name in hide else each for each in side)
        for side in (schema.context, schema.candidate)
    ]
    config = replace(CONFIG, schema=Schema(*hidden))
    split, logits = pages(items, 0, 1000)
    reference = referred(config, items, split, logits, pages(items, 1, 3000)[0])
    kept = {*reference.series, *reference.known.tokens, *reference.known.top}
    assert not any(name.startswith(("context words", "context tokens", "country", "price")) for name in kept)
    assert {"income", "tags", "candidate words", "items", "click score"} <= kept and "context" not in kept
    assert not_watched(Sources(config.schema, config.data)) == ["country", "price", "text of the context"]
    assert not {"user_id", "users"} & set(str(reference.series).split())
    # Of the ids of users, and of vectors in a private column.
    ids = Categorical("country", column="user_id")
    data = replace(CONFIG.data, private=("image",))
    schema = replace(schema, context=(schema.context[0], ids, schema.context[2]))
    users = referred(replace(CONFIG, schema=schema, data=data), items, split, logits, pages(items, 1)[0])
    assert "country" not in users.series and "country" not in users.known.top and "country unknown" in users.series
    assert "income" in users.series and not users.known.means and "image length" not in users.series
    titles = replace(config, schema=replace(config.schema, candidate=(Text("title", private=True),)))
    own = referred(titles, Items(items.tokens), split, logits, pages(items, 1)[0])
    assert not len(own.known.items) and "items" not in own.series


def test_items_are_a_lot_by_hash_where_they_are_many():
    items = shop(3, 20_000)
    train = pages(items, 5, 8000)[0]
    known = Known.of(CONFIG, train, items, TEXT)
    assert len(known.items) == 8192 and known.limit < 2**64 - 1
    split, logits = pages(items, 6, 2000)
    (new,) = [
        each for each in observe(Rows(CONFIG, split, items, TEXT), known, CLICK, logits) if each.name == "items new"
    ]
    exact = ~np.isin(split.item, train.item)
    assert len(new.flags) < len(split.item)
    assert new.flags.mean() == pytest.approx(exact.mean(), abs=4 * np.sqrt(exact.mean() / len(new.flags)))


def likelihood(logits, labels) -> tuple[float, float]:
    """Offset and slope of the logistic regression of labels on logits."""

    def loss(ab):
        x = ab[0] + ab[1] * logits
        return np.mean(np.logaddexp(0, x) - labels * x)

    return tuple(scipy.optimize.minimize(loss, (0.0, 1.0), method="BFGS").x)


def test_calibration_and_slope_are_those_of_a_regression_with_their_errors():
    items, scores = shop(), []
    for seed in range(60):
        split, logits = pages(items, 200 + seed)
        found = {each.name: each for each in truth(Rows(CONFIG, split, items, TEXT), CLICK, logits)}
        assert [*found] == ["click calibration", "click slope", "click auc"]
        mean, slope = found["click calibration"], found["click slope"]
        assert mean.value == pytest.approx((split.labels[:, 0] - sigmoid(logits[:, 0])).mean(), abs=1e-6)
        # One step from 1 is within a quarter of an error of the maximum of the likelihood, where that is near.
        assert slope.value == pytest.approx(likelihood(logits[:, 0], split.labels[:, 0])[1], abs=0.25 * slope.error)
        scores.append([mean.value / mean.error, (slope.value - 1) / slope.error])
    # Standard scores of 60 draws: mean 0 +- 0.13, deviation 1 +- 0.09; four of these.
    assert np.all(np.abs(np.mean(scores, axis=0)) < 0.52)
    assert np.all(np.abs(np.std(scores, axis=0) - 1) < 0.37)


@pytest.mark.parametrize(
    ("task", "outputs", "expected"),
    [
        (Task(kind="regression"), Outputs("click", "regression"), ["click calibration", "click slope", "click rmse"]),
        (Task(kind="listwise"), Outputs("click", "listwise"), ["click ndcg@10"]),
        (
            Task(kind="multiclass"),
            Outputs("click", "multiclass", 3, ("a", "b", "c")),
            ["click calibration", "click slope", "click accuracy"],
        ),
    ],
)
def test_every_kind_of_task_has_its_truths(task, outputs, expected):
    items = shop()
    split, logits = pages(items, 1)
    config = replace(CONFIG, schema=replace(CONFIG.schema, tasks=(task,)))
    logits = np.random.default_rng(0).normal(size=(len(logits), outputs.count))
    found = list(truth(Rows(config, split, items, TEXT), (outputs,), logits))
    assert [each.name for each in found] == expected
    assert all(isinstance(each, Mean) and each.error > 0 for each in found)
    nothing = replace(split, weights=np.zeros_like(split.weights))
    assert list(truth(Rows(config, nothing, items, TEXT), (outputs,), logits)) == []


def test_what_rows_lack_is_counted_of_all_rows():
    manifest = {
        "rows": {"read": 200, "left_out": {"bad row": 10}},
        "missing": {"income": {"rows": 50}},
        "unknown_keys": {},
    }
    found = lacking(CONFIG, manifest)
    assert found["rows that cannot be read"] == 0.05 and found["country missing"] == 0
    assert "income missing" in found and found["income missing"] == 0.25 and "position missing" not in found
