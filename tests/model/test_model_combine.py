"""Combinations and inputs of features against float64 numpy, with an encoder and without one."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from batches import make_batch
from models import make_spec
from scipy.special import erf

from srsjax import config
from srsjax.data.inputs import InputSpec
from srsjax.data.store.tokenizer import train_tokenizer
from srsjax.errors import InputError
from srsjax.model import ctr
from srsjax.model.bert import BertConfig
from srsjax.model.combine import COMBINATIONS, Settings
from srsjax.model.features import INPUTS, Features, TargetAttention
from srsjax.runs.optimizers import DECAY
from srsjax.runs.rules import match
from srsjax.runs.sharding import SHARDING
from srsjax.runs.spec import make_spec as spec_of

BERT = BertConfig(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_positions=16)
FEATURES = (
    InputSpec("user", "context", "categorical", 5),
    InputSpec("item", "candidate", "categorical", 7),
    InputSpec("price", "candidate", "numeric", 1, mean=3.0, deviation=2.0),
)
SETTINGS = Settings(layers=(6, 5), crosses=2)
COMBINES = ("concat", "mlp", "wide_deep", "deepfm", "dcn", "attention")


def made(combine: str, vectors: int = 3):
    """A combination with random parameters, and its parameters by path in float64."""
    module = COMBINATIONS[combine](8, vectors, SETTINGS, 0.3, ctr.nnx.Rngs(0))
    state = ctr.nnx.state(module, ctr.nnx.Param)
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), state)
    ctr.nnx.update(module, state)
    flat = ctr.nnx.to_flat_state(state)
    return module, {"/".join(map(str, path)): np.asarray(x[...], np.float64) for path, x in flat}


def dense(p, path: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{path}/kernel"] + p[f"{path}/bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def deep(p, x: np.ndarray, before: str = "") -> np.ndarray:
    for layer in range(2):
        x = np.maximum(dense(p, f"{before}layers/{layer}", x), 0)
    return x


def expected(combine: str, p, vectors: list[np.ndarray], text: bool) -> np.ndarray:
    """The formulas of the docstrings; the text's vector is the first."""
    x = np.concatenate(vectors, axis=-1)
    match combine:
        case "concat":
            out = dense(p, "down", gelu(dense(p, "up", x)))
            return vectors[0] + out if text else out
        case "mlp":
            return deep(p, x)
        case "wide_deep":
            return np.concatenate([sum(vectors), deep(p, x, "deep/")], axis=-1)
        case "deepfm":
            pairs = sum(vectors[i] * vectors[j] for i in range(len(vectors)) for j in range(i))
            return np.concatenate([sum(vectors), pairs, deep(p, x, "deep/")], axis=-1)
        case "dcn":
            crossed = x
            for layer in range(2):
                crossed = x * dense(p, f"crosses/{layer}", crossed) + crossed
            return np.concatenate([crossed, deep(p, x, "deep/")], axis=-1)
        case "attention":
            v = np.stack(vectors, -2) + p["place"]
            scores = np.tanh(dense(p, "key", v)) @ p["query"]
            a = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            z = (a[..., None] * v).sum(-2)
            z = z + dense(p, "down", gelu(dense(p, "up", z)))
            return vectors[0] + z if text else z


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("combine", COMBINES)
def test_a_combination_is_its_formula(combine, text):
    module, p = made(combine)
    rng = np.random.default_rng(2)
    vectors = [rng.normal(size=(2, 4, 8)).astype(np.float32) for _ in range(3)]
    found = module(vectors[0] if text else None, vectors[1:] if text else vectors)
    assert found.shape == (2, 4, module.size)
    wanted = expected(combine, p, [x.astype(np.float64) for x in vectors], text)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)  # float32 sums of 24 products


@pytest.mark.parametrize("name", ["gelu", "silu", "tanh"])
def test_the_perceptron_has_the_activation_that_is_asked_for(name):
    settings = Settings(layers=(6,), activation=name)
    module = COMBINATIONS["mlp"](8, 2, settings, 0.3, ctr.nnx.Rngs(0))
    rng = np.random.default_rng(7)
    x, f = (rng.normal(size=(1, 3, 8)).astype(np.float32) for _ in range(2))
    flat = ctr.nnx.to_flat_state(ctr.nnx.state(module, ctr.nnx.Param))
    p = {"/".join(map(str, path)): np.asarray(a[...], np.float64) for path, a in flat}
    inner = dense(p, "layers/0", np.concatenate([x, f], -1).astype(np.float64))
    wanted = {"gelu": gelu(inner), "silu": inner / (1 + np.exp(-inner)), "tanh": np.tanh(inner)}[name]
    np.testing.assert_allclose(module(x, [f]), wanted, rtol=1e-4, atol=1e-5)


def test_the_weights_of_attention_can_be_read_for_each_candidate():
    module, _ = made("attention")
    vectors = [np.random.default_rng(3).normal(size=(2, 4, 8)).astype(np.float32) for _ in range(3)]
    weights = np.asarray(module.weights(vectors[0], vectors[1:]))
    assert weights.shape == (2, 4, 3) and (weights > 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("combine", COMBINES)
def test_without_text_there_is_no_encoder_and_each_candidate_has_its_own_logit(combine):
    spec = make_spec(config.Model(combine=combine, combine_layers=(6,)), BERT, 1, FEATURES, reads_text=False)
    params = ctr.init(spec, jax.random.key(0))
    assert not any(path.startswith("bert") for path in params)
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, 5, (2, 6)).astype(np.int32), rng.integers(0, 7, (2, 6)).astype(np.int32)
    prices = rng.uniform(0, 9, (2, 6)).astype(np.float32)
    slots = np.tile(np.arange(6, dtype=np.int32), (2, 1))

    def logits(order: np.ndarray) -> np.ndarray:
        batch = make_batch(
            group=slots,
            context_of=slots,
            context_features={"user": users[:, order]},
            candidate_features={"item": items[:, order], "price": prices[:, order]},
        )
        return np.asarray(ctr.forward(ctr.build(spec), params, batch))[..., 0]

    order = rng.permutation(6)
    np.testing.assert_allclose(logits(order), logits(np.arange(6))[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("combine", COMBINES)
def test_every_parameter_has_a_place_on_the_mesh_and_a_rule_of_decay(combine):
    features = (
        *FEATURES,
        InputSpec("age", "context", "numeric", 1, scale="quantile", edges=(1.0, 2.0), may_be_missing=True),
        InputSpec("image", "candidate", "vector", 3, may_be_missing=True),
        InputSpec("seen", "context", "categorical", 7, values=2, like="item", pooling="attention"),
        InputSpec("clicked", "context", "categorical", 7, values=2, pooling="transformer"),
        InputSpec("hour", "context", "numeric", 1, scale="cyclic", period=24.0),
    )
    settings = config.Model(
        combine=combine, combine_layers=(6,), experts=2, task_experts=1, expert_levels=2, task_weights="uncertainty"
    )
    shapes = jax.eval_shape(lambda key: ctr.init(make_spec(settings, BERT, 2, features), key), jax.random.key(0))
    match(SHARDING, shapes, "sharding")
    match(DECAY, shapes, "weight-decay")


# ---------------------------------------------------------------------------------------------- inputs


def an_input(**fields):
    feature = InputSpec("x", "candidate", **({"size": 1} | fields))
    module = INPUTS[feature.kind](feature, BERT, ctr.nnx.Rngs(0))
    if hasattr(module, "missing"):
        module.missing[...] = np.full(8, 7.0, np.float32)
    return module


def test_a_number_is_read_by_its_logarithm_its_bucket_or_as_missing():
    numbers = np.array([[-3.0, 0.0, 5.5, np.nan]], np.float32)
    plain = an_input(kind="numeric", mean=1.0, deviation=2.0)
    logarithm = an_input(kind="numeric", mean=1.0, deviation=2.0, scale="log")
    logs = np.sign(numbers) * np.log1p(np.abs(numbers))
    np.testing.assert_allclose(logarithm(numbers)[0, :3], plain(logs)[0, :3], rtol=1e-5)
    bucket = an_input(kind="numeric", scale="quantile", edges=(-1.0, 0.0, 2.0), may_be_missing=True)
    table = np.asarray(bucket.table.embedding[...])
    np.testing.assert_array_equal(bucket(numbers)[0], [table[0], table[2], table[3], np.full(8, 7.0)])
    with_missing = an_input(kind="numeric", mean=1.0, deviation=2.0, may_be_missing=True)
    np.testing.assert_array_equal(with_missing(numbers)[0, 3], np.full(8, 7.0))
    np.testing.assert_allclose(with_missing(numbers)[0, :3], plain(numbers)[0, :3], rtol=1e-6)


def test_a_missing_vector_is_a_vector_of_its_own_and_has_finite_gradients():
    module = an_input(kind="vector", size=3, may_be_missing=True)
    vectors = np.array([[[1.0, 2.0, 3.0], [np.nan] * 3]], np.float32)
    found = np.asarray(module(vectors))
    np.testing.assert_array_equal(found[0, 1], np.full(8, 7.0))
    np.testing.assert_allclose(found[0, 0], an_input(kind="vector", size=3)(vectors[:, :1])[0, 0], rtol=1e-6)
    graph, state = ctr.nnx.split(module)
    slopes = jax.grad(lambda state: ctr.nnx.merge(graph, state)(vectors).sum())(state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_a_time_of_day_is_an_angle():
    module = an_input(kind="numeric", scale="cyclic", period=24.0)
    hours = np.array([[0.0, 6.0, 23.5, 24.0]], np.float32)
    kernel, bias = (np.asarray(x[...], np.float64) for x in (module.dense.kernel, module.dense.bias))
    angle = 2 * np.pi * hours.astype(np.float64) / 24
    wanted = np.stack([np.sin(angle), np.cos(angle)], -1) @ kernel + bias
    np.testing.assert_allclose(module(hours), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(module(hours)[0, 0], module(hours)[0, 3], atol=1e-6)


def test_a_transformer_over_a_list_is_torchs_and_reads_no_padding():
    torch = pytest.importorskip("torch", reason="needs pip install -e '.[reference]'")
    module = an_input(kind="categorical", size=6, values=4, pooling="transformer")
    p = {
        "/".join(map(str, path)): torch.tensor(np.asarray(x[...], np.float64))
        for path, x in ctr.nnx.to_flat_state(ctr.nnx.state(module, ctr.nnx.Param))
    }
    ids = np.array([[[1, 4, 5, 0], [2, 0, 3, 0], [0, 0, 0, 0]]], np.int32)
    x = p["table/embedding"][torch.tensor(ids[0], dtype=torch.long)] + p["sequence/place"]
    x = torch.nn.functional.layer_norm(x, (8,), eps=1e-12)
    hidden = torch.tensor(ids[0] == 0)
    hidden[:, 0] = False  # an empty list is that of one unknown item
    for number in range(2):
        of = f"sequence/layers/{number}"
        layer = torch.nn.TransformerEncoderLayer(
            8, BERT.num_heads, 16, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        weights = {
            "self_attn.in_proj_weight": p[f"{of}/attention/qkv/kernel"].permute(1, 2, 0).reshape(24, 8),
            "self_attn.in_proj_bias": p[f"{of}/attention/qkv/bias"].reshape(24),
            "self_attn.out_proj.weight": p[f"{of}/attention/out/kernel"].T,
            "self_attn.out_proj.bias": p[f"{of}/attention/out/bias"],
            "linear1.weight": p[f"{of}/mlp/up/kernel"].T,
            "linear1.bias": p[f"{of}/mlp/up/bias"],
            "linear2.weight": p[f"{of}/mlp/down/kernel"].T,
            "linear2.bias": p[f"{of}/mlp/down/bias"],
        }
        layer.load_state_dict(weights | {k: v for k, v in layer.state_dict().items() if k.startswith("norm")})
        x = layer.double()(x, src_key_padding_mask=hidden)
    found = np.asarray(module(ids))
    np.testing.assert_allclose(found[0], x[:, 0].detach().numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(found - module(ids[..., [1, 0, 2, 3]])).max() > 1e-3  # the order counts


def test_several_ids_are_their_mean_and_unknown_ones_are_left_out():
    module = an_input(kind="categorical", size=6, values=3)
    table = np.asarray(module.table.embedding[...])
    found = module(np.array([[[1, 4, 0], [0, 0, 0], [2, 2, 5]]], np.int32))
    wanted = [(table[1] + table[4]) / 2, table[0], (2 * table[2] + table[5]) / 3]
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6, atol=1e-8)


def test_short_embeddings_are_mapped_to_the_width_of_the_model():
    module = an_input(kind="categorical", size=6, values=2, width=3)
    table, kernel = np.asarray(module.table.embedding[...]), np.asarray(module.dense.kernel[...])
    assert table.shape == (6, 3) and kernel.shape == (3, 8)
    found = module(np.array([[[1, 4], [0, 2]]], np.int32))
    np.testing.assert_allclose(found[0], np.stack([(table[1] + table[4]) / 2, table[2]]) @ kernel, rtol=1e-5, atol=1e-7)


def test_dropout_of_ids_makes_them_unknown_in_training_alone():
    module = an_input(kind="categorical", size=6, dropout=0.25)
    table, ids = np.asarray(module.table.embedding[...]), np.ones((40, 100), np.int32)
    np.testing.assert_array_equal(module(ids)[0, 0], table[1])
    found = np.asarray(module(ids, jax.random.key(0)))
    dropped = (found == table[0]).all(-1)
    assert ((found == table[1]).all(-1) | dropped).all()
    assert dropped.mean() == pytest.approx(0.25, abs=0.03)  # four standard deviations of 4,000 draws


def test_what_only_training_reads_is_fixed_without_a_key():
    position = an_input(kind="categorical", size=6, fixed=2.0)
    table, key = np.asarray(position.table.embedding[...]), jax.random.key(0)
    ids = np.array([[1, 5]], np.int32)
    np.testing.assert_array_equal(position(ids, key)[0], table[[1, 5]])
    np.testing.assert_array_equal(position(ids)[0], table[[2, 2]])
    number = an_input(kind="numeric", mean=1.0, deviation=2.0, fixed=4.0)
    np.testing.assert_array_equal(number(np.array([[1.0, 9.0]]))[0], number(np.full((1, 2), 4.0), key)[0])
    assert np.abs(number(np.array([[1.0, 9.0]]), key)[0, 0] - number(np.full((1, 2), 4.0), key)[0, 0]).max() > 0


def test_every_feature_has_a_key_of_its_own():
    both = tuple(InputSpec(name, "context", "categorical", 4, dropout=0.5) for name in "ab")
    features = Features(both, BERT, ctr.nnx.Rngs(0))
    ids = {name: np.ones((1, 200), np.int32) for name in "ab"}
    a, b = (np.asarray(x) for x in features(ids, jax.random.key(1)))
    dropped = [(x == x[0, 0]).all(-1) for x in (a, b)]
    assert (dropped[0] != dropped[1]).any()


def test_target_attention_is_its_formula_and_leaves_padding_out():
    rng = np.random.default_rng(5)
    vectors, target = rng.normal(size=(2, 3, 4, 8)).astype(np.float32), rng.normal(size=(2, 3, 8)).astype(np.float32)
    known = rng.integers(0, 2, (2, 3, 4, 1)).astype(np.float32)
    module = TargetAttention(8, ctr.nnx.Rngs(0))
    flat = ctr.nnx.to_flat_state(ctr.nnx.state(module, ctr.nnx.Param))
    p = {"/".join(map(str, path)): np.asarray(x[...], np.float64) for path, x in flat}
    e, q = vectors.astype(np.float64), np.broadcast_to(target[:, :, None].astype(np.float64), vectors.shape)
    hidden = 1 / (1 + np.exp(-dense(p, "up", np.concatenate([e, q, e - q, e * q], -1))))
    wanted = (dense(p, "down", hidden) * known * e).sum(-2)
    np.testing.assert_allclose(module(vectors, known, target), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_list_like_the_candidate_reads_its_embeddings(pooling):
    bought = InputSpec("bought", "context", "categorical", 7, values=3, like="item", pooling=pooling)
    spec = make_spec(
        config.Model(combine="mlp", combine_layers=(6,)), BERT, 1, (bought, *FEATURES[1:]), reads_text=False
    )
    params = ctr.init(spec, jax.random.key(0))
    assert [path for path in params if path.endswith("embedding")] == ["features/candidate/input_item/table/embedding"]
    slots = np.zeros((1, 2), np.int32)
    batch = make_batch(
        group=slots,
        context_of=slots,
        context_features={"bought": np.array([[[3, 5, 0], [0, 0, 0]]], np.int32)},
        candidate_features={"item": np.array([[3, 1]], np.int32), "price": np.ones((1, 2), np.float32)},
    )
    table = np.asarray(params["features/candidate/input_item/table/embedding"])
    merged = ctr.merge(ctr.build(spec), params)
    shared = merged._shared(batch.candidate_features)["bought"]
    np.testing.assert_array_equal(shared.target[0], table[[3, 1]])
    ids = np.broadcast_to(batch.context_features["bought"][:, :1], (1, 2, 3))
    found = np.asarray(merged.features["context"].of("bought")(ids, shared=shared))
    if pooling == "mean":
        np.testing.assert_allclose(found[0], np.tile((table[3] + table[5]) / 2, (2, 1)), rtol=1e-6)
    else:
        assert np.abs(found[0, 0] - found[0, 1]).max() > 1e-6  # by the candidate
    graph = ctr.build(spec)
    slope = jax.grad(lambda p: ctr.forward(graph, p, batch).sum())(params)
    changed = np.flatnonzero(np.abs(slope["features/candidate/input_item/table/embedding"]).sum(-1))
    assert changed.tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    "schema, model, message",
    [
        (config.Schema(), config.Model(), "no feature that the model can read"),
        (
            config.Schema(candidate=(config.Categorical("a", training_only=True),)),
            config.Model(combine="mlp"),
            "not all of them training_only",
        ),
        (
            config.Schema(candidate=(config.Categorical("a"),)),
            config.Model(combine="text"),
            "set model.combine mlp or dcn",
        ),
        (
            config.Schema(context=(config.Text("q"),), candidate=(config.Text("t"),)),
            config.Model(interaction="towers", combine="dcn"),
            "no common size for the product of towers",
        ),
        (
            config.Schema(candidate=(config.Categorical("a", hash_buckets=3),)),
            config.Model(interaction="towers"),
            "features of one side alone",
        ),
    ],
)
def test_models_that_cannot_be_are_refused(schema, model, message):
    settings = config.TrainConfig(schema=schema, model=model)
    with pytest.raises(InputError, match=message):
        spec_of(settings, train_tokenizer(["text"], 100, lowercase=True), {"fitted": {"vocabularies": {"a": ["x"]}}})
