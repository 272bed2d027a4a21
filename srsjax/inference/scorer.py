"""The scorer: a finished run as a function from pairs to probabilities, and from candidates to a ranking.

Shapes and conventions are those of sentence-transformers' `CrossEncoder`: `predict` takes one pair or a list of them
and gives a float or an array; `rank` gives dicts with `corpus_id` and `score`, best first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import jax
import numpy as np

from srsjax.config import Dtype, Mesh, TrainConfig, Unknown
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import BatchShape
from srsjax.data.preparing.encode import Encoded, Encoder, Value, load_encoder
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError, did_you_mean
from srsjax.inference import requests
from srsjax.inference.catalogue_items import listed, warn_unknown
from srsjax.inference.cross_encoder import is_hugging_face, load_cross_encoder
from srsjax.inference.explains import Explains
from srsjax.inference.item_store import ItemStore, build_item_store
from srsjax.inference.recommender import Recommender
from srsjax.inference.warm_up import padding
from srsjax.jax_version import check_jax
from srsjax.model.attention_choice import NONE
from srsjax.objectives import predict
from srsjax.objectives.losses import Objectives
from srsjax.objectives.objective import Objective
from srsjax.runs.calibration import Calibration, for_all_negatives
from srsjax.runs.evaluation import predict_split
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Quantize, Session, for_scoring, load_run
from srsjax.runs.shapes import Shape, batch_shape, request_shapes
from srsjax.runs.sharding import put_batch
from srsjax.runs.spec import layout_of


class Scorer(Recommender, Explains):
    """The best checkpoint of a run, its encoder of rows and its jitted batch function.

    `predict`, `rank`, `rank_many`, `weights`, `explain`, `context_vectors`, `retrieve` and `recommend` may be called
    from several threads at once, and give what they give one after another. Calls that change what the scorer holds
    (`store_items`, `item_vectors`, `use_index`, another `encoder`) may not overlap with others; `warm_up` may.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        params: dict[str, jax.Array],
        encoder: Encoder,
        shape: BatchShape,
        calibration: Calibration = Calibration(),
    ):
        super().__init__()
        self.config, self.session, self.params, self.encoder, self.shape = config, session, params, encoder, shape
        self.calibration = calibration
        self.stored: ItemStore | None = None
        """The items' states after the lower layers of `split`, once `store_items` has computed them."""

    @classmethod
    def load(
        cls,
        run: str | Path,
        mesh: Mesh | None = None,
        config: TrainConfig | None = None,
        unknown: Unknown | None = None,
        devices: Sequence[jax.Device] | None = None,
        max_length: int = 0,
        dtype: Dtype | None = None,
        quantize: Quantize = "none",
        raw: bool = False,
    ) -> Scorer:
        """Loads a run folder, or a cross-encoder of Hugging Face.

        Args:
          run: folder written by `srsjax.train`; or a folder or hub name of a `...ForSequenceClassification` model of
            BERT's or RoBERTa's family, for pairs of texts (`query`, `document`).
          mesh: devices to score on; by default all of them, rows divided (`Mesh()`), whatever the run was trained on.
          unknown: what becomes of a key that is not in its catalogue: `error`, `missing` (its features are filled as
            missing ones are, with a warning), or None for what the run's config says, where `error` is the default. A
            new item is given by its own columns (`{"title": ...}`), which needs neither.
          quantize: `int8` computes with 8-bit weights, all that may be; a run that `srsjax.compress` made is loaded as
            it was chosen there.
          config: the run's config with changes, such as other catalogue files or another mesh; by default as it is.
          devices: those of the mesh; by default all, those of other processes included.
          max_length: of a Hugging Face model, most tokens of a pair; 0 is what its tokenizer and positions allow.
          dtype: of a Hugging Face model, as `model.dtype`; by default float32.
          raw: whether scores are those of the model alone, without the run's calibration and `negatives_rate`.

        Raises:
          InputError: not a run folder, a run that is not finished, or catalogue files that are not there.
        """
        check_jax()
        if is_hugging_face(run):
            if config is not None or unknown:
                raise InputError(f"{run}: a Hugging Face model, which has no config and no catalogues to change")
            made = load_cross_encoder(str(run), mesh or Mesh(), max_length, devices, dtype or "float32", quantize)
            return cls(made.config, made.session, made.params, made.encoder, made.shape)
        if max_length:
            raise InputError("max_length: found a run, expected a Hugging Face model; a run's is that of its schema")
        if dtype:
            raise InputError("dtype: found a run, expected a Hugging Face model; a run's is model.dtype of `config`")
        folder = RunFolder(run)
        folder.verify()
        trained = folder.config()
        config = replace(config or trained, mesh=mesh or scoring_mesh(config or trained, trained))
        encoder = load_encoder(config, folder.path, unknown)
        session, params = load_run(folder, config, devices, quantize)
        params = for_scoring(session, params)
        shape = batch_shape(config, session.spec, layout_of(session.spec, encoder.text), session.mesh)
        if raw:
            config = replace(config, evaluate=replace(config.evaluate, negatives_rate=1.0))
        calibration = Calibration() if raw else Calibration.load(folder)
        for_all_negatives(config, calibration, session.spec.outputs, np.zeros((0, session.spec.num_outputs)))
        return cls(config, session, params, encoder, shape, calibration)

    def predict(self, pairs: Sequence, batch_size: int = 0, task: str = "", logits: bool = False) -> np.ndarray | float:
        """Probabilities of the first task, or of every task where there are several.

        Args:
          pairs: `(context, candidate)` pairs, or a single such pair. Each side is a text, where that side of the
            schema has one Text feature, or a mapping of column names to values (`{"query": ...}`, `{"item_id": 7}`,
            `{"title": ...}`). Where the schema has no context features, plain candidates instead of pairs.
          batch_size: most pairs encoded at a time; 0 means all (the device batch is fixed by the run).
          task: name of the task; empty means all.
          logits: whether to return logits instead: [n] of a single output, else [n, K] of all outputs of the task or
            of all tasks.

        Returns:
          [n] float32 for n pairs: a probability, or the number of a regression. [n, K] probabilities of a multiclass
          task that is named or the only one, in the order of `classes`. [n, T] for T > 1 tasks in the order of the
          schema, of a multiclass one the probability of its most probable class. Of a single pair a float or the row.

        Raises:
          InputError: a missing column, an unknown key or task.
        """
        single = requests.is_single(self.config.schema, pairs)
        pairs = [pairs] if single else list(pairs)
        contexts, candidates = requests.sides(self.config.schema, pairs)
        size = batch_size or max(len(pairs), 1)
        parts = [
            self._logits(contexts[at : at + size], [[c] for c in candidates[at : at + size]])
            for at in range(0, len(pairs), size)
        ]
        found = np.concatenate(parts) if parts else np.zeros((0, self.session.spec.num_outputs), np.float32)
        made, own = self._objective(task)
        if logits:
            scores = found[:, own] if task else found
            scores = scores[:, 0] if scores.shape[1] == 1 else scores
        elif task or len(self._objectives) == 1:
            columns = made.columns(found[:, own])
            scores = columns.get("probabilities", columns["score"])
        else:
            tasks, outputs = self.config.schema.tasks, self.session.spec.outputs
            scores = predict(tasks, outputs, found).astype(np.float32)
        if single:
            return float(scores[0]) if scores.ndim == 1 else scores[0]
        return scores

    def classes(self, task: str = "") -> tuple[str, ...]:
        """The class names of a multiclass task, by default of the first; () for another kind."""
        made, _ = self._objective(task)
        return made.known.classes if made.known else ()

    def rank(
        self,
        context: Value,
        candidates: Sequence[Value],
        top_k: int | None = None,
        return_documents: bool = False,
        task: str | Mapping[str, float] = "",
        logits: bool = False,
    ) -> list[dict]:
        """The candidates of one context by falling score of a task; equal ones in the order given.

        Args:
          context: as in `predict`; `None` where the schema has no context features.
          candidates: N candidates, as in `predict`.
          top_k: how many to return, at least 1; None means all.
          return_documents: whether each dict also holds the candidate, as `text`.
          task: name of the task, empty for the first; `task/class` for the probability of a class; or weights by such
            names, for the sum of weight times score.
          logits: whether scores, and what is summed, are logits instead.

        Returns:
          `[{"corpus_id": position in candidates, "score": ..., ...}, ...]`, best first.

        Raises:
          InputError: `top_k` below 1, an unknown task, no context where the schema has one, or as in `predict`.
        """
        return self.rank_many([context], [list(candidates)], top_k, return_documents, task, logits)[0]

    def rank_many(
        self,
        contexts: Sequence[Value],
        candidates: Sequence[Value] | Sequence[Sequence[Value]],
        top_k: int | None = None,
        return_documents: bool = False,
        task: str | Mapping[str, float] = "",
        logits: bool = False,
    ) -> list[list[dict]]:
        """`rank` of many contexts, packed together: one list for each.

        `candidates` is a list for each context, or one list of candidates for all of them; other arguments and errors
        as in `rank`.
        """
        contexts = listed(contexts)
        lists = requests.lists(contexts, list(candidates))
        blend = {task: 1.0} if isinstance(task, str) else dict(task)
        for name in blend:
            self._score_of(name, np.zeros((0, self.session.spec.num_outputs), np.float32))
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k: found {top_k}, expected at least 1, or None for all")
        asked = [(context, own) for context, own in zip(contexts, lists, strict=True) if own]
        if not asked:
            return [[] for _ in lists]
        if self.config.schema.context and any(context is None for context, _ in asked):
            raise InputError("context: found None, expected a text or the values of its columns")
        found = self._logits([{} if context is None else context for context, _ in asked], [own for _, own in asked])
        score_of = self._logit_of if logits else self._score_of
        scores = np.sum([weight * score_of(name, found) for name, weight in blend.items()], axis=0)
        parts = iter(np.split(scores, np.cumsum([len(own) for _, own in asked])[:-1]))
        return [requests.best_first(next(parts), own, top_k, return_documents) if own else [] for own in lists]

    @property
    def shapes(self) -> list[Shape]:
        """Rows and tokens that the batches of a request may have, the smallest first. With stored items no row is
        short: each length has programs of its own, by the longest context of a batch."""
        short = self.stored is None and self.session.attention.name in (NONE.name, "xla")
        return request_shapes(self.shape, self.session.mesh, short)

    def warm_up(self, said: Callable[[str], None] = print) -> list[Shape]:
        """Compiles what requests run, so that none waits for the compiler; returns the shapes of batches.

        A request is packed in rows, and its batches are cut to the smallest of a few shapes (`shapes`) that holds them.
        With stored items the program depends on the longest context of a batch too: call this after `store_items`, and
        all are compiled, some dozens; after `item_vectors` those of retrieval of up to 256 items too. `said` is told
        the shapes.
        """
        mesh, shapes = self.session.mesh, self.shapes
        said(f"compiling for {', '.join(f'{rows} x {tokens}' for rows, tokens in shapes)} tokens")
        for rows, tokens in shapes:
            batch = padding(self.config.schema, self.shape, rows, tokens)
            jax.block_until_ready(self.session.predict_step(self.params, put_batch(mesh, batch, row_axis=0)))
            if self.stored is not None:
                for places in self.stored.empty_places(rows, tokens):
                    jax.block_until_ready(self.stored.step(self.params, put_batch(mesh, (batch, places), row_axis=0)))
        self._warm_up_retrieval(shapes)
        return shapes

    def logits(
        self,
        split: Split,
        items: Items,
        progress: Callable[[int], None] = lambda count: None,
        assembled: Callable[[PackedBatch], None] = lambda batch: None,
        cut: bool = False,
    ) -> np.ndarray:
        """The logits [M, K] of the candidates of any split in its order, float32 or float64, from which all scores
        are made: calibrated as the run says, and for all negatives (`evaluate.negatives_rate`).

        `progress` is called with the number of candidates of each batch that is done, `assembled` with each batch
        [R, ...] of this host before it is dispatched. With `cut` batches have the `shapes` of requests; without it the
        logits are those of `train` bit for bit, which have other roundings.
        """
        raw, outputs = self.raw_logits(split, items, progress, assembled, cut), self.session.spec.outputs
        made = self.calibration.apply(self.config.schema, outputs, split, items, raw)
        return for_all_negatives(self.config, self.calibration, outputs, made)

    def raw_logits(
        self,
        split: Split,
        items: Items,
        progress: Callable[[int], None] = lambda count: None,
        assembled: Callable[[PackedBatch], None] = lambda batch: None,
        cut: bool = False,
    ) -> np.ndarray:
        """Logits [M, K] float32 as the model computes them; the arguments are those of `logits`."""
        step, complete = self.session.predict_step, lambda batch, numbers: batch
        if self.stored is not None and items is self.encoder.items:
            step, complete = self.stored.step, partial(self.stored.complete, np.asarray(split.item))

        def counted(batch: PackedBatch, numbers: np.ndarray):
            assembled(batch)
            return complete(batch, numbers)

        of = (split, items, self.shape, self.session.mesh)
        return predict_split(step, self.params, *of, progress, counted, self.shapes if cut else ())

    @property
    def _calibrates_slices(self) -> bool:
        """Whether the calibration of some task depends on more than the logits."""
        return any(own.slices for own in self.calibration.tasks.values())

    def _calibrated(self, task: str, logits: np.ndarray) -> np.ndarray:
        """Logits [M] of a task with one output as `logits` gives them, but for the maps of slices."""
        made, own = self._objective(task)
        outputs, found = self.session.spec.outputs, self.calibration.tasks.get(made.task.name)
        nothing = np.zeros((1, self.session.spec.num_outputs))
        added = for_all_negatives(self.config, self.calibration, outputs, nothing)[0, own.start]
        return (found(logits, None) if found else logits) + added

    @property
    def can_store_items(self) -> bool:
        """Whether the model computes candidates alone at first, and they are the rows of a catalogue."""
        return self.session.spec.interaction.stores_items and self.encoder.items is not None

    def store_items(self, folder: str | Path | None = None, dtype: str = "") -> ItemStore:
        """Computes the lower layers of every item of the catalogue once; later calls look them up.

        Args:
          folder: where the states are kept, memory-mapped: those of items whose contents did not change are read from
            there, the others computed, and the folder replaced. None keeps none.
          dtype: as which they are kept: `bfloat16` takes half the space of `float32`, `int8` a quarter; scores then
            are those of the rounded states. Empty is the dtype of computation, which rounds nothing.

        Raises InputError where there is nothing to store (see `can_store_items`), or the folder is of another model.
        """
        if not self.can_store_items or self.encoder.items is None:
            raise InputError(
                f"model.interaction is {self.session.spec.interaction.name!r}, candidates "
                f"{'are' if self.encoder.items is not None else 'are not'} rows of a catalogue; only 'split' with a "
                f"catalogue has item states to store"
            )
        self.stored = build_item_store(self.session, self.params, self.encoder.items, self.shape, folder, dtype)
        return self.stored

    @cached_property
    def _objectives(self) -> Objectives:
        return self.session.objectives(self.config)

    def _objective(self, name: str) -> tuple[Objective, slice]:
        names = [made.task.name for made, _ in self._objectives]
        if name and name not in names:
            raise InputError(f"task: found {name!r}, expected one of {', '.join(names)}{did_you_mean(name, names)}")
        return self._objectives[names.index(name) if name else 0]

    def _score_of(self, name: str, logits: np.ndarray) -> np.ndarray:
        """The score [M] float32 by which `rank` orders, of logits [M, K]; `name` is a task, or `task/class`."""
        made, own, number = self._named(name)
        scores = made.columns(logits[:, own])
        return scores["score"] if number is None else scores["probabilities"][:, number]

    def _logit_of(self, name: str, logits: np.ndarray) -> np.ndarray:
        """As `_score_of`, the logit itself."""
        _, own, number = self._named(name)
        return logits[:, own.start + (number or 0)]

    def _named(self, name: str, whole: bool = False) -> tuple[Objective, slice, int | None]:
        """What `task` or `task/class` names: the task, its outputs, and the number of the class, None without one.

        `whole`: whether a multiclass task may be named without a class. Raises InputError for an unknown name.
        """
        task, _, wanted = name.partition("/")
        made, own = self._objective(task)
        classes = self.classes(task)
        if wanted not in classes and (wanted or (classes and not whole)):
            expected = [f"{made.task.name}/{each}" for each in classes] or [made.task.name]
            raise InputError(
                f"task: found {name!r}, expected one of {', '.join(expected)}{did_you_mean(name, expected)}"
            )
        return made, own, classes.index(wanted) if wanted else None

    def _logits(self, contexts: Sequence[Value], candidates: Sequence[Sequence[Value]]) -> np.ndarray:
        """[M, K]."""
        chunk = self._encode(contexts, candidates)
        return self.logits(chunk.split, chunk.items, cut=True)

    def _encode(self, contexts: Sequence[Value], candidates: Sequence[Sequence[Value]]) -> Encoded:
        chunk = self.encoder.encode_values(contexts, candidates)
        warn_unknown(chunk.unknown, stacklevel=4)
        return chunk


def scoring_mesh(config: TrainConfig, trained: TrainConfig) -> Mesh:
    """The mesh that a run's config asks for: that of the training machine says nothing about this one, unless it was
    asked for anew."""
    return config.mesh if config.mesh != trained.mesh else Mesh()
