"""The click model as pure functions of a flat dict of parameters: encode, combine with other features, head.

spec = ModelSpec(encoder, INTERACTIONS["shared"])
graphdef = build(spec, Compute())
params = init(spec, jax.random.key(0))
logits = jax.jit(forward, static_argnums=0)(graphdef, params, batch)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from srsjax.data.batches.batch import Array, PackedBatch
from srsjax.model import lora
from srsjax.model.attention import Visibility
from srsjax.model.bert import Bert
from srsjax.model.combine import COMBINATIONS
from srsjax.model.compute import Compute
from srsjax.model.features import Features, Shared
from srsjax.model.heads import PRODUCTS, Experts, Head, MixtureHead, Pairs, balanced, both, segment_mean
from srsjax.model.interactions import Side, context_side
from srsjax.model.spec import ModelSpec, output_slices

Params = dict[str, jax.Array]


def build(spec: ModelSpec, compute: Compute = Compute()) -> nnx.GraphDef:
    """The model without its parameters: hashable, static under `jax.jit`, made without computing anything."""
    return nnx.graphdef(nnx.eval_shape(lambda: ClickModel(spec, compute, nnx.Rngs(0))))


def init(spec: ModelSpec, key: jax.Array) -> Params:
    """Fresh parameters, float32, by path (`bert/layers/0/attention/qkv/kernel`).

    Pure: give it to `jax.eval_shape` for shapes, or to `jax.jit` with `out_shardings` so that they are born sharded.
    """
    state = nnx.state(ClickModel(spec, Compute(), nnx.Rngs(key)), nnx.Param)
    params = {"/".join(map(str, path)): param.get_value() for path, param in nnx.to_flat_state(state)}
    if spec.adapter_rank:
        params |= lora.init(params, spec.adapter_rank, jax.random.fold_in(key, 1))
    return params


def forward(
    graphdef: nnx.GraphDef, params: Params, batch: PackedBatch, *, dropout_key: jax.Array | None = None
) -> jax.Array:
    """Logits [R, C, K] float32 of every candidate slot; empty slots get finite numbers of no meaning.

    Args:
      graphdef: from `build`.
      params: as `init` returns them, trained and frozen ones together.
      batch: [R, ...] arrays of one micro-batch.
      dropout_key: None for evaluation.
    """
    return merge(graphdef, params)(batch, dropout_key)


def forward_pairs(
    graphdef: nnx.GraphDef, params: Params, batch: PackedBatch, *, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, Pairs]:
    """`forward` of towers, and what makes logits of every context with every candidate of the batch."""
    model = merge(graphdef, params)
    read, head_key = model.read(batch, dropout_key)
    return model.logits(read, head_key), model.head.pairs(*read)


def modality_weights(graphdef: nnx.GraphDef, params: Params, batch: PackedBatch) -> jax.Array:
    """How much `model.combine attention` takes of each vector, [R, C, V] float32 that sum to 1 over V: of the text's,
    where the model reads text, and of those of `modalities`."""
    model = merge(graphdef, params)
    text = model.encode(batch, model.spec.interaction.read(batch))[-1] if model.spec.reads_text else None
    return model.combine["candidate"].weights(text, model.feature_vectors(batch)["candidate"])


def modalities(spec: ModelSpec) -> list[str]:
    """The names of the vectors that `modality_weights` is about: `text`, then those features that join the
    candidate's; with towers, whose sides are combined apart, those of the candidate alone."""
    return ["text"] * spec.reads_text + feature_names(spec)["candidate"]


def feature_names(spec: ModelSpec) -> dict[str, list[str]]:
    """The names of the vectors of `ClickModel.feature_vectors`, by side."""
    own = [each for each in spec.features if not each.along]
    of = {side: [each.name for each in own if each.side == side] for side in ("context", "candidate")}
    return of if spec.interaction.reads_context else {"candidate": of["context"] + of["candidate"]}


def vectors(
    graphdef: nnx.GraphDef, params: Params, batch: PackedBatch, side: Literal["context", "candidate"]
) -> jax.Array:
    """What the encoder reads of one side alone, in the compute dtype: [R, I, D] contexts or [R, C, D] candidates.

    Rows may hold that side only (`Layout.alone`). Raises ValueError where the side sees the other one.
    """
    model = merge(graphdef, params)
    if not model.spec.interaction.alone(side):
        raise ValueError(f"in {model.spec.interaction.name} a {side} has no vector of its own: it sees the other side")
    read = context_side if side == "context" else model.spec.interaction.candidate_side
    return model.encode(batch, [read(batch)])[0]


class StoredPlaces(NamedTuple):
    """Where the rows of a batch take the stored states of their candidates from."""

    state: Array
    """[R, L] int32, row of the states for each candidate token; -1 elsewhere."""
    context: Array
    """[R, K] int32, slots of the context tokens of each row; L where there are fewer than K."""


def item_states(graphdef: nnx.GraphDef, params: Params, batch: PackedBatch) -> jax.Array:
    """What `split` computes of candidates alone: hidden states after its lower layers, [R, L, D] in the compute dtype.

    `batch` holds candidates only (`Layout.alone`).
    """
    return merge(graphdef, params).lower(batch.tokens, batch.positions, batch.token_types, batch.candidate)


def forward_stored(
    graphdef: nnx.GraphDef, params: Params, states: jax.Array, batch: PackedBatch, places: StoredPlaces
) -> jax.Array:
    """`forward` of a `split` model, without dropout, for candidates whose `item_states` are stored.

    `states` [S, D]: the states of all stored tokens. The lower layers compute the K context tokens of a row only.
    """
    return merge(graphdef, params)(batch, None, (states, places))


def merge(graphdef: nnx.GraphDef, params: Params) -> ClickModel:
    """The model with its parameters, inside of a jitted function or out of one; adapters are added to their kernels."""
    leaves = [
        (tuple(int(part) if part.isdigit() else part for part in path.split("/")), array)
        for path, array in lora.merged(params).items()
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


class ClickModel(nnx.Module):
    """Encoder, combination with the other features, and head.

    With towers the features of each side join the vector of that side; else all join the candidate's. A schema without
    text has no encoder: the head then reads what the features are combined to.
    """

    def __init__(self, spec: ModelSpec, compute: Compute, rngs: nnx.Rngs):
        self.spec = spec
        if spec.reads_text:
            self.bert = Bert(spec.encoder, compute.dtype, rngs, compute.attention, compute.remat, compute.dot)
        size = width = spec.encoder.hidden_size
        if spec.features:
            stddev = spec.encoder.initializer_range
            of = {side: tuple(f for f in spec.features if f.side == side) for side in ("context", "candidate")}
            self.features = nnx.Dict({side: Features(own, spec.encoder, rngs) for side, own in of.items()})
            if not spec.interaction.reads_context:
                of = {"candidate": of["context"] + of["candidate"]}
            make = COMBINATIONS[spec.combine]
            made: dict[str, Any] = {}
            for side, own in of.items():
                if own:
                    count = sum(not feature.along for feature in own) + spec.reads_text
                    made[side] = make(width, count, spec.combining, stddev, rngs)
            size = made["candidate"].size if "candidate" in made else width
            self.combine = nnx.Dict(made)
        if spec.experts:
            counts = tuple(outputs.count for outputs in spec.outputs)
            experts = Experts(spec.experts, spec.task_experts, spec.expert_levels)
            self.head: Any = MixtureHead(size, counts, experts, spec.head_dropout, rngs)
        else:
            head = PRODUCTS[spec.product] if spec.interaction.reads_context else Head
            self.head = head(size, spec.num_outputs, spec.head_dropout, rngs)

        if spec.weighs_tasks:
            self.log_variance = nnx.Param(jnp.zeros(len(spec.outputs)))  # read by the loss alone

    def __call__(
        self,
        batch: PackedBatch,
        dropout_key: jax.Array | None,
        stored: tuple[jax.Array, StoredPlaces] | None = None,
    ) -> jax.Array:
        """Logits [R, C, K] float32; `stored` as in `forward_stored`."""
        return self.logits(*self.read(batch, dropout_key, stored))

    def read(
        self,
        batch: PackedBatch,
        dropout_key: jax.Array | None,
        stored: tuple[jax.Array, StoredPlaces] | None = None,
    ) -> tuple[Sequence[Any], jax.Array | None]:
        """What the head reads, [R, C, D] each, and its key for dropout."""
        encoder_key, head_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        text: Sequence[jax.Array | None] = [None] * (1 + self.spec.interaction.reads_context)
        if self.spec.reads_text:
            text = self.encode(batch, self.spec.interaction.read(batch), encoder_key, stored)
        if self.spec.features:
            text = self.joined(batch, text, None if dropout_key is None else jax.random.fold_in(dropout_key, 2))
        return text, head_key

    def logits(self, read: Sequence[Any], head_key: jax.Array | None) -> jax.Array:
        """[R, C, K] float32 of what the head reads; of tasks that come after another, those of both."""
        if self.spec.balance and head_key is not None:  # in training
            copies, own = balanced(self.spec.balance, list(read)), []
            for copy, place in zip(copies, output_slices(self.spec.outputs), strict=True):
                own.append(self._logits(copy, head_key)[..., place])
            return jnp.concatenate(own, axis=-1)
        return self._logits(read, head_key)

    def _logits(self, read: Sequence[Any], head_key: jax.Array | None) -> jax.Array:
        logits, tasks = self.head(*read, head_key), self.spec.outputs
        places = {outputs.task: place for outputs, place in zip(tasks, output_slices(tasks), strict=True)}
        for outputs in tasks:
            if outputs.after:
                own, other = places[outputs.task], places[outputs.after]
                logits = logits.at[..., own].set(both(logits[..., other], logits[..., own]))
        return logits

    def joined(
        self, batch: PackedBatch, text: Sequence[jax.Array | None], dropout_key: jax.Array | None = None
    ) -> list[jax.Array]:
        """What the head reads, with the other features: [R, C, D] float32 for each of `text`."""
        keys = (None, None, None) if dropout_key is None else tuple(jax.random.split(dropout_key, 3))
        return self.combined(text, self.feature_vectors(batch, keys[:2]), keys[2])

    def combined(
        self, text: Sequence[jax.Array | None], vectors: dict[str, list[Any]], key: jax.Array | None = None
    ) -> list[jax.Array]:
        """As `joined`, of the vectors that `feature_vectors` gives."""
        out: list[Any] = []  # without text every side that is read has features
        for side, x in zip(vectors, text, strict=True):
            out.append(self.combine[side](x, vectors[side], key) if side in self.combine else x)
        return out

    def feature_vectors(
        self, batch: PackedBatch, keys: tuple[jax.Array | None, ...] = (None, None)
    ) -> dict[str, list[Any]]:
        """The vectors of all features, [R, C, D] float32 each, by the side that the head reads; `keys` of both sides
        for dropout."""
        at, of = batch.context_of, self.features
        context = {
            name: jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)
            for name, x in batch.context_features.items()
        }
        shared = self._shared(batch.candidate_features)
        vectors = {
            "context": of["context"](context, keys[0], shared),
            "candidate": of["candidate"](batch.candidate_features, keys[1], shared),
        }
        if not self.spec.interaction.reads_context:
            vectors = {"candidate": vectors["context"] + vectors["candidate"]}
        return vectors

    def _shared(self, candidate: dict[str, jax.Array]) -> dict[str, Shared]:
        """What features take of those that they are `like`, by name."""
        by_name, found = {feature.name: feature for feature in self.spec.features}, {}
        for feature in self.spec.features:
            if feature.like:
                other = by_name[feature.like]
                table = self.features[other.side].of(other.name).table
                single = other.side == "candidate" and other.values == 1
                found[feature.name] = Shared(table, table(candidate[other.name]) if single else None)
        return found

    def encode(
        self,
        batch: PackedBatch,
        sides: Sequence[Side],
        dropout_key: jax.Array | None = None,
        stored: tuple[jax.Array, StoredPlaces] | None = None,
    ) -> list[jax.Array]:
        """The vectors of each of these sides, [R, S, D] in the compute dtype."""
        layers, parts = len(self.bert.layers), (batch.segment, batch.candidate)
        at = None if self.spec.readout == "mean" else jnp.concatenate([side.slot for side in sides], axis=1)
        visibility = self.spec.interaction.layer_visibility(self.spec.split_layers, layers, *parts)
        if stored is None:
            text = (batch.tokens, batch.positions, batch.token_types)
            hidden = self.bert(*text, visibility, at=at, dropout_key=dropout_key)
        else:
            x = self._stored_states(batch, *stored)
            hidden = self.bert.run(x, visibility, range(self.spec.stored_layers, layers), at=at)
        return self._read(hidden, sides)

    def _read(self, hidden: jax.Array, sides: Sequence[Side]) -> list[jax.Array]:
        if self.spec.readout == "mean":
            return [segment_mean(hidden, side.member, side.wanted) for side in sides]
        hidden = self.bert.pool(hidden) if self.spec.readout == "pooled" else hidden
        ends = itertools.accumulate(side.slot.shape[1] for side in sides[:-1])
        return jnp.split(hidden, list(ends), axis=1)

    def lower(self, tokens, positions, token_types, part) -> jax.Array:
        """[R, L] int32 four times -> [R, L, D] after the lower layers; tokens of equal `part` see each other."""
        x = self.bert.embeddings(tokens, positions, token_types, None)
        visibility = (Visibility(part, part),) * self.spec.stored_layers
        return self.bert.run(x, visibility, range(self.spec.stored_layers))

    def _stored_states(self, batch: PackedBatch, states: jax.Array, places: StoredPlaces) -> jax.Array:
        """[R, L, D] after the lower layers: contexts computed, candidates looked up."""
        arrays = (batch.tokens, batch.positions, batch.token_types, batch.segment)
        contexts = self.lower(
            *(jnp.take_along_axis(x, places.context, axis=1, mode="fill", fill_value=0) for x in arrays)
        )
        x = jnp.take(states, places.state, axis=0, mode="fill", fill_value=0)
        return x.at[jnp.arange(len(x))[:, None], places.context].set(contexts, mode="drop")
