"""The simulated shop: reproducible files whose stated probabilities are the true ones."""

import glob
import itertools
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chi2_contingency
from sklearn.metrics import roc_auc_score

from srsjax.config import Shop
from srsjax.data import shop as world
from srsjax.data.shop import write_shop
from srsjax.errors import InputError

SMALL = {"impressions": 200, "users": 50, "items": 400}


def read_log(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(glob.glob(str(folder / "log-*.parquet")))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The shop with its default sizes."""
    folder = tmp_path_factory.mktemp("shop")
    write_shop(Shop(folder=str(folder)))
    return folder


@pytest.fixture(scope="module")
def log(folder) -> dict[str, np.ndarray]:
    table = read_log(folder)
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.fixture(scope="module")
def items(folder) -> dict[str, dict]:
    return {item["item_id"]: item for item in pq.read_table(folder / "items.parquet").to_pylist()}


def test_files_are_ordinary_logs_and_catalogues(folder):
    log = read_log(folder)
    assert log.num_rows == 128_000
    assert len(list(folder.glob("log-*.parquet"))) > 1
    assert log.schema.field("history").type == pa.list_(pa.string())
    assert set(log["click"].to_pylist()) == {0, 1}
    users, items = pq.read_table(folder / "users.parquet"), pq.read_table(folder / "items.parquet")
    assert {"user_id", "language", "country"} == set(users.column_names)
    assert {"item_id", "title", "description", "category", "brand", "price"} <= set(items.column_names)
    assert set(log["user_id"].unique().to_pylist()) <= set(users["user_id"].to_pylist())
    assert set(log["item_id"].unique().to_pylist()) <= set(items["item_id"].to_pylist())
    assert np.all(np.diff(log["time"].to_numpy()) >= 0)


def test_same_parameters_give_the_same_shop_and_another_seed_another(tmp_path):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        paths = write_shop(Shop(folder=str(tmp_path / name), seed=seed, **SMALL))
        assert set(paths) == {"users", "items", "log"}
    assert read_log(tmp_path / "one").equals(read_log(tmp_path / "same"))
    assert not read_log(tmp_path / "one").equals(read_log(tmp_path / "other"))
    for name in ("users.parquet", "items.parquet"):
        one, same, other = (pq.read_table(tmp_path / run / name) for run in ("one", "same", "other"))
        assert one.equals(same)
        assert not one.equals(other)


def test_files_are_written_once_for_the_same_parameters(tmp_path):
    def states():
        return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.iterdir()}

    shop = Shop(folder=str(tmp_path), **SMALL)
    write_shop(shop)
    before = states()
    write_shop(shop)
    assert states() == before
    write_shop(Shop(folder=str(tmp_path), **SMALL | {"impressions": 100}))
    assert read_log(tmp_path).num_rows == 800
    (tmp_path / "shop.json").write_text("{}")  # as it is until the files are whole
    write_shop(shop)
    assert read_log(tmp_path).num_rows == 1600


def test_files_that_are_not_of_a_shop_are_left_alone(tmp_path):
    (tmp_path / "log-0.parquet").write_bytes(b"mine")
    with pytest.raises(InputError, match="not of a simulated shop"):
        write_shop(Shop(folder=str(tmp_path), **SMALL))
    assert (tmp_path / "log-0.parquet").read_bytes() == b"mine"


def test_a_page_holds_distinct_items_on_all_positions(log):
    pages = log["item_id"].reshape(-1, 8)
    assert all(len(set(page)) == 8 for page in pages)
    assert len(set(log["request_id"])) == len(pages)
    np.testing.assert_array_equal(log["position"].reshape(-1, 8), np.tile(np.arange(1, 9), (len(pages), 1)))


def within(successes: float, expected: float, variance: float) -> bool:
    """Clicks less their probabilities sum to a martingale of at most binomial variance, so the sum is near normal;
    4 standard deviations are exceeded once in 16,000 such checks."""
    return abs(successes - expected) < 4 * np.sqrt(variance)


def test_clicks_come_as_often_as_the_probabilities_say(log):
    click, probability = log["click"], log["click_probability"]
    bins = np.digitize(probability, np.quantile(probability, np.arange(0.05, 1, 0.05)))
    for number in range(20):
        inside = bins == number
        p = probability[inside]
        assert within(click[inside].sum(), p.sum(), (p * (1 - p)).sum())


def test_clicks_fall_with_the_position_as_the_formula_says(log):
    examined = np.arange(1.0, 9.0) ** -world.POSITION_DECAY
    for position in range(1, 9):
        here = log["position"] == position
        p = log["click_probability"][here] * examined[position - 1] / examined.mean()
        assert within(log["click"][here].sum(), p.sum(), (p * (1 - p)).sum())


def test_positions_are_independent_of_the_items(log):
    _, item = np.unique(log["item_id"], return_inverse=True)
    attraction = np.digitize(log["click_probability"], np.quantile(log["click_probability"], np.arange(0.1, 1, 0.1)))
    for property_ in (item, attraction):
        table = np.zeros((property_.max() + 1, 8))
        np.add.at(table, (property_, log["position"] - 1), 1)
        assert chi2_contingency(table).pvalue > 1e-3


def test_history_holds_the_last_clicks_newest_first(log):
    seen: dict[str, list[str]] = {}
    for start in range(0, len(log["click"]), 8):
        page = slice(start, start + 8)
        user, history = log["user_id"][start], list(log["history"][start])
        assert all(list(other) == history for other in log["history"][page])
        assert seen.setdefault(user, history) == history
        clicked = log["item_id"][page][log["click"][page] == 1]
        seen[user] = [*clicked[::-1], *history][: len(history)]


def test_every_user_reads_and_sees_one_language(folder, log, items):
    language = {user["user_id"]: user["language"] for user in pq.read_table(folder / "users.parquet").to_pylist()}
    chinese = re.compile(r"[\u4e00-\u9fff]")
    for user, item, query, history in zip(log["user_id"], log["item_id"], log["query"], log["history"], strict=True):
        expected = language[user] == "zh"
        assert bool(chinese.search(query)) == expected
        assert all((items[key]["language"] == "zh") == expected for key in (item, *history))
    for item in items.values():
        for text in (item["title"], item["description"]):
            assert bool(chinese.search(text)) == (item["language"] == "zh")
    shares = np.mean([value == "zh" for value in language.values()])
    assert 0.2 < shares < 0.3


# ---------------------------------------------------------------------------------------------- reading the texts


def find(text: str, words: list[tuple[str, ...]]) -> int | None:
    """The number of the words of which one stands in the text."""
    found = [
        number for number, names in enumerate(words) if any(re.search(rf"(?<![a-z]){n}(?![a-z])", text) for n in names)
    ]
    assert len(found) <= 1
    return found[0] if found else None


NOUNS = [(*english, *chinese) for english, chinese, _ in world.CATEGORIES]
PROPERTIES = (world.COLOURS, list(world.MATERIALS.items()), world.STYLES)


def read_item(item: dict) -> dict:
    title, description = item["title"], item["description"].lower()
    makes, wears = ([row[:2] for row in table] for table in (world.MAKES, world.WEARS))
    effects = (
        world.BRANDS[find(title, [row[:1] for row in world.BRANDS])][-1],
        world.MAKES[find(description, makes)][-1],
        world.WEARS[find(description, wears)][-1],
    )
    return {
        "category": find(title, NOUNS),
        "properties": [find(f"{title} {description}", words) for words in PROPERTIES],
        "brand": title.split()[0],
        "appeal": world.APPEAL * sum(effects),
    }


def read_match(query: str, item: dict) -> float:
    category = find(query, NOUNS)
    if category is None:
        return world.CATEGORY * world.NEEDS[find(query, [need[:2] for need in world.NEEDS])][2][item["category"]]
    if category != item["category"]:
        return -world.CATEGORY
    asked = [find(query, words) for words in PROPERTIES]
    has = [want == held for want, held in zip(asked, item["properties"], strict=True) if want is not None]
    return world.CATEGORY + (world.ATTRIBUTE * (has[0] - 0.25) if has else 0.0)


def test_the_stated_probability_follows_from_the_texts_alone(log, items):
    read = {key: read_item(item) for key, item in items.items()}
    for row in np.random.default_rng(0).choice(len(log["click"]), 2000, replace=False):
        item, history = read[log["item_id"][row]], [read[key] for key in log["history"][row]]
        taste = np.mean(
            [
                world.STYLE * (past["properties"][2] == item["properties"][2])
                + world.BRAND * (past["brand"] == item["brand"])
                + world.KIND * (past["category"] == item["category"])
                for past in history
            ]
        )
        logit = world.BASE + item["appeal"] + read_match(log["query"][row], item) + taste
        examined = np.mean([position**-world.POSITION_DECAY for position in range(1, 9)])
        assert log["click_probability"][row] == pytest.approx(examined / (1 + np.exp(-logit)), abs=1e-12)


def test_words_of_different_meaning_differ():
    words = [*itertools.chain(*NOUNS), *itertools.chain(*(itertools.chain(*pairs) for pairs in PROPERTIES))]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("seed", [0, 1])
def test_item_popularity_explains_a_part_and_the_texts_much_more(seed, tmp_path):
    write_shop(Shop(folder=str(tmp_path), seed=seed))
    log = read_log(tmp_path)
    click, probability = log["click"].to_numpy(), log["click_probability"].to_numpy()
    _, item = np.unique(log["item_id"].to_numpy(), return_inverse=True)
    train = np.arange(len(click)) < 0.8 * len(click)  # the log is in order of time
    shown, clicked = (np.bincount(item[train], weights, item.max() + 1) for weights in (None, click[train]))
    rate = (clicked + 20 * click[train].mean()) / (shown + 20)
    popularity = roc_auc_score(click[~train], rate[item[~train]])
    optimum = roc_auc_score(click[~train], probability[~train])
    assert 0.60 < popularity < 0.67
    assert 0.80 < optimum < 0.85


@pytest.mark.parametrize(("field", "value"), [("impressions", 0), ("items", 30), ("users", 0), ("page", 0)])
def test_sizes_that_make_no_shop_are_refused(field, value, tmp_path):
    with pytest.raises(InputError, match=f"data.shop.{field}: found {value}, expected at least"):
        write_shop(Shop(folder=str(tmp_path), **{field: value}))
    assert not list(tmp_path.iterdir())
