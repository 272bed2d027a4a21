"""What a `Scorer` says of why a pair has its score."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from srsjax.config import TrainConfig
from srsjax.data.batches.layout import BatchShape
from srsjax.data.preparing.encode import Encoded, Encoder, Value
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError
from srsjax.inference import requests
from srsjax.model import ctr
from srsjax.objectives.objective import Objective
from srsjax.runs.attribution import Explainer, Explanation
from srsjax.runs.evaluation import predict_split
from srsjax.runs.predict import jit_predict_step
from srsjax.runs.session import Session
from srsjax.runs.shapes import Shape


class Explains(abc.ABC):
    """The part of `Scorer` that explains scores."""

    config: TrainConfig
    session: Session
    params: dict[str, Any]
    encoder: Encoder
    shape: BatchShape

    @property
    @abc.abstractmethod
    def shapes(self) -> list[Shape]: ...

    @abc.abstractmethod
    def raw_logits(self, split: Split, items: Items, *, cut: bool = False) -> np.ndarray: ...

    @abc.abstractmethod
    def _named(self, name: str, whole: bool = False) -> tuple[Objective, slice, int | None]: ...

    @abc.abstractmethod
    def _encode(self, contexts: Sequence[Value], candidates: Sequence[Sequence[Value]]) -> Encoded: ...

    def explain(self, pairs: Sequence, task: str = "") -> list[Explanation] | Explanation:
        """How much each token and each feature moves the logit of a pair from that of a pair that nothing is known of:
        integrated gradients (Sundararajan et al. 2017), whose values sum to the difference of the two logits.

        The logit is that of the model before calibration, computed in float32 without stored items. Of a single pair
        one explanation.

        Args:
          pairs: as in `predict`.
          task: name of the task, empty for the first; `task/class` for a class. Of a multiclass task without one, the
            class of the largest logit of each pair.

        Raises:
          InputError: an unknown task or class, a mesh of several processes, or as in `predict`.
        """
        single = requests.is_single(self.config.schema, pairs)
        contexts, candidates = requests.sides(self.config.schema, [pairs] if single else list(pairs))
        made, own, number = self._named(task, whole=True)
        chunk = self._encode(contexts, [[c] for c in candidates])
        if made.kind == "multiclass" and number is None:
            logits = self.raw_logits(chunk.split, chunk.items, cut=True)
            outputs = own.start + logits[:, own].argmax(axis=1)
        else:
            outputs = np.full(len(candidates), own.start + (number or 0))
        found = self.explainer.explain(chunk.split, chunk.items, np.arange(len(candidates)), outputs)
        return found[0] if single else found

    @cached_property
    def explainer(self) -> Explainer:
        """Explains candidates of a split."""
        return Explainer(self.session, self.params, self.shape, self.encoder.text)

    def weights(self, pairs: Sequence) -> list[dict[str, float]] | dict[str, float]:
        """How much a model with `model.combine attention` takes of the text and of each feature, for every pair:
        weights that sum to 1, by name (`text` for all text together). Of a single pair one dict.

        `pairs` as in `predict`. They say what the model looks at, not what changes its score by how much.

        Raises InputError where the features are combined otherwise, or those of the candidate (towers) are not there,
        or as in `predict`.
        """
        session, spec = self.session, self.session.spec
        if spec.combine != "attention" or not spec.features:
            raise InputError(f"weights: found model.combine {spec.combine!r}, expected attention over features")
        if not ctr.feature_names(spec)["candidate"]:
            raise InputError("weights: found towers with features of the context alone, expected some of the candidate")
        single = requests.is_single(self.config.schema, pairs)
        contexts, candidates = requests.sides(self.config.schema, [pairs] if single else list(pairs))
        chunk = self._encode(contexts, [[c] for c in candidates])
        names = ctr.modalities(spec)
        shape = replace(self.shape, outputs=len(names))
        of = (chunk.split, chunk.items, shape, session.mesh)
        found = predict_split(self._weights_step, self.params, *of, shapes=self.shapes)
        rows = [dict(zip(names, map(float, row), strict=True)) for row in found]
        return rows[0] if single else rows

    @cached_property
    def _weights_step(self) -> Callable:
        return jit_predict_step(
            partial(ctr.modality_weights, self.session.graphdef), self.session.mesh, self.session.shardings
        )
