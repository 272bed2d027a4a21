"""The click model: encoder, read-out and head as one pure function of a flat dict of parameters.

bert = encoder_config(config.model, vocab_size)
graphdef = build(config.model, bert, num_tasks)
params = init(config.model, bert, num_tasks, jax.random.key(0))
logits = jax.jit(forward, static_argnums=0)(graphdef, params, batch)
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from srsjax import config
from srsjax.data.batches.batch import PackedBatch
from srsjax.errors import InputError
from srsjax.model import hf
from srsjax.model.attention import Attend, Visibility, attend, layer_visibility
from srsjax.model.bert import Bert, BertConfig
from srsjax.model.dense import plain_dot
from srsjax.model.float8 import float8_dot
from srsjax.model.heads import Head, ProductHead, segment_mean

Params = dict[str, jax.Array]


def encoder_config(model: config.Model, vocab_size: int) -> BertConfig:
    """Sizes of the encoder: the checkpoint's where `model.pretrained` names one, else those of `model`.

    Args:
      model: dropouts at or above 0 override the checkpoint's; only the `pooled` read-out has a pooler.
      vocab_size: number of token ids of the tokenizer.

    Raises:
      InputError: the checkpoint cannot be read, or has fewer token embeddings than the tokenizer has ids.
    """
    if model.pretrained:
        bert = hf.load_config(model.pretrained)
        if vocab_size > bert.vocab_size:
            raise InputError(
                f"{model.pretrained}: {bert.vocab_size} token embeddings, but the tokenizer has {vocab_size} ids; use "
                "the tokenizer of the same checkpoint"
            )
    else:
        sizes = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions", "initializer_range")
        bert = BertConfig(vocab_size, **{name: getattr(model, name) for name in sizes})
    dropouts = ("hidden_dropout", "attention_dropout")
    changes = {name: getattr(model, name) for name in dropouts if getattr(model, name) >= 0}
    return dataclasses.replace(bert, has_pooler=model.readout == "pooled", **changes)


def build(model: config.Model, bert: BertConfig, num_tasks: int, attention: Attend = attend) -> nnx.GraphDef:
    """The model without its parameters: hashable, static under `jax.jit`, made without computing anything."""
    return nnx.graphdef(nnx.eval_shape(lambda: ClickModel(model, bert, num_tasks, nnx.Rngs(0), attention)))


def init(model: config.Model, bert: BertConfig, num_tasks: int, key: jax.Array) -> Params:
    """Fresh parameters, float32, by path (`bert/layers/0/attention/qkv/kernel`).

    Pure: give it to `jax.eval_shape` for shapes, or to `jax.jit` with `out_shardings` so that they are born sharded.
    """
    state = nnx.state(ClickModel(model, bert, num_tasks, nnx.Rngs(key)), nnx.Param)
    return {"/".join(map(str, path)): param.get_value() for path, param in nnx.to_flat_state(state)}


def forward(
    graphdef: nnx.GraphDef, params: Params, batch: PackedBatch, *, dropout_key: jax.Array | None = None
) -> jax.Array:
    """Logits [R, C, T] float32 of every candidate slot; empty slots get finite numbers of no meaning.

    Args:
      graphdef: from `build`.
      params: as `init` returns them.
      batch: [R, ...] arrays of one micro-batch.
      dropout_key: None for evaluation.
    """
    return _merge(graphdef, params)(batch, dropout_key)


class StoredPlaces(NamedTuple):
    """Where the rows of a batch take the stored states of their candidates from."""

    state: jax.Array
    """[R, L] int32, row of the states for each candidate token; -1 elsewhere."""
    context: jax.Array
    """[R, K] int32, slots of the context tokens of each row; L where there are fewer than K."""


def item_states(
    graphdef: nnx.GraphDef,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    token_types: jax.Array,
    part: jax.Array,
) -> jax.Array:
    """What `split` computes of candidates alone: hidden states after its lower layers, [R, L, D] in the compute dtype.

    `tokens`, `positions`, `token_types` [R, L] int32 as in a `PackedBatch`; `part` [R, L] int32 tells the items of a
    row apart, 0 = pad.
    """
    return _merge(graphdef, params).lower(tokens, positions, token_types, part)


def forward_stored(
    graphdef: nnx.GraphDef, params: Params, states: jax.Array, batch: PackedBatch, places: StoredPlaces
) -> jax.Array:
    """`forward` of a `split` model, without dropout, for candidates whose `item_states` are stored.

    `states` [S, D]: the states of all stored tokens. The lower layers compute the K context tokens of a row only.
    """
    return _merge(graphdef, params)(batch, None, (states, places))


def _merge(graphdef: nnx.GraphDef, params: Params) -> ClickModel:
    leaves = [
        (tuple(int(part) if part.isdigit() else part for part in path.split("/")), params[path]) for path in params
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


class ClickModel(nnx.Module):
    """Encoder, read-out and head."""

    def __init__(
        self, model: config.Model, bert: BertConfig, num_tasks: int, rngs: nnx.Rngs, attention: Attend = attend
    ):
        dot = float8_dot if model.dtype == "float8" else plain_dot
        self.bert = Bert(bert, compute_dtype(model), rngs, attention, model.remat, dot)
        head = ProductHead if model.interaction == "towers" else Head
        self.head = head(bert.hidden_size, num_tasks, model.head_dropout, rngs)
        self.readout, self.interaction = model.readout, model.interaction
        self.split_layers = lower_layers(model, bert.num_layers)
        # Layers that stored states have behind them. The last one always runs: it computes read-outs only.
        self.stored_layers = min(self.split_layers, bert.num_layers - 1)

    def __call__(
        self,
        batch: PackedBatch,
        dropout_key: jax.Array | None,
        stored: tuple[jax.Array, StoredPlaces] | None = None,
    ) -> jax.Array:
        """Logits [R, C, T] float32."""
        encoder_key, head_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        sides, layers = self._sides(batch), len(self.bert.layers)
        at = None if self.readout == "mean" else jnp.concatenate([side.slot for side in sides], axis=1)
        visibility = layer_visibility(self.interaction, self.split_layers, layers, batch.segment, batch.candidate)
        if stored is None:
            text = (batch.tokens, batch.positions, batch.token_types)
            hidden = self.bert(*text, visibility, at=at, dropout_key=encoder_key)
        else:
            x = self._stored_states(batch, *stored)
            hidden = self.bert.run(x, visibility, range(self.stored_layers, layers), at=at)
        return self.head(*self._read(hidden, sides), head_key)

    def _read(self, hidden: jax.Array, sides: tuple[_Side, ...]) -> tuple[jax.Array, ...]:
        """One vector a candidate, [R, C, D] in the compute dtype; in `towers` one for its context before it."""
        if self.readout == "mean":
            return tuple(segment_mean(hidden, side.member, side.wanted) for side in sides)
        hidden = self.bert.pool(hidden) if self.readout == "pooled" else hidden
        return tuple(jnp.split(hidden, len(sides), axis=1))

    def lower(self, tokens, positions, token_types, part) -> jax.Array:
        """[R, L] int32 four times -> [R, L, D] after the lower layers; tokens of equal `part` see each other."""
        x = self.bert.embeddings(tokens, positions, token_types, None)
        visibility = (Visibility(part, part),) * self.stored_layers
        return self.bert.run(x, visibility, range(self.stored_layers))

    def _stored_states(self, batch: PackedBatch, states: jax.Array, places: StoredPlaces) -> jax.Array:
        """[R, L, D] after the lower layers: contexts computed, candidates looked up."""
        arrays = (batch.tokens, batch.positions, batch.token_types, batch.segment)
        contexts = self.lower(
            *(jnp.take_along_axis(x, places.context, axis=1, mode="fill", fill_value=0) for x in arrays)
        )
        x = jnp.take(states, places.state, axis=0, mode="fill", fill_value=0)
        return x.at[jnp.arange(len(x))[:, None], places.context].set(contexts, mode="drop")

    def _sides(self, batch: PackedBatch) -> tuple[_Side, ...]:
        """What is read for each candidate: the pair, the candidate, or the context and the candidate."""
        of_context = jnp.take_along_axis(batch.context_readout, batch.context_of, axis=1)  # [R, C]
        context = _Side(of_context, jnp.where(batch.candidate > 0, 0, batch.segment), batch.context_of + 1)
        slots = jnp.broadcast_to(jnp.arange(batch.readout.shape[1]), batch.readout.shape)
        candidate = _Side(batch.readout, batch.candidate, slots + 1)
        match self.interaction:
            case "cross":
                return (context._replace(member=batch.segment),)
            case "towers":
                return context, candidate
            case _:
                return (candidate,)


class _Side(NamedTuple):
    """Where something is read for each candidate slot."""

    slot: jax.Array
    """[R, C] int32, its first token."""
    member: jax.Array
    """[R, L] int32, which one each token belongs to."""
    wanted: jax.Array
    """[R, C] int32, the one that is read."""


def lower_layers(model: config.Model, num_layers: int) -> int:
    """Layers of `split` in which a candidate sees only itself. Raises InputError where there are not that many."""
    if not -1 <= model.split_layers <= num_layers:
        raise InputError(f"model.split_layers: found {model.split_layers}, expected -1 to the {num_layers} layers")
    return 2 * num_layers // 3 if model.split_layers < 0 else model.split_layers


def compute_dtype(model: config.Model) -> jnp.dtype:
    """The compute dtype of `model.dtype`; `auto` is bfloat16 on GPU and TPU and float32 on CPU.

    What is not a product with a weight of the encoder is bfloat16 in `float8` too.
    """
    if model.dtype == "auto":
        return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return jnp.dtype("bfloat16" if model.dtype == "float8" else model.dtype)
