"""Approximate retrieval with faiss (extra `[ann]`), and what it loses against exact retrieval on the same vectors.

How well an index finds depends on the vectors: recall is measured on those of the run and its contexts, and never taken
from elsewhere. Below some hundred thousand items exact retrieval is as fast (`retrieval.ExactIndex`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from srsjax.errors import InputError
from srsjax.inference.retrieval import ExactIndex


@dataclass(frozen=True)
class Measured:
    """An index compared with exact retrieval."""

    kind: str
    queries: int
    top_k: int
    recall: float
    """Share of the exact top k that the index found, mean over the queries."""
    seconds_to_build: float
    seconds_a_query: float
    """Of the index, all queries in one call."""
    seconds_exact: float
    """Of exact retrieval, alike."""

    def __str__(self) -> str:
        return (
            f"{self.kind}: recall@{self.top_k} {self.recall:.4f} over {self.queries:,} contexts, "
            f"{1000 * self.seconds_a_query:.3f} ms a query (exact {1000 * self.seconds_exact:.3f} ms), "
            f"built in {self.seconds_to_build:.1f} s"
        )


class AnnIndex:
    """A faiss index for inner products. Safe to call from several threads.

    Graphs and centroids are made for distances, and find little by inner products of vectors that are long and near
    each other. So the index holds, of each item x, y = [x - m, sqrt(R^2 - |x - m|^2)] with the mean m and the largest
    length R of x - m, all of length R (Bachrach et al. 2014, "Speeding Up the Xbox Recommender System Using a Euclidean
    Transformation"). The y nearest to [q R / |q|, 0] are those of the largest q . x: m adds the same to all.
    """

    def __init__(self, vectors: np.ndarray, make: Callable[[np.ndarray], Any]):
        """`vectors` [V, D]; `make` builds a faiss index of Euclidean distances over [V, D + 1] float32."""
        self._vectors = vectors
        centred = np.asarray(vectors, np.float32)
        centred = centred - centred.mean(axis=0)
        squares = np.square(centred, dtype=np.float64).sum(axis=1)
        self._radius = float(np.sqrt(squares.max()))
        last = np.sqrt(np.maximum(squares.max() - squares, 0)).astype(np.float32)
        self._index = make(np.concatenate([centred, last[:, None]], axis=1))

    def __len__(self) -> int:
        return self._index.ntotal

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `ExactIndex.search`, but that items may be left out; -inf and -1 where fewer than k were found."""
        lengths = np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-30)
        turned = np.pad(queries * (self._radius / lengths), ((0, 0), (0, 1))).astype(np.float32)
        rows = self._index.search(turned, min(k, len(self)))[1].astype(np.int64)
        scores = np.einsum("qd,qkd->qk", queries, self._vectors[rows].astype(np.float32))
        scores = np.where(rows < 0, -np.inf, scores).astype(np.float32)
        order = np.lexsort((rows, -scores), axis=1)  # distances round otherwise than products
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def build_index(
    kind: str, vectors: np.ndarray, queries: np.ndarray, top_k: int, mesh: jax.sharding.Mesh, **settings: int
) -> tuple[AnnIndex, Measured]:
    """Builds an index and measures it.

    Args:
      kind: `hnsw`, a graph (Malkov & Yashunin 2018; settings `links`, `ef_construction`, `ef_search`), or `ivf`,
        lists around centroids (Jegou et al. 2011; settings `lists`, `probes`).
      vectors: [V, D] float32 or bfloat16.
      queries: [Q, D] float32 of real contexts, Q at least 1: what recall is measured on.
      top_k: at which recall is measured.
      mesh: on which exact retrieval runs.

    Raises:
      InputError: faiss is not installed, an unknown kind or setting, or no queries.
    """
    if kind not in KINDS:
        raise InputError(f"index: found {kind!r}, expected one of {', '.join(KINDS)}")
    make, defaults = KINDS[kind]
    unknown = sorted(set(settings) - set(defaults))
    if unknown or any(value < 1 for value in settings.values()):
        found = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise InputError(f"index {kind}: found {found}, expected numbers of at least 1 of {', '.join(defaults)}")
    if not len(queries):
        raise InputError("index: found no contexts, expected some real ones to measure recall on")
    started = time.perf_counter()
    index = AnnIndex(vectors, partial(make, _faiss(), settings=defaults | settings))
    built = time.perf_counter() - started
    exact = ExactIndex(vectors, mesh)
    (_, found), seconds = _timed(index, queries, top_k)
    (_, expected), seconds_exact = _timed(exact, queries, top_k)
    recall = np.mean([np.isin(own, other).mean() for own, other in zip(expected, found, strict=True)])
    return index, Measured(kind, len(queries), top_k, float(recall), built, seconds, seconds_exact)


def _timed(index: AnnIndex | ExactIndex, queries: np.ndarray, top_k: int):
    """The result, and seconds a query of a second call: the first one may compile."""
    index.search(queries, top_k)
    started = time.perf_counter()
    found = index.search(queries, top_k)
    return found, (time.perf_counter() - started) / len(queries)


def _hnsw(faiss, vectors: np.ndarray, settings: dict[str, int]):
    index = faiss.IndexHNSWFlat(vectors.shape[1], settings["links"])
    index.hnsw.efConstruction, index.hnsw.efSearch = settings["ef_construction"], settings["ef_search"]
    index.add(vectors)
    return index


def _ivf(faiss, vectors: np.ndarray, settings: dict[str, int]):
    lists = min(settings["lists"] or max(1, round(4 * len(vectors) ** 0.5)), len(vectors))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(vectors.shape[1]), vectors.shape[1], lists)
    index.train(vectors)
    index.add(vectors)
    index.nprobe = settings["probes"]
    return index


KINDS: dict[str, tuple[Callable, dict[str, int]]] = {
    "hnsw": (_hnsw, {"links": 32, "ef_construction": 200, "ef_search": 64}),
    "ivf": (_ivf, {"lists": 0, "probes": 16}),
}
"""What builds an index, and its settings; 0 lists are 4 sqrt(V)."""


def _faiss():
    try:
        import faiss
    except ImportError:
        raise InputError("index: faiss is not installed, expected the extra ann: pip install 'srsjax[ann]'") from None
    return faiss
