"""What a request is made of: pairs or one pair, candidates for each context or for all, and the ranking it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srsjax.config import Schema
from srsjax.data.preparing.encode import Value
from srsjax.errors import InputError


def is_single(schema: Schema, pairs: Sequence) -> bool:
    """A single pair holds its two sides, not pairs (without context features it is one candidate)."""
    if not schema.context:
        return isinstance(pairs, str | Mapping)
    sides = str | Mapping | None  # None is refused where the side is read
    return len(pairs) == 2 and all(isinstance(side, sides) for side in pairs)


def sides(schema: Schema, pairs: Sequence) -> tuple[list[Value], list[Value]]:
    """The contexts and the candidates of pairs; where the schema has no context features, pairs are candidates."""
    if not schema.context:
        return [{}] * len(pairs), list(pairs)
    for number, pair in enumerate(pairs, 1):
        if isinstance(pair, str | Mapping) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputError(f"pairs: found {pair!r} as number {number}, expected a pair (context, candidate)")
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def lists(contexts: Sequence[Value], candidates: list) -> list[list[Value]]:
    """A list of candidates for each context."""
    if all(isinstance(each, str | Mapping) for each in candidates):
        return [candidates] * len(contexts)
    if len(candidates) != len(contexts):
        raise InputError(
            f"candidates: found {len(candidates)} lists for {len(contexts)} contexts, expected one for each, or "
            "one list of candidates for all"
        )
    for number, each in enumerate(candidates, 1):
        if isinstance(each, str | Mapping) or not isinstance(each, Sequence):
            raise InputError(f"candidates: found {each!r} as number {number}, expected a list of candidates")
    return [list(each) for each in candidates]


def best_first(scores: np.ndarray, candidates: list[Value], top_k: int | None, return_documents: bool) -> list[dict]:
    """What `rank` returns of the scores [M] of its candidates."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    ranked: list[dict[str, Any]] = [{"corpus_id": int(i), "score": float(scores[i])} for i in order]
    if return_documents:
        for entry in ranked:
            entry["text"] = candidates[entry["corpus_id"]]
    return ranked
