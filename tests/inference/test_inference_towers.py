"""Runs of towers: vectors, retrieval and recommendation, against `predict` of every pair."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from compilations import compilations

from srsjax.config import Mesh
from srsjax.errors import InputError
from srsjax.inference.rerank import DPP, MMR, EpsilonGreedy, PlackettLuce
from srsjax.inference.scorer import Scorer
from srsjax.metrics.recalibration import Affine
from srsjax.runs.calibration import Calibration, TaskCalibration

SMALL = (
    *("--data.shop.impressions", 300, "--data.shop.items", 400, "--data.shop.users", 30),
    *("--model.hidden_size", 32, "--model.intermediate_size", 64, "--model.num_layers", 1),
    *("--batch.rows", 8, "--batch.tokens", 160, "--max_steps", 10),
)
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is most of the time of these commands
RUNS = {
    "cosine": (),
    "bilinear": ("--model.product", "bilinear", "--model.readout", "pooled", "--model.combine", "attention"),
    "cross": ("--model.interaction", "cross", "--model.readout", "pooled"),
}
IDS = """
from dataclasses import replace
from srsjax.cli import read_config
from srsjax.config import Categorical, Numeric

def get_config():
    base = read_config("two_tower.py")
    item = (Categorical("item", column="items.item_id"), Numeric("price", column="items.price", scale="log"))
    schema = replace(base.schema, context=(Categorical("user", column="user_id"),), candidate=item)
    return replace(base, schema=schema, model=replace(base.model, combine="concat"))
"""
CONTEXTS = [
    {"query": "red dress", "history": []},
    {"query": "watch", "history": ["i000003", "i000007"]},
    {"query": "gift for mum", "history": ["i000012"]},
]


@pytest.fixture(scope="module")
def folder(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    for name, options in RUNS.items():
        done = command(
            "train", "--config", "two_tower.py", *SMALL, *options, "--run_dir", f"runs/{name}", cwd=folder, **QUICK
        )
        assert done.returncode == 0, done.stderr
    (folder / "ids.py").write_text(IDS)
    done = command("train", "--config", "ids.py", *SMALL, cwd=folder, **QUICK)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def items(folder):
    return pq.read_table(folder / "data/shop/items.parquet").to_pylist()


@pytest.fixture(scope="module")
def scorers(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield {name: Scorer.load(f"runs/{name}", mesh=Mesh(8)) for name in RUNS}


def table(scorer, items, **options):
    """Scores of `predict` [contexts, items]."""
    pairs = [(context, {"item_id": item["item_id"]}) for context in CONTEXTS for item in items]
    return np.asarray(scorer.predict(pairs, **options)).reshape(len(CONTEXTS), len(items))


def ids(entries):
    return [entry["corpus_id"] for entry in entries]


@pytest.mark.parametrize("name", ["cosine", "bilinear"])
def test_8_bit_weights_retrieve_what_they_predict(scorers, folder, items, monkeypatch, tmp_path, name):
    monkeypatch.chdir(folder)
    small = Scorer.load(f"runs/{name}", mesh=Mesh(8), quantize="int8")
    made = small.item_vectors(tmp_path / "vectors")
    assert made.computed == len(items) and small.item_vectors(tmp_path / "vectors").computed == 0
    scores = table(small, items)
    for found, own in zip(small.retrieve(CONTEXTS, 7), scores, strict=True):
        # Of each token alone, so that only the order of float32 sums differs.
        np.testing.assert_allclose([e["score"] for e in found], np.sort(own)[::-1][:7], atol=1e-5)
        np.testing.assert_allclose([e["score"] for e in found], own[ids(found)], atol=1e-5)
    assert 1e-5 < np.abs(made.vectors - scorers[name].item_vectors().vectors).max() < 0.1
    with pytest.raises(InputError, match="found item vectors of model"):
        scorers[name].item_vectors(tmp_path / "vectors")


@pytest.mark.parametrize("name", ["cosine", "bilinear"])
def test_the_product_of_both_vectors_is_the_logit(scorers, items, name):
    scorer = scorers[name]
    made = scorer.item_vectors()
    assert made.vectors.shape == (len(items), 32) and made.computed == len(items)
    logits = scorer.context_vectors(CONTEXTS).astype(np.float64) @ made.vectors.T.astype(np.float64)
    logits += scorer.output_bias()
    # Both are computed in float32 in the same order but for which tokens stand in a matrix product together.
    np.testing.assert_allclose(logits, table(scorer, items, logits=True), atol=1e-5)
    assert np.ptp(logits) > 0.05  # not one number for all


@pytest.mark.parametrize("name", list(RUNS))
def test_recommendations_are_the_best_by_predict(scorers, items, name):
    scorer, scores = scorers[name], table(scorers[name], items)
    for context, found, own in zip(CONTEXTS, scorer.recommend(CONTEXTS, top_k=12), scores, strict=True):
        assert [entry["key"] for entry in found] == [items[row]["item_id"] for row in ids(found)]
        assert [entry["propensity"] for entry in found] == [1] * 12
        np.testing.assert_allclose([entry["score"] for entry in found], own[ids(found)], atol=1e-5)
        np.testing.assert_allclose([entry["score"] for entry in found], np.sort(own)[::-1][:12], atol=1e-5)
        single = scorer.recommend(context, top_k=12)
        np.testing.assert_allclose([e["score"] for e in single], [e["score"] for e in found], atol=1e-5)


def test_towers_of_ids_alone_retrieve_too(scorers, folder, items, monkeypatch):
    monkeypatch.chdir(folder)
    scorer, contexts = Scorer.load("runs/ids", mesh=Mesh(8)), [{"user_id": "u000001"}, {"user_id": "u000002"}]
    for context, found in zip(contexts, scorer.retrieve(contexts, 7), strict=True):
        scores = scorer.predict([(context, {"item_id": item["item_id"]}) for item in items])
        np.testing.assert_allclose([e["score"] for e in found], np.sort(scores)[::-1][:7], atol=1e-5)
        np.testing.assert_allclose([e["score"] for e in found], scores[ids(found)], atol=1e-5)


@pytest.mark.parametrize("slices", [{}, {3: Affine((1.0,), (0.3,)), 5: Affine((0.5,), (0.0,))}])
def test_what_is_retrieved_has_the_calibrated_scores(scorers, folder, items, monkeypatch, slices):
    """Maps of slices differ between items, so that the order of the vectors is not that of the scores."""
    monkeypatch.chdir(folder)
    scorer, context = Scorer.load("runs/ids", mesh=Mesh(8)), {"user_id": "u000001"}
    (task,) = (each.name for each in scorer.config.schema.tasks)
    own = TaskCalibration("platt", Affine((0.6,), (-1.0,)), slices)
    scorer.calibration = Calibration(0, {task: own}, "item" if slices else "")
    (found,) = scorer.retrieve([context], 7)
    scores = scorer.predict([(context, {"item_id": item["item_id"]}) for item in items])
    np.testing.assert_allclose([e["score"] for e in found], scores[ids(found)], atol=1e-5)
    assert [e["score"] for e in found] == sorted((e["score"] for e in found), reverse=True)


def test_threads_retrieve_what_they_would_alone(scorers, folder, monkeypatch):
    monkeypatch.chdir(folder)
    contexts = [{"query": context["query"] + " red" * (n % 3), "history": []} for n in range(8) for context in CONTEXTS]
    options = {"top_k": 5, "max_per": {"category": 2}, "diversity": MMR(0.5)}
    alone = [scorers["cosine"].recommend(context, **options) for context in contexts]
    fresh = Scorer.load("runs/cosine", mesh=Mesh(8))  # the vectors are computed by the first thread that asks
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda context: fresh.recommend(context, **options), contexts))
    assert together == alone


def test_retrieval_compiles_nothing_after_warm_up(scorers):
    scorer = scorers["cosine"]
    scorer.item_vectors()
    scorer.warm_up()
    context = {"query": "blue coat", "history": ["i000001"]}
    with compilations() as compiled:
        found = scorer.retrieve([context] * 3, 5)
        for count, top_k in ((1, 1), (1, 100), (100, 7)):
            scorer.recommend([context] * count, top_k=top_k, exclude=[["i000001"]] * count, max_per={"category": 200})
    assert compiled == [] and set(found[0][0]) == {"corpus_id", "key", "score"}


@pytest.mark.parametrize(("kind", "settings"), [("hnsw", {}), ("ivf", {"lists": 20, "probes": 1})])
def test_an_index_says_what_it_loses(scorers, items, kind, settings):
    pytest.importorskip("faiss")
    scorer = scorers["bilinear"]
    contexts = [*CONTEXTS, *({"query": item["title"], "history": [item["item_id"]]} for item in items[:50])]
    exact = [ids(own) for own in scorer.retrieve(contexts, 10)]
    measured = scorer.use_index(kind, contexts, 10, **settings)
    found = scorer.retrieve(contexts, 10)
    scorer.item_vectors()  # exact again
    recall = np.mean([len({*own} & {*ids(other)}) / 10 for own, other in zip(exact, found, strict=True)])
    assert measured.recall == pytest.approx(recall, abs=1e-9) and f"recall@10 {recall:.4f}" in str(measured)
    # A graph of 400 vectors of 32 numbers is searched almost whole; one list of twenty is not.
    assert recall > 0.95 if kind == "hnsw" else 0 < recall < 1
    scores = [entry["score"] for entry in found[0]]
    expected = scorer.predict([(CONTEXTS[0], {"item_id": entry["key"]}) for entry in found[0]])
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_kept_vectors_are_computed_where_items_changed(folder, scorers, items, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    scorer, place = scorers["cosine"], tmp_path / "vectors"
    first = scorer.item_vectors(place)
    again = scorer.item_vectors(place)
    assert first.computed == len(items) and again.computed == 0 and isinstance(again.vectors.base, np.memmap)
    np.testing.assert_array_equal(again.vectors, first.vectors)

    # Another order, a text changed, a price changed, an item gone, one new; the shop's own file stays as it is.
    changed = [dict(row) for row in items[::-1]][1:]
    changed[3]["title"], changed[5]["price"] = "another thing", 1234.0
    changed.append(dict(items[0]) | {"item_id": "new", "description": "brand new"})
    shop = pq.read_table("data/shop/items.parquet")
    pq.write_table(type(shop).from_pylist(changed, shop.schema), tmp_path / "items.parquet")
    config = scorer.config
    catalogue = type(config.data.catalogues[0])(str(tmp_path / "items.parquet"), name="items", key="item_id")
    data = type(config.data)(**{**vars(config.data), "catalogues": (catalogue,)})
    other = Scorer.load("runs/cosine", mesh=Mesh(8), config=type(config)(**{**vars(config), "data": data}))
    made = other.item_vectors(place)
    assert made.computed == 3
    np.testing.assert_allclose(made.vectors, other.item_vectors().vectors, atol=1e-6)

    with pytest.raises(InputError, match="expected those of model"):
        scorers["bilinear"].item_vectors(place)
    half = scorer.item_vectors(tmp_path / "half", dtype="bfloat16")
    np.testing.assert_allclose(half.vectors.astype(np.float32), first.vectors, rtol=2**-8)
    assert scorer.item_vectors(tmp_path / "half", dtype="bfloat16").computed == 0
    scorer.item_vectors()


@pytest.mark.parametrize("name", ["cosine", "cross"])
def test_filters_come_before_anything_else(scorers, items, name):
    scorer, scores = scorers[name], table(scorers[name], items, logits=True)
    exclude = [[items[row]["item_id"] for row in np.argsort(-own)[:20]] for own in scores]
    found = scorer.recommend(CONTEXTS, top_k=10, exclude=exclude, max_per={"category": 2, "items.brand": 3})
    for own, gone, entries in zip(scores, exclude, found, strict=True):
        expected, categories, brands = [], Counter(), Counter()
        for row in np.argsort(-own, kind="stable"):
            item = items[row]
            if item["item_id"] in gone or categories[item["category"]] == 2 or brands[item["brand"]] == 3:
                continue
            categories[item["category"]] += 1
            brands[item["brand"]] += 1
            expected.append(row)
        # By logits: two that are nearer than the tolerance may have changed places.
        np.testing.assert_allclose(own[ids(entries)], own[expected[:10]], atol=1e-5)
        assert not {entry["key"] for entry in entries} & set(gone)


def test_items_given_are_ranked_filtered_and_diversified(scorers, items):
    scorer = scorers["cosine"]
    given = [{"item_id": item["item_id"]} for item in items[:40]]
    plain = scorer.recommend(CONTEXTS, given, 5)
    for context, own in zip(CONTEXTS, plain, strict=True):
        assert ids(own) == ids(scorer.rank(context, given, 5)) and "key" not in own[0]
    first = [[own[0]["corpus_id"]] for own in plain]
    assert [ids(own)[:4] for own in scorer.recommend(CONTEXTS, given, 4, exclude=first)] == [
        ids(own)[1:] for own in plain
    ]
    assert ids(scorer.recommend(CONTEXTS[0], given, 5, max_per={"category": 5}, diversity=MMR(1.0))) == ids(plain[0])
    # The same items from the catalogue and given: the same vectors, so the same list.
    whole = [{"item_id": item["item_id"]} for item in items]
    options = {"diversity": DPP(0.3), "top_k": 8, "pool": 30}
    assert ids(scorer.recommend(CONTEXTS[0], whole, **options)) == ids(scorer.recommend(CONTEXTS[0], **options))


def test_diversity_spreads_the_list(scorers):
    scorer = scorers["cosine"]
    vectors = scorer.item_vectors().vectors

    def likeness(entries):
        own = vectors[ids(entries)]
        return (own @ own.T)[np.triu_indices(len(own), 1)].mean()

    plain = scorer.recommend(CONTEXTS[0], top_k=8)
    for method in (MMR(0.2), DPP(0.2)):
        assert likeness(scorer.recommend(CONTEXTS[0], top_k=8, diversity=method)) < likeness(plain)
    with pytest.raises(InputError, match="no vectors of items; pass `vectors`"):
        scorers["cross"].recommend(CONTEXTS[0], diversity=MMR())
    assert len(scorers["cross"].recommend(CONTEXTS[0], top_k=8, diversity=MMR(0.2), vectors=vectors)) == 8


def test_exploration_logs_its_propensities(scorers):
    scorer = scorers["cosine"]
    for policy in (EpsilonGreedy(0.5), PlackettLuce(2.0)):
        found = scorer.recommend(CONTEXTS, top_k=5, explore=policy, seed=1)
        assert all(0 < entry["propensity"] < 1 for own in found for entry in own)
        assert found == scorer.recommend(CONTEXTS, top_k=5, explore=policy, seed=1)
        assert [ids(own) for own in found] != [ids(own) for own in scorer.recommend(CONTEXTS, top_k=5)]
    greedy = scorer.recommend(CONTEXTS[0], top_k=5, diversity=MMR(0.5), explore=EpsilonGreedy(0.0))
    assert ids(greedy) == ids(scorer.recommend(CONTEXTS[0], top_k=5, diversity=MMR(0.5)))
    with pytest.raises(InputError, match="use EpsilonGreedy"):
        scorer.recommend(CONTEXTS[0], diversity=MMR(), explore=PlackettLuce())


def test_another_run_orders_what_towers_retrieved(scorers, items):
    found = scorers["cosine"].recommend(CONTEXTS[1], top_k=6, ranker=scorers["cross"], pool=30)
    pool = ids(scorers["cosine"].recommend(CONTEXTS[1], top_k=30))
    ranked = scorers["cross"].rank(CONTEXTS[1], [{"item_id": items[row]["item_id"]} for row in pool], 6)
    np.testing.assert_allclose([e["score"] for e in found], [e["score"] for e in ranked], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s["cross"].item_vectors(), "found 'cross', expected towers"),
        (lambda s: s["cross"].context_vectors(CONTEXTS), "found 'cross', expected towers"),
        (lambda s: s["cosine"].item_vectors(dtype="int4"), "dtype: found 'int4'"),
        (lambda s: s["cosine"].use_index("tree", CONTEXTS), "index: found 'tree', expected one of hnsw, ivf"),
        (lambda s: s["cosine"].use_index("hnsw", CONTEXTS, probes=2), "expected numbers of at least 1 of links"),
        (lambda s: s["cosine"].recommend(CONTEXTS, top_k=0), "top_k: found 0"),
        (lambda s: s["cosine"].recommend(CONTEXTS, exclude=[["i000001"]]), "exclude: found 1 entries"),
        (lambda s: s["cosine"].recommend(CONTEXTS, max_per={"categry": 2}), "did you mean 'category'"),
        (
            lambda s: s["cosine"].recommend(CONTEXTS, [{"item_id": "i000001"}], exclude=[[5]] * 3),
            "positions of the 1 items",
        ),
    ],
)
def test_what_cannot_be_is_refused(scorers, call, message):
    with pytest.raises(InputError) as error:
        call(scorers)
    assert message in str(error.value)
