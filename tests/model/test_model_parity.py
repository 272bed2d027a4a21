"""Against transformers (PyTorch), in float32: the same weights must give the same hidden states and logits."""

import jax
import models
import numpy as np
import pytest
from batches import make_batch
from flax import nnx

from srsjax import config
from srsjax.data.batches.batch import PackedBatch
from srsjax.model import ctr, hf
from srsjax.model.bert import Bert
from srsjax.model.compute import compute_dtype
from srsjax.model.interactions import INTERACTIONS as MEETING
from srsjax.model.spec import encoder_config

torch = pytest.importorskip("torch", reason="parity needs PyTorch: pip install -e '.[reference]'")
transformers = pytest.importorskip("transformers")

# Both sides compute in float32 and differ in the order of sums: about 1e-6 a layer on values of order 1.
TOLERANCE = 1e-4

TINY = dict(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=40,
    num_labels=2,
    # Large enough that activations leave the linear range and attention is far from uniform.
    initializer_range=0.3,
)


def pairs_batch(tokens: np.ndarray, lengths: np.ndarray, token_types: np.ndarray) -> PackedBatch:
    """One pair a row, [R, L], padded at the end."""
    slot = np.arange(tokens.shape[1], dtype=np.int32)
    segment = (slot < lengths[:, None]).astype(np.int32)
    return make_batch(tokens, tasks=2, positions=slot * segment, token_types=token_types, segment=segment)


def random_pairs(vocab_size: int, types: int, rows: int = 3, length: int = 24) -> PackedBatch:
    rng = np.random.default_rng(0)
    lengths = np.array([length, length // 2, 5])[:rows]
    tokens = rng.integers(3, vocab_size, (rows, length)).astype(np.int32)
    token_types = (np.arange(length) >= 3).astype(np.int32) * np.ones((rows, 1), np.int32) * (types - 1)
    return pairs_batch(tokens, lengths, token_types)


def transformers_classifier(model_type: str, **changes):
    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(model_type, **(TINY | changes))
    return transformers.AutoModelForSequenceClassification.from_config(settings).eval()


def transformers_outputs(model, batch: PackedBatch, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Last hidden states [R, L, D] and logits [R, T] of the PyTorch model."""
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(batch.tokens).long(),
            attention_mask=torch.from_numpy(batch.segment).long(),
            token_type_ids=torch.from_numpy(batch.token_types).long(),
            position_ids=torch.from_numpy(batch.positions).long() + offset,
            output_hidden_states=True,
        )
    return out.hidden_states[-1].numpy(), out.logits.numpy()


def assert_same(folder: str, model, batch: PackedBatch) -> None:
    """Hidden states of real tokens, and logits, of the checkpoint in `folder` and of the PyTorch model."""
    model_config = config.Model(pretrained=str(folder), dtype="float32")
    bert = encoder_config(model_config, vocab_size=1)
    params, report = hf.load_weights(str(folder), bert, num_tasks=2)
    assert not report.fresh and not report.unknown
    expected_hidden, expected_logits = transformers_outputs(model, batch, bert.position_offset)

    logits = ctr.forward(models.build(model_config, bert, 2), params, batch)
    np.testing.assert_allclose(logits[:, 0], expected_logits, rtol=0, atol=TOLERANCE)

    hidden = hidden_states(model_config, bert, params, batch)
    real = batch.segment > 0
    np.testing.assert_allclose(hidden[real], expected_hidden[real], rtol=0, atol=TOLERANCE)


def hidden_states(model_config, bert, params, batch: PackedBatch) -> np.ndarray:
    """[R, L, D] of every slot, from the encoder alone."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Bert(bert, compute_dtype(model_config), nnx.Rngs(0))))
    encoder = {path.removeprefix("bert/"): array for path, array in params.items() if path.startswith("bert/")}
    state = [(tuple(int(p) if p.isdigit() else p for p in path.split("/")), x) for path, x in encoder.items()]
    module = nnx.merge(graphdef, nnx.from_flat_state(state))
    visibility = MEETING["cross"].layer_visibility(0, bert.num_layers, batch.segment, batch.candidate)
    return np.asarray(module(batch.tokens, batch.positions, batch.token_types, visibility))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_tiny_bert(tmp_path, activation):
    model = transformers_classifier("bert", hidden_act=activation)
    model.save_pretrained(tmp_path)
    assert_same(tmp_path, model, random_pairs(60, types=2))


def test_tiny_roberta(tmp_path):
    model = transformers_classifier("roberta", type_vocab_size=1)
    model.save_pretrained(tmp_path)
    assert_same(tmp_path, model, random_pairs(60, types=1))


def test_minilm(tmp_path, minilm):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification.from_pretrained(minilm, num_labels=2).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    torch.nn.init.normal_(model.bert.pooler.dense.weight, std=0.05)
    model.save_pretrained(tmp_path)
    assert_same(tmp_path, model, random_pairs(30000, types=2, length=64))


def test_gradients_of_tiny_bert(tmp_path):
    """The hand-written derivative of products, by way of every parameter of the model."""
    model = transformers_classifier("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.save_pretrained(tmp_path)
    batch = random_pairs(60, types=2)
    model_config = config.Model(pretrained=str(tmp_path), dtype="float32")
    bert = encoder_config(model_config, vocab_size=1)
    params, _ = hf.load_weights(str(tmp_path), bert, num_tasks=2)
    graphdef = models.build(model_config, bert, 2)
    gradients = jax.grad(lambda p: (ctr.forward(graphdef, p, batch) ** 2).sum())(params)

    logits = model(
        input_ids=torch.from_numpy(batch.tokens).long(),
        attention_mask=torch.from_numpy(batch.segment).long(),
        token_type_ids=torch.from_numpy(batch.token_types).long(),
        position_ids=torch.from_numpy(batch.positions).long(),
    ).logits
    (logits**2).sum().backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad
    model.save_pretrained(tmp_path / "gradients")
    expected, _ = hf.load_weights(str(tmp_path / "gradients"), bert, num_tasks=2)
    for path, gradient in gradients.items():
        scale = np.abs(expected[path]).max()
        # Relative to the largest entry: sums over all tokens of float32 terms. Biases of the key projection have
        # gradient zero (softmax does not change), hence the absolute part.
        np.testing.assert_allclose(gradient, expected[path], rtol=0, atol=1e-4 * scale + 1e-4, err_msg=path)
