"""What a `Scorer` does beyond scoring the pairs given to it: vectors of both towers, retrieval, recommendation."""

from __future__ import annotations

import abc
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from srsjax.config import TrainConfig
from srsjax.data.batches.layout import BatchShape
from srsjax.data.preparing.encode import Encoder
from srsjax.data.preparing.one_side import encode_candidates, encode_contexts
from srsjax.data.preparing.values import Value
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError
from srsjax.inference.catalogue_items import CatalogueItems, listed, warn_unknown
from srsjax.inference.item_vectors import ItemVectors, check_catalogue, zeros
from srsjax.inference.recommend import Filters, Ranked, Wanted, choose, column_of, excluded_rows, order, retrieve
from srsjax.inference.rerank import DPP, MMR, EpsilonGreedy, PlackettLuce
from srsjax.inference.retrieval import ExactIndex
from srsjax.inference.retriever import Retriever
from srsjax.inference.warm_up import padding
from srsjax.objectives.objective import Objective
from srsjax.runs.session import Session
from srsjax.runs.shapes import Shape

WARM_TOP = 256
"""Items retrieved at a time up to which `warm_up` compiles: a pool of 100 and as many items excluded."""
PAIRS_AT_ONCE = 1 << 18
"""Pairs of contexts with all items that are scored in one pass."""


class Recommender(abc.ABC):
    """The part of `Scorer` that knows all items."""

    config: TrainConfig
    session: Session
    params: dict[str, jax.Array]
    encoder: Encoder
    shape: BatchShape

    def __init__(self) -> None:
        self._made: tuple[Encoder, Retriever | None, CatalogueItems | None] | None = None
        self._making = threading.RLock()

    @abc.abstractmethod
    def logits(self, split: Split, items: Items) -> np.ndarray:
        """Logits [M, K] of the candidates of any split in its order, calibrated as the run says."""

    @abc.abstractmethod
    def _objective(self, name: str) -> tuple[Objective, slice]: ...

    @abc.abstractmethod
    def _score_of(self, name: str, logits: np.ndarray) -> np.ndarray: ...

    @property
    @abc.abstractmethod
    def _calibrates_slices(self) -> bool: ...

    @abc.abstractmethod
    def _calibrated(self, task: str, logits: np.ndarray) -> np.ndarray: ...

    @abc.abstractmethod
    def _logits(self, contexts: Sequence[Value], candidates: Sequence[Sequence[Value]]) -> np.ndarray: ...

    # ------------------------------------------------------------------------------------------ vectors of towers

    def item_vectors(self, folder: str | Path | None = None, dtype: str = "float32") -> ItemVectors:
        """The vectors of all items of the catalogue (towers), for retrieval.

        Args:
          folder: where they are kept, memory-mapped: those of items whose text and features did not change are read
            from there, the others computed, and the folder replaced. Empty or absent at first; None keeps none.
          dtype: `float32`, or `bfloat16` for half the space, with which scores are off by about 2^-9.

        Returns:
          `vectors` [V, D] in the order of the catalogue, and how many were `computed`.

        Raises:
          InputError: not towers, items that are not the rows of a catalogue, or a folder of another checkpoint's.
        """
        return self._retriever().store(folder, dtype)

    def context_vectors(self, contexts: Sequence[Value], task: str = "") -> np.ndarray:
        """The vector of each context (towers) for one task, [N, D] float32, with the head's scales taken in: its inner
        product with an item's of `item_vectors`, plus `output_bias(task)`, is the logit of the pair before calibration.

        Raises InputError where the model is no towers, for a multiclass task or one that comes after another.
        """
        return self._retriever().queries(listed(contexts), self._output(task))

    def output_bias(self, task: str = "") -> float:
        """What is added to the inner product of both vectors of towers, for one task; errors as in
        `context_vectors`."""
        return float(self._retriever().towers.bias[self._output(task)])

    def retrieve(self, contexts: Sequence[Value], top_k: int = 10, task: str = "") -> list[list[dict[str, Any]]]:
        """The `top_k` items of the catalogue for each context (towers), exactly, unless an approximate index was put in
        (`use_index`); equal ones in the order of the catalogue. The first call computes the vectors of all items.

        Returns:
          For each context `[{"corpus_id": row of the catalogue, "key": ..., "score": ...}, ...]`, best first. A score
          is that of `predict`.

        Raises:
          InputError: as `item_vectors` and `context_vectors`.
        """
        found: list[Any] = self.recommend(listed(contexts), top_k=top_k, task=task)
        return [[{name: each[name] for name in ("corpus_id", "key", "score")} for each in own] for own in found]

    def use_index(self, kind: str, contexts: Sequence[Value], top_k: int = 10, task: str = "", **settings: Any):
        """Retrieves with an approximate index of faiss (extra `[ann]`) from now on; see `ann.build_index`.

        Args:
          kind: `hnsw` or `ivf`.
          contexts: some real ones, whose exact top `top_k` the index's are compared with.

        Returns:
          An `ann.Measured`: recall, and seconds a query of both.
        """
        from srsjax.inference.ann import build_index

        retriever, output = self._retriever(), self._output(task)
        vectors, queries = retriever.stored(), retriever.queries(listed(contexts), output)
        retriever.index, measured = build_index(kind, vectors.vectors, queries, top_k, self.session.mesh, **settings)
        return measured

    # ------------------------------------------------------------------------------------------ recommendation

    def recommend(
        self,
        contexts: Sequence[Value] | Value,
        items: Sequence[Value] | None = None,
        top_k: int = 10,
        *,
        task: str = "",
        exclude: Sequence[Sequence] | None = None,
        max_per: Mapping[str, int] | None = None,
        ranker: Recommender | None = None,
        diversity: MMR | DPP | None = None,
        vectors: np.ndarray | None = None,
        explore: EpsilonGreedy | PlackettLuce | None = None,
        pool: int = 0,
        seed: int | np.random.Generator = 0,
    ) -> list[list[dict[str, Any]]] | list[dict[str, Any]]:
        """The best items for each context (a user, a query): retrieved, filtered, diversified, explored.

        Args:
          contexts: N contexts as in `predict`, or a single one.
          items: what to choose from, as in `rank`; None is the whole catalogue, of which towers retrieve the best
            exactly and other models score every item.
          top_k: most items of a list; fewer where the filters leave fewer.
          task: by which they are ranked; `task/class` for a class, where not retrieved from a catalogue.
          exclude: for each context the items it must not get (bought before, out of stock): keys of the catalogue, or
            positions in `items` where these are given.
          max_per: at most so many with the same value of a column of the catalogue or of the items, `{"category": 2}`.
          ranker: another run's scorer, which orders the pool anew (by its own task of the same name) after the filters.
          diversity: `MMR` or `DPP`, of the vectors of towers, or of `vectors`.
          vectors: [V, D], one for each item to choose from, instead of those of towers.
          explore: `EpsilonGreedy` or `PlackettLuce`, which draw places at random.
          pool: candidates left after filters, from which diversity, exploration and `ranker` choose; 0 is at least 100
            and four times `top_k`.
          seed: of the draws; one number gives the same draws in every call. Pass a `numpy` generator to go on drawing.

        Returns:
          For each context (of a single one just its list) `[{"corpus_id": row of the catalogue or position in `items`,
          "key": key in the catalogue (not with `items`), "score": ..., "propensity": ...}, ...]`. A propensity is the
          probability that the item was drawn for its place given the places before; 1 without exploration.

        Raises:
          InputError: settings out of range, an unknown column, no vectors for `diversity`, or as `rank`.
        """
        single = isinstance(contexts, str | Mapping) or contexts is None
        all_contexts: list[Value] = [{} if contexts is None else contexts] if single else list(contexts)  # type: ignore
        wanted = Wanted.of(top_k, max_per, diversity, explore, pool, ranker is not None)
        rng = np.random.default_rng(seed)
        given = None if items is None else list(items)
        catalogue = self._catalogue() if given is None or self.encoder.items is not None else None
        size = len(catalogue) if given is None and catalogue is not None else len(given or ())
        excluded = excluded_rows(exclude, len(all_contexts), catalogue if given is None else None, size)

        def values(name: str) -> list:
            found = column_of(given, catalogue, name) if given is not None else self._catalogue().column(name)
            return [tuple(value) if isinstance(value, list) else value for value in found]

        if ranker is None and given is None and self._calibrates_slices:
            ranker = self  # other maps for other items: the vectors' order is not that of the scores
        filters = Filters(wanted, excluded, values)
        out = []
        for number, ranked in enumerate(self._ranked(all_contexts, given, task, filters, wanted)):
            context = all_contexts[number]
            if ranker is not None and len(ranked.rows):
                own = [
                    given[row] if given is not None else self._catalogue().value(row) for row in ranked.rows.tolist()
                ]
                found = order(ranker._utility(task, ranker._logits([context], [own])), ranked.rows)
                scores = ranker._scores(task, found.utility)
            else:
                found, scores = ranked, self._scores(task, ranked.utility)
            places, propensity = choose(found, wanted, lambda rows: self._vectors_of(rows, given, vectors), rng)
            out.append(self._entries(found.rows[places], scores[places], propensity, given is None))
        return out[0] if single else out

    def _ranked(
        self, contexts: list[Value], given: list[Value] | None, task: str, filters: Filters, wanted: Wanted
    ) -> Iterator[Ranked]:
        """The filtered pool of each context."""
        if given is not None:
            for number, context in enumerate(contexts):
                utility = self._utility(task, self._logits([context], [given])) if given else np.zeros(0)
                yield filters.apply(number, order(utility, np.arange(len(given))))
        elif self.session.spec.interaction.reads_context:
            retriever, output = self._retriever(), self._output(task)
            queries = retriever.queries(contexts, output)
            for ranked in retrieve(retriever, queries, output, filters, wanted.pool):
                yield replace(ranked, utility=self._calibrated(task, ranked.utility))
        else:
            count = len(self._catalogue())
            step = max(1, PAIRS_AT_ONCE // count)
            for start in range(0, len(contexts), step):
                logits = self._all_logits(contexts[start : start + step])
                for number, own in enumerate(logits.reshape(-1, count, logits.shape[1]), start):
                    yield filters.apply(number, order(self._utility(task, own), np.arange(count)))

    def _all_logits(self, contexts: list[Value]) -> np.ndarray:
        """Logits [N * V, K] of every context with every item of the catalogue, encoded once."""
        check_catalogue(self.session.spec, self.encoder.sources)
        encoded, count = encode_contexts(self.encoder, contexts), len(self._catalogue())
        warn_unknown(encoded.unknown, stacklevel=5)
        items, pairs = self.encoder.items, len(contexts) * count
        assert items is not None
        absent = [each for each in self.config.schema.candidate if each.name not in items.features]
        labels = np.zeros((pairs, len(self.config.schema.tasks)), np.float32)
        split = replace(
            encoded.split,
            candidates=np.arange(len(contexts) + 1) * count,
            item=np.tile(np.arange(count), len(contexts)),
            labels=labels,
            weights=labels,
            example=np.arange(pairs),
            candidate_features=zeros(absent, pairs),
        )
        return self.logits(split, items)

    def _vectors_of(self, rows: np.ndarray, given: list[Value] | None, vectors: np.ndarray | None) -> np.ndarray:
        """[n, D], what diversity compares."""
        if vectors is not None:
            return np.asarray(vectors)[rows]
        if not self.session.spec.interaction.reads_context:
            raise InputError(
                f"diversity: model.interaction {self.session.spec.interaction.name!r} has no vectors of items; pass "
                "`vectors`, such as those of a run of towers"
            )
        if given is None:
            return self._retriever().stored().vectors[rows]
        return self._retriever().towers.items(encode_candidates(self.encoder, [given[row] for row in rows.tolist()]))

    def _entries(self, rows, scores, propensity, keyed: bool) -> list[dict[str, Any]]:
        keys = self._catalogue().keys() if keyed else None
        return [
            {"corpus_id": int(row)}
            | ({"key": keys[row]} if keys is not None else {})
            | {"score": float(score), "propensity": float(probability)}
            for row, score, probability in zip(rows, scores, propensity, strict=True)
        ]

    # ------------------------------------------------------------------------------------------ tasks

    def _output(self, task: str) -> int:
        """The number of the one logit of a task that is an inner product."""
        made, own = self._objective(task)
        if own.stop - own.start > 1 or (made.known and made.known.after):
            raise InputError(
                f"task: {made.task.name!r} is not one inner product of two vectors (it is multiclass, or comes after "
                "another task); name another one"
            )
        return own.start

    def _utility(self, task: str, logits: np.ndarray) -> np.ndarray:
        """By what items are ordered, [M] float64, of logits [M, K]: the logit, which tells apart what a float32
        probability does not; the logarithm of a class's probability."""
        _, own = self._objective(task.partition("/")[0])
        if own.stop - own.start == 1:
            self._score_of(task, logits[:0])
            return logits[:, own.start].astype(np.float64)
        return np.log(np.maximum(self._score_of(task, logits), 1e-38).astype(np.float64))

    def _scores(self, task: str, utility: np.ndarray) -> np.ndarray:
        """The scores of `predict`, [n], of utilities."""
        made, own = self._objective(task.partition("/")[0])
        if own.stop - own.start == 1:
            return made.columns(utility.astype(np.float32)[:, None])["score"]
        return np.exp(utility)

    # ------------------------------------------------------------------------------------------ made once

    def _retriever(self) -> Retriever:
        with self._making:
            encoder, retriever, catalogue = self._current()
            if retriever is None:
                retriever = Retriever(self.session, self.params, encoder, self.shape)
                self._made = encoder, retriever, catalogue
            return retriever

    def _warm_up_retrieval(self, shapes: Sequence[Shape]) -> None:
        """Compiles what retrieval runs, where the vectors of items are there."""
        retriever = self._current()[1]
        if retriever is not None and retriever.vectors is not None:
            for rows, tokens in shapes:
                retriever.towers.warm_up(padding(self.config.schema, self.shape, rows, tokens))
            if isinstance(retriever.index, ExactIndex):
                retriever.index.warm_up(WARM_TOP)

    def _catalogue(self) -> CatalogueItems:
        with self._making:
            encoder, retriever, catalogue = self._current()
            if catalogue is None:
                catalogue = CatalogueItems(encoder)
                self._made = encoder, retriever, catalogue
            return catalogue

    def _current(self) -> tuple[Encoder, Retriever | None, CatalogueItems | None]:
        """What was made for the encoder there is now: another one has other items."""
        if self._made is None or self._made[0] is not self.encoder:
            self._made = self.encoder, None, None
        return self._made
