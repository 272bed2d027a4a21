"""The BERT encoder (Devlin et al. 2019) over packed rows; RoBERTa differs only in its configuration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from srsjax.errors import InputError
from srsjax.model.attention import Attend, Visibility, attend
from srsjax.model.dense import PRODUCT, Dense, Dot, contract, plain_dot, product
from srsjax.model.dropout import dropout
from srsjax.model.int8 import Quantized, lookup


def gelu(x: jax.Array) -> jax.Array:
    """x P(X <= x) for a standard normal X (Hendrycks and Gimpel 2016), float32.

    By erf, as PyTorch computes it: `jax.nn.gelu` takes erfc, which costs more than twice as much on CPU.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "relu": jax.nn.relu,
}


@dataclass(frozen=True)
class BertConfig:
    """Sizes and constants of an encoder. Raises InputError where they do not fit together."""

    vocab_size: int
    """Token embeddings V."""
    hidden_size: int = 128
    """Width D."""
    num_layers: int = 2
    """Layers."""
    num_heads: int = 4
    """Attention heads H; divides D, but where `head_size` is given."""
    intermediate_size: int = 512
    """Width of the feed-forward network."""
    max_positions: int = 512
    """Rows of the position table, the offset included."""
    type_vocab_size: int = 2
    """Token types."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in layer normalisation."""
    activation: str = "gelu"
    """Of the feed-forward network: `gelu` (exact), `gelu_new` or `gelu_pytorch_tanh` (the tanh form), `relu`."""
    hidden_dropout: float = 0.1
    """Dropout of embeddings and of what each sublayer adds."""
    attention_dropout: float = 0.1
    """Dropout of attention probabilities."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    position_offset: int = 0
    """Row of the position table that position 0 reads: 0 for BERT, pad id + 1 = 2 for RoBERTa."""
    has_pooler: bool = True
    """Whether there is a dense + tanh layer over the first token."""
    head_size: int = 0
    """Width of a head where heads were left out (`srsjax.runs.pruning`); 0: D / H."""

    def __post_init__(self):
        if self.num_heads < 1:
            raise InputError(f"num_heads {self.num_heads}, expected at least 1")
        if not self.head_size and self.hidden_size % self.num_heads:
            raise InputError(f"hidden_size {self.hidden_size}, expected a multiple of num_heads {self.num_heads}")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 0.99:
                raise InputError(f"{name} {getattr(self, name)}, expected at least 0 and less than 0.99")

    @property
    def head_width(self) -> int:
        """Width of a query, a key and a value of a head."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def attention_width(self) -> int:
        """Width A of all heads together: D, but where heads were left out."""
        return self.num_heads * self.head_width

    @property
    def longest(self) -> int:
        """Most tokens of a pair that the position table can number."""
        return self.max_positions - self.position_offset


KEPT = {"full": None, "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT)}
"""What the forward pass of a layer keeps for its gradient, by `model.remat`: nothing but its input, or the results of
its products with weights (attention's scores are computed again)."""


class Bert(nnx.Module):
    """Embeddings, layers and, where the configuration has one, the pooler."""

    def __init__(
        self,
        config: BertConfig,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        attention: Attend = attend,
        remat: str = "none",
        dot: Dot = plain_dot,
    ):
        self.remat = remat
        self.embeddings = Embeddings(config, dtype, rngs)
        self.layers = nnx.List([Layer(config, rngs, attention, dot) for _ in range(config.num_layers)])
        if config.has_pooler:
            self.pooler = Dense(config.hidden_size, config.hidden_size, config.initializer_range, rngs)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        token_types: jax.Array,
        visibility: Sequence[Visibility],
        *,
        at: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states after the last layer.

        Args:
          tokens, positions, token_types: [R, L] int32; positions count from 0. Tokens may be vectors as `Embeddings`
            takes them.
          visibility: of the L tokens, one for each layer.
          at: [R, C] int32, the slots to return; the last layer computes only these, with the same result.
          dropout_key: None for evaluation.

        Returns:
          [R, L, D], or [R, C, D] with `at`, in the compute dtype.
        """
        x = self.embeddings(tokens, positions, token_types, _site(dropout_key, 0))
        return self.run(x, visibility, range(len(self.layers)), at=at, dropout_key=dropout_key)

    def run(
        self,
        x: jax.Array,
        visibility: Sequence[Visibility],
        layers: range,
        *,
        at: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """[R, L, D] -> [R, L, D] by some of the layers; the last layer of all returns the slots `at` [R, C] only."""
        run: Callable = _run_layer
        if self.remat != "none":
            run = jax.checkpoint(_run_layer, policy=KEPT[self.remat], static_argnums=0)
        for i in layers:
            here = at if i == len(self.layers) - 1 else None
            x = run(*nnx.split(self.layers[i]), x, visibility[i], here, _site(dropout_key, i + 1))
        return x

    def pool(self, first: jax.Array) -> jax.Array:
        """[R, C, D] -> [R, C, D]: tanh(W x + b) of the pairs' first tokens."""
        return jnp.tanh(self.pooler(first))


@functools.partial(jax.jit, static_argnums=0)
def _run_layer(graphdef: nnx.GraphDef, state: nnx.State, x, visibility: Visibility, at, dropout_key) -> jax.Array:
    """A layer by itself. Layers are equal but for their weights, so that jit traces and differentiates one for all of
    them; XLA sees the calls as if they were written out."""
    return nnx.merge(graphdef, state)(x, visibility, at=at, dropout_key=dropout_key)


class Embeddings(nnx.Module):
    """Sum of token, position and token type embeddings, normalised."""

    def __init__(self, config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.token = Table(config.vocab_size, config, rngs)
        self.position = Table(config.max_positions, config, rngs)
        self.token_type = Table(config.type_vocab_size, config, rngs)
        self.norm = LayerNorm(config)
        self.position_offset = config.position_offset
        self.dropout_rate = config.hidden_dropout
        self.dtype = dtype

    def __call__(self, tokens, positions, token_types, dropout_key) -> jax.Array:
        """[R, L] int32 three times -> [R, L, D] in the compute dtype; `tokens` may be vectors [R, L, D] float32, in the
        place of those that the table has for them."""
        words = self.token(tokens) if tokens.ndim == 2 else tokens
        x = words + self.position(positions + self.position_offset) + self.token_type(token_types)
        return dropout(self.norm(x).astype(self.dtype), self.dropout_rate, dropout_key)


class Table(nnx.Module):
    """Embeddings of ids, [n, D] float32."""

    def __init__(self, size: int, config: BertConfig, rngs: nnx.Rngs):
        shape = (size, config.hidden_size)
        self.embedding = nnx.Param(config.initializer_range * jax.random.normal(rngs.params(), shape))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """[R, L] int32 -> [R, L, D] float32; NaN for an id outside the table, so that it cannot pass unseen."""
        table = self.embedding[...]
        if isinstance(table, Quantized):
            return lookup(table, ids)
        return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al. 2016) over the last axis, in float32."""

    def __init__(self, config: BertConfig):
        self.scale = nnx.Param(jnp.ones(config.hidden_size))
        self.bias = nnx.Param(jnp.zeros(config.hidden_size))
        self.eps = config.layer_norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[R, L, D] -> [R, L, D], dtype of `x`."""
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)


class Layer(nnx.Module):
    """Self-attention and feed-forward network, each added to its input and then normalised (post-norm)."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, attention: Attend, dot: Dot):
        self.attention = SelfAttention(config, rngs, attention, dot)
        self.mlp = FeedForward(config, rngs, dot)

    def __call__(self, x, visibility: Visibility, *, at: jax.Array | None, dropout_key) -> jax.Array:
        """[R, L, D] -> [R, L, D]; with `at` [R, C], only those slots: [R, C, D]."""
        x = self.attention(x, visibility, at=at, dropout_key=_site(dropout_key, 0))
        return self.mlp(x, _site(dropout_key, 1))


class SelfAttention(nnx.Module):
    """Attention sublayer. The middle axis of the fused kernel [D, 3, A] is query, key, value; heads are contiguous in
    its last axis, of width A, which can therefore be sharded by heads."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, attention: Attend, dot: Dot):
        self.qkv = QueryKeyValue(config, rngs, dot)
        self.out = Dense(config.attention_width, config.hidden_size, config.initializer_range, rngs, dot)
        self.norm = LayerNorm(config)
        self.hidden_dropout, self.attention_dropout = config.hidden_dropout, config.attention_dropout
        self.attend = attention

    def __call__(self, x, visibility: Visibility, *, at: jax.Array | None, dropout_key) -> jax.Array:
        """[R, L, D] -> [R, L, D] or, with `at` [R, C], [R, C, D]."""
        if at is None:
            backend = self.attend
            query, key, value = self.qkv(x, 0, 3)
        else:
            backend = attend  # the queries are too few for kernels and windows
            (key, value) = self.qkv(x, 1, 3)
            x = jnp.take_along_axis(x, at[:, :, None], axis=1)
            (query,) = self.qkv(x, 0, 1)
            visibility = visibility.at(at)
        seen = backend(query, key, value, visibility, self.attention_dropout, _site(dropout_key, 0))
        y = self.out(seen.reshape(*x.shape[:2], -1))
        return self.norm(x + dropout(y, self.hidden_dropout, _site(dropout_key, 1)))


class QueryKeyValue(nnx.Module):
    """The three projections of self-attention, kernel [D, 3, A] and bias [3, A]."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dot: Dot):
        shape = (config.hidden_size, 3, config.attention_width)
        self.kernel = nnx.Param(config.initializer_range * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(shape[1:]))
        self.num_heads = config.num_heads
        self.dot = dot

    def __call__(self, x: jax.Array, first: int, last: int) -> tuple[jax.Array, ...]:
        """[R, L, D] -> projections first..last-1 of (query, key, value), each [R, L, H, Dh]."""
        kernel, bias = self.kernel[:, first:last], self.bias[first:last]
        projected = product(contract("rld,dpe->rlpe", x, kernel, self.dot) + bias, x.dtype)
        heads = projected.reshape(*projected.shape[:3], self.num_heads, -1)
        return tuple(heads[:, :, p] for p in range(last - first))


class FeedForward(nnx.Module):
    """Feed-forward sublayer."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs, dot: Dot):
        self.up = Dense(config.hidden_size, config.intermediate_size, config.initializer_range, rngs, dot)
        self.down = Dense(config.intermediate_size, config.hidden_size, config.initializer_range, rngs, dot)
        self.norm = LayerNorm(config)
        self.activation = config.activation
        self.dropout_rate = config.hidden_dropout

    def __call__(self, x: jax.Array, dropout_key) -> jax.Array:
        """[R, L, D] -> [R, L, D]."""
        y = ACTIVATIONS[self.activation](self.up(x).astype(jnp.float32))
        y = self.down(y.astype(x.dtype))
        return self.norm(x + dropout(y, self.dropout_rate, dropout_key))


def _site(key: jax.Array | None, site: int) -> jax.Array | None:
    """The dropout key of a numbered part; None stays None."""
    return None if key is None else jax.random.fold_in(key, site)
