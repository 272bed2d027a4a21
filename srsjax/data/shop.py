"""The simulated shop: queries, users, items and clicks whose true probabilities are known.

`write_shop` writes files like a user's own logs, so that the default run exercises the real path: `users.parquet`,
`items.parquet` and `log-*.parquet` with one row per candidate. Only the true probability of a click is added:
`click_probability`.

The shop sells in English and Chinese; each user and each item has one language, and a user sees items in it. An item
has a category, style, colour, material and brand, and two adjectives on how it is made and how it wears; its title and
description name them all. A query asks for a category ("jacket"), for one with an attribute ("red jacket") or for a
need ("gift for mum"), which several categories serve more or less; queries also use another name of the category than
titles do ("coat"). Some categories are larger and asked for more often. Users have a taste (a category, a style, a
brand) that fills their history before the log begins; afterwards the history holds the items they clicked last.

A page shows `Shop.page` distinct items; about half are drawn from what the query asks for and the rest from the whole
shop, well exposed items more often. They are on the page in random order. Candidate i at position k of a page with
query q and history h is clicked with the probability of a position-based model (Craswell et al. 2008, "An Experimental
Comparison of Click Position-Bias Models"):

    P(click | q, h, i, k) = e_k a(q, h, i)                e_k = k ** -POSITION_DECAY
    a(q, h, i) = sigmoid(BASE + appeal(i) + match(q, i) + taste(h, i))
    appeal(i)  = APPEAL (reputation of its brand + effects of its two adjectives)
    match(q, i) = CATEGORY affinity(q, category of i) + ATTRIBUTE (has(i, attribute of q) - 1/4)
    taste(h, i) = mean over items j of h: STYLE [same style] + BRAND [same brand] + KIND [same category]

affinity is 1 for the category asked for, -1 for others, and for needs as in `NEEDS`; the attribute term is 0 for
queries without one and for items of another category than that asked for.

`click_probability` is mean_k(e_k) a(q, h, i). It is the Bayes optimum for a model that reads the query, the titles of
the history and the item's title and description but not the position: a depends on nothing that those texts do not hold
(the taste that filled the history acts through the history alone), and the order on the page is uniform and
independent of everything else, so given the texts every position is equally likely and the mean over them is exact.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srsjax.config import Shop
from srsjax.data.shop_signals import INCOMES, make_signals
from srsjax.errors import InputError
from srsjax.files import atomic_file, write_json

VERSION = 3  # of the simulation: files of another version are rewritten

LANGUAGES = ("en", "zh")
CHINESE = 0.25  # share of users and of items
COUNTRIES = (("GB", "US", "IE"), ("CN", "SG", "TW"))  # of each language
SYNONYM = 0.2  # share of queries that use the other name
HISTORY = 2  # newest items that are kept
LOG_FILES = 4
START, DAYS = 1_735_689_600, 30  # the log begins on 1 January 2025, UTC

# Two names of each category by language, of which titles use the first, and its materials. Largest category first.
CATEGORIES = (
    (("dress", "gown"), ("裙子", "礼服"), ("linen", "silk", "cotton", "wool")),
    (("shirt", "blouse"), ("衬衫", "上衣"), ("linen", "silk", "cotton", "wool")),
    (("jacket", "coat"), ("外套", "夹克"), ("linen", "leather", "cotton", "wool")),
    (("shoes", "trainers"), ("鞋子", "球鞋"), ("canvas", "leather", "cotton", "wool")),
    (("bag", "backpack"), ("背包", "书包"), ("canvas", "leather", "cotton", "linen")),
    (("scarf", "shawl"), ("围巾", "披肩"), ("linen", "silk", "cotton", "wool")),
    (("necklace", "pendant"), ("项链", "吊坠"), ("silver", "gold", "steel", "silk")),
    (("watch", "timepiece"), ("手表", "腕表"), ("silver", "gold", "steel", "leather")),
)
CATEGORY_SHARES = 1 / np.arange(1, len(CATEGORIES) + 1)
CATEGORY_SHARES /= CATEGORY_SHARES.sum()
MATERIALS = {"linen": "亚麻", "silk": "丝绸", "cotton": "棉布", "wool": "羊毛", "leather": "皮革", "canvas": "帆布"}
MATERIALS |= {"silver": "银", "gold": "金", "steel": "钢"}
COLOURS = (("red", "红色"), ("blue", "蓝色"), ("green", "绿色"), ("black", "黑色"))
STYLES = (("classic", "经典"), ("sporty", "运动"), ("elegant", "优雅"), ("vintage", "复古"))
# Reputation of each brand; brands are written alike in both languages.
BRANDS = (("Norvik", 0.8), ("Lumo", 0.4), ("Tarn", 0.0), ("Velda", -0.4), ("Quib", -0.8))
# How it is made and how it wears, with the effect on clicks.
MAKES = (
    ("handmade", "手工", 0.8),
    ("neat", "精致", 0.4),
    ("plain", "普通", 0.0),
    ("thin", "单薄", -0.4),
    ("rough", "粗糙", -0.8),
)
WEARS = (
    ("durable", "耐穿", 0.8),
    ("comfortable", "舒适", 0.4),
    ("washable", "可洗", 0.0),
    ("stiff", "偏硬", -0.4),
    ("fades quickly", "易褪色", -0.8),
)
# What people need, and how well each category (in the order above) serves it.
NEEDS = (
    ("gift for mum", "送妈妈", (0, -1, -1, -1, 0, 1, 1, -1)),
    ("gift for dad", "送爸爸", (-1, 1, 0, -1, -1, -1, -1, 1)),
    ("hiking", "徒步", (-1, -1, 1, 1, 1, -1, -1, -1)),
    ("party", "派对", (1, 0, -1, 0, -1, -1, 1, -1)),
)

# The coefficients of the formula above.
BASE = -1.8
APPEAL = 1.2
CATEGORY, ATTRIBUTE = 2.4, 2.0
STYLE, BRAND, KIND = 2.5, 1.0, 0.5
POSITION_DECAY = 0.25
QUERY_SHARES = (0.4, 0.35, 0.25)  # category alone, category with an attribute, need
ASKED_FOR = 0.5  # share of the page drawn from what the query asks for
LOYALTY = 3.0  # how strongly a taste draws the items of the first history


@dataclass(frozen=True)
class _Items:
    """The catalogue, one array a property, [V]."""

    language: np.ndarray
    category: np.ndarray
    material: np.ndarray  # within the category's materials
    colour: np.ndarray
    style: np.ndarray
    brand: np.ndarray
    make: np.ndarray
    wear: np.ndarray
    exposure: np.ndarray  # relative chance of being shown
    price: np.ndarray

    @property
    def appeal(self) -> np.ndarray:
        tables = (BRANDS, self.brand), (MAKES, self.make), (WEARS, self.wear)
        return APPEAL * sum(np.array([row[-1] for row in table])[index] for table, index in tables)


@dataclass(frozen=True)
class _Pages:
    """Queries of the result pages in order of time, one array a property, [N]."""

    user: np.ndarray
    time: np.ndarray
    want: np.ndarray  # category, or number of categories + need
    attribute: np.ndarray  # 0 none, 1 colour, 2 material, 3 style
    value: np.ndarray  # value of that attribute
    name: np.ndarray  # which of the category's names the query uses


def write_shop(shop: Shop) -> dict[str, Path]:
    """Writes the shop's Parquet files under `shop.folder`, unless they are there already with the same parameters.

    Returns the paths `users`, `items` and `log` (the first as files, the last as the glob `log-*.parquet`).
    Raises InputError if the sizes make no valid shop.
    """
    _check(shop)
    folder = Path(shop.folder)
    paths = {"users": folder / "users.parquet", "items": folder / "items.parquet", "log": folder / "log-*.parquet"}
    parameters = {"version": VERSION} | {
        key: value for key, value in dataclasses.asdict(shop).items() if key != "folder" and (key != "signals" or value)
    }
    done = folder / "shop.json"
    if done.exists() and json.loads(done.read_text()) == parameters:
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    if not done.exists() and any(folder.glob("*.parquet")):
        raise InputError(f"{folder}: holds files that are not of a simulated shop; name another data.shop.folder")
    done.write_text("{}")  # ours, and not complete yet
    tables = _simulate(shop)
    for old in folder.glob("log-*.parquet"):
        old.unlink()
    for name, table in tables.items():
        with atomic_file(folder / f"{name}.parquet") as partial:
            pq.write_table(table, partial)
    write_json(done, parameters)
    return paths


def _check(shop: Shop) -> None:
    for name, least in {"impressions": 1, "page": 1, "users": 1, "items": 50 * shop.page}.items():
        if getattr(shop, name) < least:
            raise InputError(f"data.shop.{name}: found {getattr(shop, name)}, expected at least {least}")


def _simulate(shop: Shop) -> dict[str, pa.Table]:
    rng = np.random.Generator(np.random.PCG64(shop.seed))
    items = _make_items(shop, rng)
    language = (rng.random(shop.users) < CHINESE).astype(np.int64)
    country = rng.integers(len(COUNTRIES[0]), size=shop.users)
    pages = _make_pages(shop, rng)
    shown = _fill_pages(shop, rng, items, pages, language)
    history = _first_histories(rng, items, language)
    own = np.random.Generator(np.random.PCG64([shop.seed, 1]))  # the rest is that of a shop without signals
    signals = make_signals(own, shop.users, items.price) if shop.signals else None
    more = signals.attraction(pages.user, shown) if signals else 0.0
    histories, click, probability = _click(rng, items, pages, shown, history, more)

    user_ids = _ids("u", shop.users)
    users = {
        "user_id": user_ids,
        "language": np.array(LANGUAGES)[language],
        "country": np.array(COUNTRIES)[language, country],
    }
    catalogue = _item_table(items)
    log = _log_table(items, pages, language, shown, histories, click, probability)
    if signals:
        users["income"] = np.array(INCOMES)[signals.income]
        catalogue = catalogue.append_column("image", signals.image_column())
        for name, column in signals.log_columns(pages.user, shown, click, probability, own).items():
            log = log.append_column(name, pa.array(column))
    tables = {"users": pa.table(users), "items": catalogue}
    ends = np.linspace(0, len(pages.user), LOG_FILES + 1).astype(int) * shop.page
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        tables[f"log-{number}"] = log.slice(start, end - start)
    return tables


# ---------------------------------------------------------------------------------------------- the world


def _make_items(shop: Shop, rng: np.random.Generator) -> _Items:
    def draw(table) -> np.ndarray:
        return rng.integers(len(table), size=shop.items)

    brand, make, wear = draw(BRANDS), draw(MAKES), draw(WEARS)
    language = (rng.random(shop.items) < CHINESE).astype(np.int64)
    category = rng.choice(len(CATEGORIES), size=shop.items, p=CATEGORY_SHARES)
    # So that every query finds something, the first items are one of each category in each language.
    first = np.arange(len(LANGUAGES) * len(CATEGORIES))
    language[first], category[first] = np.divmod(first, len(CATEGORIES))
    dear = 3.0 + 0.1 * category - 0.15 * (brand + make + wear)
    return _Items(
        language=language,
        category=category,
        material=draw(CATEGORIES[0][2]),
        colour=draw(COLOURS),
        style=draw(STYLES),
        brand=brand,
        make=make,
        wear=wear,
        exposure=rng.lognormal(0.0, 0.5, shop.items),
        price=np.round(np.exp(dear + rng.normal(1.0, 0.2, shop.items)), 2),
    )


def _make_pages(shop: Shop, rng: np.random.Generator) -> _Pages:
    n = shop.impressions
    kind = rng.choice(3, size=n, p=QUERY_SHARES)
    want = np.where(
        kind == 2, len(CATEGORIES) + rng.integers(len(NEEDS), size=n), rng.integers(len(CATEGORIES), size=n)
    )
    attribute = np.where(kind == 1, rng.integers(1, 4, size=n), 0)
    return _Pages(
        user=rng.integers(shop.users, size=n),
        time=START + np.sort(rng.integers(DAYS * 86400, size=n)),
        want=want,
        attribute=attribute,
        value=rng.integers(4, size=n),  # every attribute has four values
        name=(rng.random(n) < SYNONYM).astype(np.int64),
    )


def _affinity() -> np.ndarray:
    """How well each category serves each want, [categories + needs, categories]."""
    return np.concatenate([2.0 * np.eye(len(CATEGORIES)) - 1.0, np.array([need[-1] for need in NEEDS], float)])


def _fill_pages(shop: Shop, rng: np.random.Generator, items: _Items, pages: _Pages, language: np.ndarray) -> np.ndarray:
    """Distinct items of each page in random order, [N, page]."""
    shown = np.empty((len(pages.user), shop.page), np.int64)
    affinity = _affinity()
    for tongue in range(len(LANGUAGES)):
        listed = items.exposure * (items.language == tongue)
        for want in range(len(affinity)):
            rows = np.flatnonzero((language[pages.user] == tongue) & (pages.want == want))
            asked = listed * (affinity[want] > 0)[items.category]
            weights = ASKED_FOR * asked / asked.sum() + (1 - ASKED_FOR) * listed / listed.sum()
            shown[rows] = _draw_distinct(rng, weights, len(rows), shop.page)
    return rng.permuted(shown, axis=1)


def _draw_distinct(rng: np.random.Generator, weights: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Draws with these weights, redrawn where an earlier column of the row has the same value."""
    cumulative = np.cumsum(weights)
    drawn = np.full((rows, columns), -1)
    for column in range(columns):
        again = np.arange(rows)
        while len(again):
            drawn[again, column] = np.searchsorted(cumulative, rng.random(len(again)) * cumulative[-1], side="right")
            again = again[(drawn[again, :column] == drawn[again, column, None]).any(axis=1)]
    return drawn


def _first_histories(rng: np.random.Generator, items: _Items, language: np.ndarray) -> np.ndarray:
    """What each user clicked before the log begins, by taste, newest first, [U, HISTORY]."""
    users = len(language)
    tastes = {"category": CATEGORIES, "style": STYLES, "brand": BRANDS}
    weights = np.zeros((users, len(items.category)))
    for name, table in tastes.items():
        favourite = rng.integers(len(table), size=users)
        weights += LOYALTY * (favourite[:, None] == getattr(items, name))
    weights[language[:, None] != items.language] = -np.inf
    # The largest of weights + Gumbel noise are a draw without replacement in proportion to exp(weights).
    return np.argsort(-(weights + rng.gumbel(size=weights.shape)), axis=1)[:, :HISTORY]


# ---------------------------------------------------------------------------------------------- clicks


def _click(rng: np.random.Generator, items: _Items, pages: _Pages, shown: np.ndarray, history: np.ndarray, more):
    """Plays each user's pages in turn: histories seen [N, HISTORY], clicks [N, page], probabilities [N, page]; `more`
    is added inside of the sigmoid."""
    examined = np.arange(1.0, shown.shape[1] + 1) ** -POSITION_DECAY
    fixed = BASE + items.appeal[shown] + _match(items, pages, shown) + more
    histories = np.empty((len(pages.user), HISTORY), np.int64)
    click, attraction = np.empty(shown.shape, bool), np.empty(shown.shape)
    for rows in _rounds(pages.user):
        users = pages.user[rows]
        histories[rows] = history[users]
        attraction[rows] = 1 / (1 + np.exp(-fixed[rows] - _taste(items, history[users], shown[rows])))
        click[rows] = rng.random((len(rows), shown.shape[1])) < examined * attraction[rows]
        for position in range(shown.shape[1]):  # from the top down, so that the lowest click is the newest
            hit = click[rows, position]
            item = shown[rows[hit], position]
            history[users[hit]] = np.column_stack([item, history[users[hit], :-1]])
    return histories, click, examined.mean() * attraction


def _rounds(user: np.ndarray):
    """The first pages of all users, then their second pages, ...: within a round no user occurs twice."""
    order = np.argsort(user, kind="stable")
    first = np.searchsorted(user[order], user[order])
    turn = np.empty(len(user), np.int64)
    turn[order] = np.arange(len(user)) - first
    by_turn = np.argsort(turn, kind="stable")
    return np.split(by_turn, np.cumsum(np.bincount(turn))[:-1])


def _match(items: _Items, pages: _Pages, shown: np.ndarray) -> np.ndarray:
    category = items.category[shown]
    properties = np.stack([items.colour[shown], items.material[shown], items.style[shown]])
    asked = np.take_along_axis(properties, np.maximum(pages.attribute - 1, 0)[None, :, None], axis=0)[0]
    relevant = (pages.attribute[:, None] > 0) & (category == pages.want[:, None])
    has = asked == pages.value[:, None]
    return CATEGORY * _affinity()[pages.want[:, None], category] + ATTRIBUTE * relevant * (has - 0.25)


def _taste(items: _Items, history: np.ndarray, shown: np.ndarray) -> np.ndarray:
    def same(name: str) -> np.ndarray:
        values = getattr(items, name)
        return (values[history][:, None, :] == values[shown][:, :, None]).mean(axis=2)

    return STYLE * same("style") + BRAND * same("brand") + KIND * same("category")


# ---------------------------------------------------------------------------------------------- tables


def _ids(letter: str, count: int) -> np.ndarray:
    return np.array([f"{letter}{number:06d}" for number in range(count)])


def _item_table(items: _Items) -> pa.Table:
    rows = zip(*(getattr(items, field.name) for field in dataclasses.fields(items)), strict=True)
    titles, descriptions = zip(*(_describe(*row[:8]) for row in rows), strict=True)
    return pa.table(
        {
            "item_id": _ids("i", len(titles)),
            "title": titles,
            "description": descriptions,
            "category": [CATEGORIES[category][0][0] for category in items.category],
            "brand": [BRANDS[brand][0] for brand in items.brand],
            "language": np.array(LANGUAGES)[items.language],
            "price": items.price,
        }
    )


def _material(category: int, material: int, language: int) -> str:
    word = CATEGORIES[category][2][material]
    return MATERIALS[word] if language else word


def _describe(language, category, material, colour, style, brand, make, wear) -> tuple[str, str]:
    noun = CATEGORIES[category][language][0]
    stuff = _material(category, material, language)
    if language:
        description = f"{MAKES[make][1]}{stuff}{noun}，{WEARS[wear][1]}。"
    else:
        description = f"{MAKES[make][0].capitalize()} {stuff} {noun}, {WEARS[wear][0]}."
    return f"{BRANDS[brand][0]} {STYLES[style][language]} {COLOURS[colour][language]} {noun}", description


def _query(language: int, want: int, attribute: int, value: int, name: int) -> str:
    if want >= len(CATEGORIES):
        english, chinese, _ = NEEDS[want - len(CATEGORIES)]
        return chinese if language else english
    noun = CATEGORIES[want][language][name]
    if attribute == 0:
        return noun
    adjective = (COLOURS[value][language], _material(want, value, language), STYLES[value][language])[attribute - 1]
    return f"{adjective} {noun}"


def _log_table(items, pages, language, shown, histories, click, probability) -> pa.Table:
    n, page = shown.shape
    item_ids = _ids("i", len(items.category))
    tongue = language[pages.user]
    queries = [_query(*row) for row in zip(tongue, pages.want, pages.attribute, pages.value, pages.name, strict=True)]
    newest = pa.array(item_ids).take(pa.array(np.repeat(histories, page, axis=0).ravel()))
    offsets = pa.array(np.arange(0, n * page * HISTORY + 1, HISTORY, dtype=np.int32))
    return pa.table(
        {
            "request_id": np.repeat(_ids("r", n), page),
            "user_id": np.repeat(_ids("u", len(language))[pages.user], page),
            "item_id": item_ids[shown].ravel(),
            "query": np.repeat(np.array(queries), page),
            "position": np.tile(np.arange(1, page + 1, dtype=np.int32), n),
            "time": np.repeat(pages.time, page),
            "history": pa.ListArray.from_arrays(offsets, newest),
            "click": click.ravel().astype(np.int8),
            "click_probability": probability.ravel(),
        }
    )
