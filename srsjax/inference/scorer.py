"""The scorer: a finished run as a function from pairs to probabilities, and from candidates to a ranking.

Shapes and conventions are those of sentence-transformers' `CrossEncoder`: `predict` takes one pair or a list of them
and gives a float or an array; `rank` gives dicts with `corpus_id` and `score`, best first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from srsjax.config import Mesh, TrainConfig
from srsjax.data.batches.layout import BatchShape
from srsjax.data.preparing.encode import Encoded, Encoder, load_encoder
from srsjax.data.preparing.new_items import for_scoring
from srsjax.data.preparing.values import Value
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError, did_you_mean
from srsjax.inference.item_store import ItemStore, build_item_store
from srsjax.jax_version import check_jax
from srsjax.objectives import predict
from srsjax.runs.evaluation import batch_shape, predict_split, request_rows, scoring_batches
from srsjax.runs.predict import predict as predict_batches
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Session, load_run
from srsjax.runs.sharding import row_share
from srsjax.runs.spec import layout_of


class Scorer:
    """The best checkpoint of a run, its encoder of rows and its jitted batch function.

    Whatever a run's training did with keys that are not in a catalogue (`Catalogue.unknown`), here they have a score:
    a new item (or user) has the columns that are given with it, if these are all that the features read from the
    catalogue, and each feature's value for a missing one if not. In histories unknown items are left out.
    """

    def __init__(
        self, config: TrainConfig, session: Session, params: dict[str, jax.Array], encoder: Encoder, shape: BatchShape
    ):
        self.config, self.session, self.params, self.encoder, self.shape = config, session, params, encoder, shape
        self.stored: ItemStore | None = None
        """The items' states after the lower layers of `split`, once `store_items` has computed them."""
        self.unknown: Counter[str] = Counter()
        """By catalogue, how many keys `predict` and `rank` were given that are not in it."""

    @classmethod
    def load(
        cls,
        run: str | Path,
        mesh: Mesh | None = None,
        config: TrainConfig | None = None,
        encoder: Encoder | None = None,
    ) -> Scorer:
        """Loads a run folder.

        Args:
          run: folder written by `srsjax.train`.
          mesh: devices to score on; by default all of them, rows divided (`Mesh()`), whatever the run was trained on.
          config: the run's config with changes, such as other catalogue files or another mesh; by default as it is.
          encoder: what reads rows, by default one that takes unknown keys as said above.

        Raises:
          InputError: not a run folder, a run that is not finished, or catalogue files that are not there.
        """
        check_jax()
        folder = RunFolder(run)
        trained = folder.config()
        if mesh is None:  # that of the training machine says nothing about this one, unless it was asked for anew
            mesh = config.mesh if config is not None and config.mesh != trained.mesh else Mesh()
        config = replace(config or trained, mesh=mesh)
        encoder = encoder or load_encoder(for_scoring(config), folder.path)
        session, params = load_run(folder, config)
        shape = batch_shape(config, session.spec, layout_of(session.spec, encoder.text), session.mesh)
        return cls(config, session, params, encoder, shape)

    def predict(self, pairs: Sequence, batch_size: int = 0) -> np.ndarray | float:
        """Probabilities of the first task, or of every task where there are several, in the order of `schema.tasks`.

        Args:
          pairs: `(context, candidate)` pairs, or a single such pair. Each side is a text, where that side of the
            schema has one Text feature, or a mapping of column names to values (`{"query": ...}`, `{"item_id": 7}`,
            `{"title": ...}`). Where the schema has no context features, plain candidates instead of pairs. None in a
            mapping is a missing value.
          batch_size: most pairs encoded at a time; 0 means all (the device batch is fixed by the run).

        Returns:
          [n] float32 for n pairs, [n, T] with T > 1 tasks; for a single pair a float, or [T].

        Raises:
          InputError: a missing column, or a value that is not what was said above.
        """
        single = self._is_single(pairs)
        pairs = [pairs] if single else list(pairs)
        contexts, candidates = self._sides(pairs)
        size = batch_size or max(len(pairs), 1)
        parts = [
            self._probabilities(contexts[at : at + size], [[c] for c in candidates[at : at + size]])
            for at in range(0, len(pairs), size)
        ]
        tasks = len(self.config.schema.tasks)
        scores = np.concatenate(parts) if parts else np.zeros((0, tasks), np.float32)
        scores = scores[:, 0] if tasks == 1 else scores
        if single:
            return float(scores[0]) if tasks == 1 else scores[0]
        return scores

    def rank(
        self,
        context: Value | None,
        candidates: Sequence[Value],
        top_k: int | None = None,
        return_documents: bool = False,
        task: str = "",
    ) -> list[dict]:
        """The candidates of one context by falling probability of one task; equal ones in the order given.

        Args:
          context: as in `predict`; `None` where the schema has no context features.
          candidates: N candidates, as in `predict`.
          top_k: how many to return, at least 1; None means all.
          return_documents: whether each dict also holds the candidate, as `text`.
          task: name of the task; by default the first of `schema.tasks`.

        Returns:
          `[{"corpus_id": position in candidates, "score": probability, ...}, ...]`, best first.

        Raises:
          InputError: as `predict`; a `top_k` below 1, or a task that the run has not.
        """
        number = self._task(task)
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k: found {top_k}, expected at least 1, or None for all candidates")
        if context is None and self.config.schema.context:
            raise InputError("context: found None, expected a text or a mapping; the run's schema has context features")
        candidates = list(candidates)
        if not candidates:
            return []
        scores = self._probabilities([{} if context is None else context], [candidates])[:, number]
        order = np.argsort(-scores, kind="stable")[:top_k]
        ranked = [{"corpus_id": int(i), "score": float(scores[i])} for i in order]
        if return_documents:
            for entry in ranked:
                entry["text"] = candidates[entry["corpus_id"]]
        return ranked

    def warm_up(self, log: Callable[[str], None] = print) -> list[int]:
        """Compiles all that later calls of `predict` and `rank` run, so that no request waits for it.

        A request is computed in batches of L token slots a row, and of as many rows as `evaluate` and `score` take
        (`batch.eval_rows`), or, where one batch holds it, of a power of two times the devices that divide rows. All of
        these are compiled, and run once on empty rows; with stored items, call `store_items` first, and the programs
        that look items up are compiled for every length of contexts as well (eight times as many). With several
        processes all of them call it, and there is one number of rows. `log` is told what was compiled.

        Returns the numbers of rows R, in rising order.
        """
        chunk = self.encoder.encode_missing()
        ((batch, numbers),) = scoring_batches(chunk.split, chunk.items, self.shape, row_share(self.session.mesh))
        steps: list[tuple[Callable, Callable]] = [(self.session.predict_step, lambda batch: batch)]
        if self.stored is not None:
            widths = self.stored.context_slots(self.shape.tokens)
            steps += [(self.stored.step, partial(self.stored.without_items, slots=slots)) for slots in widths]
        sizes = request_rows(self.shape, self.session.mesh)
        for rows in sizes:
            cut = jax.tree.map(lambda array, rows=rows: array[:rows], (batch, numbers))
            for step, complete in steps:
                completed = [(complete(cut[0]), cut[1])]
                predict_batches(step, self.params, completed, self.session.mesh, (1, self.shape.outputs))
        stored = f", and {len(steps) - 1} times that with stored items" if self.stored is not None else ""
        log(f"compiled for {', '.join(map(str, sizes))} rows x {self.shape.tokens} tokens{stored}")
        return sizes

    def logits(self, split: Split, items: Items, progress: Callable[[int], None] = lambda count: None) -> np.ndarray:
        """Logits [M, K] float32 of the candidates of any split, in its order."""
        step, complete = self.session.predict_step, lambda batch, numbers: batch
        if self.stored is not None and items is self.encoder.items:
            step, complete = self.stored.step, partial(self.stored.complete, np.asarray(split.item))
        return predict_split(step, self.params, split, items, self.shape, self.session.mesh, progress, complete)

    def logits_of(self, encoded: Encoded) -> np.ndarray:
        """Logits [M, K] float32 of the candidates of encoded rows, new items among them, in the order of the rows."""
        parts = [encoded] if encoded.new is None else [encoded, encoded.new]
        logits = [self.logits(part.split, part.items) for part in parts]
        return np.concatenate(logits)[np.argsort(np.concatenate([part.split.example for part in parts]))]

    @property
    def can_store_items(self) -> bool:
        """Whether the model computes candidates alone at first, and they are the rows of a catalogue."""
        return self.session.spec.interaction.stores_items and self.encoder.items is not None

    def store_items(self) -> ItemStore:
        """Computes the lower layers of every item of the catalogue once; later calls look them up.

        Raises InputError where there is nothing to store (see `can_store_items`).
        """
        if not self.can_store_items:
            raise InputError(
                f"model.interaction is {self.session.spec.interaction.name!r}, candidates "
                f"{'are' if self.encoder.items is not None else 'are not'} rows of a catalogue; only 'split' with a "
                f"catalogue has item states to store"
            )
        self.stored = build_item_store(self.session, self.params, self.encoder.items, self.shape)
        return self.stored

    def _probabilities(self, contexts: Sequence[Value], candidates: Sequence[Sequence[Value]]) -> np.ndarray:
        encoded = self.encoder.encode_values(contexts, candidates)
        self.unknown += encoded.unknown
        return predict(self.config.schema.tasks, self.logits_of(encoded)).astype(np.float32)

    def _task(self, name: str) -> int:
        """The number of a task; the first where none is named."""
        names = [task.name for task in self.config.schema.tasks]
        if name and name not in names:
            raise InputError(f"task: found {name!r}, expected one of {', '.join(names)}{did_you_mean(name, names)}")
        return names.index(name) if name else 0

    def _is_single(self, pairs) -> bool:
        """A single pair holds its two sides, not pairs (without context features it is one candidate)."""
        if not self.config.schema.context:
            return isinstance(pairs, str | Mapping)
        sides = str | Mapping | None  # None is refused where the side is read
        return len(pairs) == 2 and all(isinstance(side, sides) for side in pairs)

    def _sides(self, pairs: list) -> tuple[list[Value], list[Value]]:
        if not self.config.schema.context:
            return [{}] * len(pairs), pairs
        for number, pair in enumerate(pairs, 1):
            if isinstance(pair, str | Mapping) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"pairs: found {pair!r} as number {number}, expected a pair (context, candidate)")
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
