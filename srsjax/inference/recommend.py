"""Recommendations: retrieve or score, filter, diversify, explore.

retrieve   towers: the exact top k of the catalogue (or an index); other models score all items given
filter     items excluded for a context, and at most n for each value of a column
diversify  MMR or DPP over item vectors
explore    draws places at random, with the propensity of each draw
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srsjax.data.preparing.values import Value
from srsjax.errors import InputError
from srsjax.inference.catalogue_items import CatalogueItems
from srsjax.inference.rerank import DPP, MMR, EpsilonGreedy, PlackettLuce, within_limits
from srsjax.inference.retriever import Retriever

LEAST_POOL = 100
"""Candidates that are left for diversity and exploration to choose from, and at least four times what is asked."""


@dataclass(frozen=True)
class Wanted:
    """What `Scorer.recommend` was asked for."""

    top_k: int
    max_per: Mapping[str, int]
    diversity: MMR | DPP | None
    explore: EpsilonGreedy | PlackettLuce | None
    pool: int
    """Candidates after filters; the best of them are all that is shown."""

    @classmethod
    def of(cls, top_k: int, max_per, diversity, explore, pool: int, ranks_anew: bool) -> Wanted:
        """Raises InputError for what cannot be."""
        if top_k < 1:
            raise InputError(f"top_k: found {top_k}, expected at least 1")
        for name, limit in (max_per or {}).items():
            if limit < 1:
                raise InputError(f"max_per[{name!r}]: found {limit}, expected at least 1")
        if diversity is not None and explore is not None and not explore.keeps_order:
            raise InputError(
                "explore: found PlackettLuce with diversity, whose order its draws would lose; use EpsilonGreedy"
            )
        if pool and pool < top_k:
            raise InputError(f"pool: found {pool}, expected at least top_k {top_k}")
        reordered = diversity is not None or explore is not None or ranks_anew
        pool = pool or (max(LEAST_POOL, 4 * top_k) if reordered else top_k)
        return cls(top_k, dict(max_per or {}), diversity, explore, pool)


@dataclass(frozen=True)
class Ranked:
    """Candidates of one context, the best first."""

    rows: np.ndarray
    """[n] int64, places in the catalogue or in the items given."""
    utility: np.ndarray
    """[n] float64, by which they are ordered: the logit of one output, else the logarithm of a probability."""


class Filters:
    """Which items a context may get. `values`: of the column `name` for some rows."""

    def __init__(self, wanted: Wanted, excluded: Sequence[np.ndarray], values: Callable[[str], Sequence[Hashable]]):
        self._limits, self._pool, self.excluded = wanted.max_per, wanted.pool, excluded
        self._values = {name: values(name) for name in wanted.max_per}

    def apply(self, context: int, ranked: Ranked) -> Ranked:
        """The first `pool` candidates that pass."""
        kept = np.flatnonzero(~np.isin(ranked.rows, self.excluded[context]) & (ranked.rows >= 0))
        if self._limits:
            values = {name: [column[row] for row in ranked.rows[kept]] for name, column in self._values.items()}
            kept = kept[within_limits(values, self._limits, self._pool)]
        kept = kept[: self._pool]
        return Ranked(ranked.rows[kept], ranked.utility[kept])


def retrieve(retriever: Retriever, queries: np.ndarray, output: int, filters: Filters, pool: int) -> list[Ranked]:
    """The `pool` best items of each context that pass the filters, exactly as if all had been scored and filtered: as
    long as too few are left, more are retrieved.

    `queries` [N, D] float32, as `Retriever.queries` makes them.
    """
    count, found, todo = len(retriever.stored().vectors), {}, np.arange(len(queries))
    k = min(count, pool + max(map(len, filters.excluded), default=0))
    while len(todo):
        logits, rows = retriever.search(queries[todo], output, k)
        for number, context in enumerate(todo.tolist()):
            found[context] = filters.apply(context, Ranked(rows[number], logits[number].astype(np.float64)))
        if k == count:
            break
        todo = np.array([context for context in todo.tolist() if len(found[context].rows) < pool], np.int64)
        k = min(count, 4 * k)
    return [found[context] for context in range(len(queries))]


def order(utility: np.ndarray, rows: np.ndarray) -> Ranked:
    """Candidates by falling utility, equal ones as given."""
    utility = np.asarray(utility, np.float64)
    by = np.argsort(-utility, kind="stable")
    return Ranked(rows[by], utility[by])


def choose(ranked: Ranked, wanted: Wanted, vectors: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator):
    """Positions in `ranked` of the at most `top_k` shown, and their propensities. `vectors`: rows -> [n, D]."""
    places = np.arange(len(ranked.rows))
    if wanted.diversity is not None and len(places):
        most = len(places) if wanted.explore is not None else wanted.top_k
        places = wanted.diversity.order(ranked.utility, vectors(ranked.rows), most)
    if wanted.explore is None:
        return places[: wanted.top_k], np.ones(min(wanted.top_k, len(places)))
    drawn, propensity = wanted.explore.draw(ranked.utility[places], wanted.top_k, rng)
    return places[drawn], propensity


def excluded_rows(exclude: Sequence[Sequence] | None, contexts: int, items: CatalogueItems | None, given: int):
    """What `exclude` names, as rows: keys of the catalogue, or positions where items are given. A key that the
    catalogue does not have excludes nothing: items bought once may have left it.

    Raises InputError where there is not one list for each context, or a position is not one of the items.
    """
    if exclude is None:
        return [np.zeros(0, np.int64)] * contexts
    if len(exclude) != contexts or any(isinstance(each, str | Mapping) for each in exclude):
        raise InputError(
            f"exclude: found {len(exclude)} entries, expected a list of items for each of {contexts} contexts"
        )
    if items is not None:
        return [items.rows(list(each)) for each in exclude]
    for each in exclude:
        for position in each:
            if not isinstance(position, int | np.integer) or not 0 <= position < given:
                raise InputError(f"exclude: found {position!r}, expected positions of the {given} items given")
    return [np.asarray(list(each), np.int64) for each in exclude]


def column_of(items: Sequence[Value], catalogue: CatalogueItems | None, name: str) -> list[Any]:
    """The values of a column of items that are given, their own or the catalogue's."""
    if catalogue is not None:
        return catalogue.values_of(items, name)
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping) or name not in item:
            raise InputError(f"max_per: item number {number} has no {name!r}, expected a mapping with it")
    return [item[name] for item in items]  # type: ignore[index]
