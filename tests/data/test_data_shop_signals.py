"""A shop whose clicks depend on more than texts: what it says is true, and the shop without signals is as it was."""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srsjax.config import Shop
from srsjax.data import shop_signals as world
from srsjax.data.shop import write_shop

SIZES = {"impressions": 12000, "users": 600, "items": 800}


def read(folder: Path) -> dict[str, pa.Table]:
    log = pa.concat_tables([pq.read_table(path) for path in sorted(glob.glob(str(folder / "log-*.parquet")))])
    return {"log": log} | {name: pq.read_table(folder / f"{name}.parquet") for name in ("items", "users")}


@pytest.fixture(scope="module")
def shops(tmp_path_factory) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
    """Without signals and with them."""
    folder = tmp_path_factory.mktemp("signals")
    for name in ("plain", "signals"):
        write_shop(Shop(str(folder / name), signals=name == "signals", **SIZES))
    return read(folder / "plain"), read(folder / "signals")


def within(successes: float, p: np.ndarray) -> bool:
    """Binomial counts within four standard deviations, exceeded once in 16,000 checks."""
    return abs(successes - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())


def test_the_pages_are_those_of_the_shop_without_signals(shops):
    plain, signals = shops
    for column in ("request_id", "user_id", "item_id", "query", "time", "position"):
        assert plain["log"][column].equals(signals["log"][column])
    assert not plain["log"]["click_probability"].equals(signals["log"]["click_probability"])
    assert set(signals["items"].column_names) - set(plain["items"].column_names) == {"image"}
    assert set(signals["users"].column_names) - set(plain["users"].column_names) == {"income"}
    assert set(signals["log"].column_names) - set(plain["log"].column_names) == {"buy", "buy_probability", "rating"}


@pytest.mark.parametrize("label", ["click", "buy"])
def test_clicks_and_purchases_come_as_often_as_the_probabilities_say(shops, label):
    log = shops[1]["log"]
    happened, p = (log[name].to_numpy() for name in (label, f"{label}_probability"))
    bins = np.digitize(p, np.quantile(p, np.arange(0.1, 1, 0.1)))
    for number in range(10):
        assert within(happened[bins == number].sum(), p[bins == number])


def test_purchases_follow_clicks_and_ratings_purchases(shops):
    log = shops[1]["log"]
    click, buy = log["click"].to_numpy(), log["buy"].to_numpy()
    assert (buy <= click).all() and 0.2 < buy.sum() / click.sum() < 0.7
    rated = np.asarray(log["rating"].is_valid())
    np.testing.assert_array_equal(rated, buy == 1)
    assert set(log["rating"].drop_null().to_pylist()) == {1, 2, 3, 4, 5}


def test_the_attraction_is_the_formula(shops):
    """The log-odds of both shops differ by what the signals add, where histories are still the same."""
    plain, signals = shops
    log, items, users = signals["log"], signals["items"], signals["users"]
    item = np.searchsorted(items["item_id"].to_numpy(), log["item_id"].to_numpy())
    user = np.searchsorted(users["user_id"].to_numpy(), log["user_id"].to_numpy())
    first = np.array(plain["log"]["history"].to_pylist()) == np.array(log["history"].to_pylist())
    same = first.all(1)
    examined = (np.arange(1.0, 9.0) ** -0.25).mean()
    odds = [np.log(p / (1 - p)) for p in (t["log"]["click_probability"].to_numpy() / examined for t in shops)]
    added = (odds[1] - odds[0])[same]
    price = np.log(items["price"].to_numpy())
    price = (price - price.mean()) / price.std()
    thrift = world.THRIFT[[world.INCOMES.index(name) for name in users["income"].to_pylist()]]
    image = np.stack(items["image"].to_numpy())
    one_hot = np.eye(len(items))[item[same]]
    cost = thrift[user[same]] * price[item[same]]
    # Every item has one number of its own (quality and looks), and the price counts by income.
    rest = added + world.PRICE * cost
    own = one_hot.T @ rest / np.maximum(one_hot.sum(0), 1)
    np.testing.assert_allclose(rest, own[item[same]], atol=1e-9)
    seen = one_hot.sum(0) > 0
    slope, *_ = np.linalg.lstsq(image[seen], own[seen], rcond=None)
    assert np.linalg.norm(slope) == pytest.approx(world.LOOK, abs=0.15)  # of 800 items with quality as noise
