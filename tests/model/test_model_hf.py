"""Weights and configurations in and out: exact round trips, and one line for everything wrong."""

import json
import re

import jax
import models
import numpy as np
import pytest
from batches import make_batch
from safetensors.numpy import load_file, save_file

from srsjax import config
from srsjax.errors import InputError
from srsjax.model import ctr, hf, hf_export
from srsjax.model.bert import BertConfig
from srsjax.model.spec import encoder_config

SIZES = dict(vocab_size=30, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12, max_positions=16)
FAMILIES = {
    "bert": BertConfig(**SIZES, activation="gelu_new", layer_norm_eps=1e-6, hidden_dropout=0.2),
    "roberta": BertConfig(**SIZES, position_offset=2, type_vocab_size=1),
    "no_pooler": BertConfig(**SIZES, has_pooler=False),
}


def random_params(bert: BertConfig, num_tasks: int = 3) -> dict[str, np.ndarray]:
    """Every parameter random, biases and scales too, so that no two are alike."""
    model = config.Model(readout="pooled" if bert.has_pooler else "mean")
    shapes = jax.eval_shape(lambda: models.init(model, bert, num_tasks, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape.shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.fixture
def saved(tmp_path):
    """A folder with a BERT and its head of three outputs."""
    hf_export.save_weights(tmp_path, random_params(FAMILIES["bert"]), FAMILIES["bert"])
    return tmp_path


def rewrite(folder, change) -> None:
    """Replaces the tensors of a folder by `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")


def edit_config(folder, **changes) -> None:
    raw = json.loads((folder / "config.json").read_text()) | changes
    raw = {key: value for key, value in raw.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(raw))


def assert_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].dtype == np.float32
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


# ---------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_exact(tmp_path, family):
    bert = FAMILIES[family]
    params = random_params(bert)
    hf_export.save_weights(tmp_path, params, bert)
    found_config = hf.load_config(str(tmp_path))
    assert vars(found_config) | {"has_pooler": bert.has_pooler} == vars(bert)
    found, report = hf.load_weights(str(tmp_path), bert, num_tasks=3)
    assert_equal(found, params)
    assert not (report.fresh or report.unused or report.unknown)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_what_is_saved(tmp_path, family):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[reference]'")
    transformers = pytest.importorskip("transformers")
    bert = FAMILIES[family]
    params = random_params(bert)
    hf_export.save_weights(tmp_path, params, bert)
    loader = transformers.AutoModelForSequenceClassification if bert.has_pooler else transformers.AutoModel
    model, info = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["mismatched_keys"]
    assert {key for key in info["missing_keys"] if "pooler" not in key} == set()
    assert {key for key in info["unexpected_keys"] if "classifier" not in key} == set()
    if not bert.has_pooler:
        return
    tokens = np.array([[3, 4, 5, 6, 7, 8]], np.int32)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens).long()).logits.numpy()
    logits = pair_logits(bert, params, tokens)
    # Random parameters of order 1 make logits of order 10; float32 rounding in two layers.
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)


def pair_logits(bert: BertConfig, params, tokens: np.ndarray) -> np.ndarray:
    """[1, T] logits of one unpadded pair."""
    batch = make_batch(tokens, tasks=3)
    return np.asarray(ctr.forward(models.build(config.Model(dtype="float32"), bert, 3), params, batch))[:, 0]


# ---------------------------------------------------------------------------------------------- other checkpoints


def test_names_without_prefix_and_of_old_layer_norms(saved):
    def old(tensors):
        renamed = {re.sub(r"^bert\.", "", name): array for name, array in tensors.items()}
        pairs = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        for new, before in pairs:
            renamed = {name.replace(new, before): array for name, array in renamed.items()}
        return renamed

    rewrite(saved, old)
    found, _ = hf.load_weights(str(saved), FAMILIES["bert"], num_tasks=3)
    assert_equal(found, random_params(FAMILIES["bert"]))


def test_float16_and_bfloat16_become_float32(saved):
    import ml_dtypes

    halves = {True: np.float16, False: ml_dtypes.bfloat16}
    rewrite(saved, lambda tensors: {name: x.astype(halves["bias" in name]) for name, x in tensors.items()})
    found, _ = hf.load_weights(str(saved), FAMILIES["bert"], num_tasks=3)
    expected = random_params(FAMILIES["bert"])
    expected = {path: x.astype(halves["bias" in path]).astype(np.float32) for path, x in expected.items()}
    assert_equal(found, expected)


def shard(folder) -> None:
    """Splits the weights over two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, folder / file)
    weight_map = {name: file for file, half in halves.items() for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def test_shards(saved):
    shard(saved)
    found, _ = hf.load_weights(str(saved), FAMILIES["bert"], num_tasks=3)
    assert_equal(found, random_params(FAMILIES["bert"]))


def test_missing_pooler_is_fresh_and_named(saved):
    rewrite(saved, lambda tensors: {name: x for name, x in tensors.items() if "pooler" not in name})
    found, report = hf.load_weights(str(saved), FAMILIES["bert"])
    assert report.fresh == ("bert/pooler/kernel", "bert/pooler/bias")
    assert not found.keys() & set(report.fresh)
    assert "bert/pooler/kernel" in str(report)


def test_what_is_not_used_is_reported(saved):
    extra = {
        "cls.predictions.bias": np.zeros(30),
        "bert.embeddings.position_ids": np.zeros(16),
        "surprise": np.zeros(2),
    }
    rewrite(saved, lambda tensors: tensors | extra)
    _, report = hf.load_weights(str(saved), FAMILIES["no_pooler"])
    assert report.unknown == ("surprise",)
    assert set(report.unused) == {
        *("cls.predictions.bias", "bert.embeddings.position_ids", "classifier.weight", "classifier.bias"),
        *("bert.pooler.dense.weight", "bert.pooler.dense.bias"),
    }


def test_head_of_another_size_is_fresh(saved):
    found, report = hf.load_weights(str(saved), FAMILIES["bert"], num_tasks=1)
    assert report.fresh == ("head/dense/kernel", "head/dense/bias")
    assert report.unused == ("classifier.bias", "classifier.weight")
    assert not any(path.startswith("head/") for path in found)


# ---------------------------------------------------------------------------------------------- errors


def input_error(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_weight_that_does_not_fit_is_named(saved):
    def damage(tensors):
        del tensors["bert.embeddings.word_embeddings.weight"]
        del tensors["bert.encoder.layer.1.attention.self.key.bias"]
        tensors["bert.encoder.layer.0.output.dense.weight"] = np.zeros((8, 11), np.float32)
        return tensors

    rewrite(saved, damage)
    message = input_error(hf.load_weights, str(saved), FAMILIES["bert"])
    assert "3 weights" in message
    assert "embeddings.word_embeddings.weight is missing" in message
    assert "encoder.layer.1.attention.self.key.bias is missing" in message
    assert "bert.encoder.layer.0.output.dense.weight is [8, 11], expected [8, 12]" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "t5"}, "model_type 't5', expected one of bert, roberta"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key', expected 'absolute'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_act": "swish"}, "activation 'swish', expected one of gelu"),
        ({"num_attention_heads": 3}, "hidden_size 8, expected a multiple of num_heads 3"),
        ({"hidden_size": ...}, "no field 'hidden_size'"),
        ({"hidden_size": "wide"}, "'wide'"),
    ],
)
def test_wrong_config(saved, changes, expected):
    edit_config(saved, **changes)
    message = input_error(hf.load_config, str(saved))
    assert "config.json" in message and expected in message


def test_wrong_folders(saved, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: no config.json" in input_error(hf.load_config, str(empty))
    assert "no such folder" in input_error(hf.load_config, str(tmp_path / "absent"))
    assert "no model.safetensors" in input_error(hf.load_weights, str(empty), FAMILIES["bert"])
    (empty / "pytorch_model.bin").write_bytes(b"")
    assert "only pytorch_model.bin" in input_error(hf.load_weights, str(empty), FAMILIES["bert"])
    (empty / "config.json").write_text("{")
    assert "config.json: not JSON" in input_error(hf.load_config, str(empty))


def test_truncated_weights(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "model.safetensors: not a whole safetensors file" in input_error(
        hf.load_weights, str(saved), FAMILIES["bert"]
    )


def test_absent_shard(saved):
    shard(saved)
    (saved / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: no such file" in input_error(
        hf.load_weights, str(saved), FAMILIES["bert"]
    )


def test_unreachable_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = input_error(hf.load_config, "nobody/no-such-model")
    assert "nobody/no-such-model: no such folder, and the Hugging Face hub did not give it" in message


def test_encoder_config(saved):
    pretrained = config.Model(pretrained=str(saved), readout="mean", attention_dropout=0.0)
    bert = encoder_config(pretrained, vocab_size=30)
    assert (bert.hidden_size, bert.hidden_dropout, bert.attention_dropout) == (8, 0.2, 0.0)
    assert not bert.has_pooler and bert.longest == 16
    assert "30 token embeddings, but the tokenizer has 31" in input_error(encoder_config, pretrained, 31)
    fresh = encoder_config(config.Model(hidden_size=12, num_heads=3), vocab_size=77)
    assert (fresh.vocab_size, fresh.hidden_size, fresh.hidden_dropout, fresh.has_pooler) == (77, 12, 0.1, True)
    assert "num_heads" in input_error(encoder_config, config.Model(hidden_size=10, num_heads=3), 77)
