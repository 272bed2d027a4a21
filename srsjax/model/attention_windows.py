"""Attention in windows of a row, in plain XLA: where parts are short, most pairs of a row's tokens are strangers."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from srsjax.model.attention import Attend, Visibility, attend

QUERIES = 96
"""Tokens of a window's queries, at least, in rows of more than two such windows: smaller products cost more than they
save."""

STEP = 16
"""Windows begin and end at multiples of it: float32 elements of a vector register on CPU. Scores of any other width
took a fifth longer there."""

WORTH = 0.9
"""Largest share of a row's pairs of tokens at which windows are used."""


def plain(tokens: int, longest: int) -> Attend:
    """`attend`, in windows where they save something.

    Args:
      tokens: L, of a row.
      longest: most tokens of a part; 0 where it is unknown.
    """
    return Windows(longest) if longest and len(cut(tokens, longest)) > 1 else attend


def cut(tokens: int, longest: int) -> list[tuple[int, int, int, int]]:
    """Windows of a row of `tokens`: the slots of their queries, `begin:end`, and of the keys that these may see,
    `first:last`, where no part has more than `longest` tokens. A single one where more would save too little."""
    size = -(-tokens // max(2, tokens // QUERIES) // STEP) * STEP
    reach = -(-(longest - 1) // STEP) * STEP
    spans = [(begin, min(begin + size, tokens)) for begin in range(0, tokens, size)]
    windows = [(begin, end, max(0, begin - reach), min(tokens, end + reach)) for begin, end in spans]
    pairs = sum((end - begin) * (last - first) for begin, end, first, last in windows)
    return windows if pairs <= WORTH * tokens**2 else [(0, tokens, 0, tokens)]


@dataclass(frozen=True)
class Windows:
    """`attend` for rows whose parts are consecutive tokens, at most `longest`: a query is compared with the keys around
    it only. The same sums but for exact zeros, so equal to float tolerance; dropout has other bits.

    Queries that see a context besides their part take `attend`.
    """

    longest: int

    def __call__(self, query, key, value, visibility, dropout_rate=0.0, dropout_key=None) -> jax.Array:
        """As `attend`."""
        if visibility.query_context is not None:
            return attend(query, key, value, visibility, dropout_rate, dropout_key)
        # Or XLA would add up the windows' gradients of keys and values element by element, inside of what follows.
        query, key, value = jax.lax.optimization_barrier((query, key, value))
        seen = []
        for number, (begin, end, first, last) in enumerate(cut(key.shape[1], self.longest)):
            ids = Visibility(visibility.query[:, begin:end], visibility.key[:, first:last])
            bits = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
            operands = query[:, begin:end], key[:, first:last], value[:, first:last]
            seen.append(attend(*operands, ids, dropout_rate, bits))
        return jnp.concatenate(seen, axis=1)
