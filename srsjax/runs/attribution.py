"""Why a pair has its score: integrated gradients over tokens and features, summed to what the model says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.contexts import pairs_alone
from srsjax.data.batches.layout import BatchShape
from srsjax.data.batches.loader import eval_batches
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.errors import InputError
from srsjax.model import ctr
from srsjax.model.attribution import Slopes, baseline_of, slopes
from srsjax.model.compute import Compute
from srsjax.model.int8 import Quantized, dequantize
from srsjax.runs.session import Session
from srsjax.runs.shapes import cut, request_shapes
from srsjax.runs.sharding import put_batch

POINTS, MOST_POINTS, QUICK_POINTS = 16, 256, 32
"""Points of the path at first, and at most: they are doubled while attributions do not sum to the difference. The last
is what a report takes at most: it shows two digits, and a large encoder needs seconds for each dozen on a CPU."""
TOLERANCE, SMALLEST = 0.005, 0.05
"""Share of the difference of the logits that their sum may be off by; smaller differences count as `SMALLEST`."""


@dataclass(frozen=True)
class Attributed:
    """A token, and how much of the logit it explains."""

    side: str
    """`context` or `candidate`."""
    token: str
    """As the tokenizer's vocabulary spells it: `##s` continues a word."""
    value: float


@dataclass(frozen=True)
class Explanation:
    """What moves the logit of a pair from that of a baseline, which knows nothing of it.

    In the baseline every token is [MASK], every id unknown, every number and vector missing. Values sum to
    `logit - baseline`, but for `error`.
    """

    output: str
    """What is explained: a task, or `task/class`."""
    logit: float
    """Of the pair, before calibration, computed in float32."""
    baseline: float
    """Logit of the baseline."""
    tokens: tuple[Attributed, ...] = ()
    """In the order of the texts, without the special tokens, which the baseline has too."""
    features: dict[str, float] = field(default_factory=dict)
    """By name; text is in `tokens`."""

    @property
    def text(self) -> float:
        """What all tokens explain."""
        return sum(token.value for token in self.tokens)

    @property
    def error(self) -> float:
        """What the values sum to, less the difference of the logits: the error of the numerical integral."""
        return self.text + sum(self.features.values()) - (self.logit - self.baseline)

    def largest(self, count: int) -> list[tuple[str, float]]:
        """The `count` words and features of the largest values, either sign. Pieces of a word are put together, equal
        words of a side added up."""
        words: list[list] = []  # side, word, value
        for token in self.tokens:
            if token.token.startswith("##") and words:
                words[-1][1] += token.token[2:]
                words[-1][2] += token.value
            else:
                words.append([token.side, token.token.lstrip("Ġ▁"), token.value])
        found = dict(self.features)
        for side, word, value in words:
            name = f"{word} ({side})"
            found[name] = found.get(name, 0.0) + value
        return sorted(found.items(), key=lambda each: -abs(each[1]))[:count]


@dataclass(frozen=True)
class Explainer:
    """Explains the logits of a model in float32, whatever it is scored in: small slopes are lost in bfloat16."""

    session: Session
    params: dict[str, Any]
    """Of `session`; 8-bit weights are taken for what they stand for."""
    shape: BatchShape
    text: TextEncoder
    most_points: int = MOST_POINTS

    def explain(self, split: Split, items: Items, candidates: np.ndarray, outputs: np.ndarray) -> list[Explanation]:
        """Explains one output of the model for each of some candidates.

        Args:
          candidates: [m] int, their numbers in the split.
          outputs: [m] int, which of the K outputs of each.

        Raises:
          InputError: the model runs on the devices of several processes.
        """
        if self.session.mesh.is_multi_process:
            raise InputError("explain: found a mesh of several processes, expected one of this process alone")
        found: list[Any] = [None] * len(candidates)
        sizes = {"rows": self.shape.eval_rows, "tokens": self.shape.tokens, "candidates": self.shape.candidates}
        shapes = request_shapes(self.shape, self.session.mesh, short=False)
        for each in eval_batches(pairs_alone(split, candidates), items, self.shape.layout, **sizes):
            batch, numbers = cut(*each, shapes)
            used = np.nonzero(numbers >= 0)
            wanted = np.zeros((*numbers.shape, self.shape.outputs), np.float32)
            wanted[(*used, outputs[numbers[used]])] = 1
            for (row, slot), made in zip(zip(*used, strict=True), self._explained(batch, wanted, used), strict=True):
                number = numbers[row, slot]
                found[number] = replace(made, output=self._name(int(outputs[number])))
        return found

    def _explained(self, batch: PackedBatch, wanted: np.ndarray, used: Sequence[np.ndarray]) -> Iterator[Explanation]:
        """The pairs in the slots `used` of a batch; `wanted` as in `slopes`."""
        given = put_batch(self.session.mesh, (batch, self._baseline(batch), wanted), row_axis=0)

        def at(place: float) -> Slopes:
            return jax.device_get(self._step(self._float_params, *given, np.float32(place)))

        start, end = at(0.0).logits[used], at(1.0).logits[used]
        of_pair = _of_pair(batch)[used]  # [m, L]
        count, allowed = POINTS, TOLERANCE * np.maximum(np.abs(end - start), SMALLEST)
        while True:
            places, weights = np.polynomial.legendre.leggauss(count)
            tokens = np.zeros(of_pair.shape)
            features = {name: np.zeros(len(start)) for name in self._names}
            for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
                slope = at(place)
                tokens += 0.0 if slope.tokens is None else weight * slope.tokens[used[0]] * of_pair
                features = {name: sum_ + weight * slope.features[name][used] for name, sum_ in features.items()}
            total = tokens.sum(-1) + sum(features.values())
            if count >= self.most_points or (np.abs(total - (end - start)) <= allowed).all():
                break
            count *= 2
        for i, row in enumerate(used[0]):
            own = {name: float(values[i]) for name, values in features.items()}
            said = tuple(self._tokens(batch, row, of_pair[i], tokens[i]))
            yield Explanation("", float(end[i]), float(start[i]), said, own)

    def _tokens(self, batch: PackedBatch, row: int, of_pair: np.ndarray, values: np.ndarray) -> Iterator[Attributed]:
        """The tokens of a pair with their values [L], special ones left out."""
        if not self.session.spec.reads_text:
            return
        for place in np.flatnonzero(of_pair & ~np.isin(batch.tokens[row], self._special)):
            side = "candidate" if batch.candidate[row, place] else "context"
            token = str(self.text.tokenizer.id_to_token(int(batch.tokens[row, place])))
            yield Attributed(side, token, float(values[place]))

    def _baseline(self, batch: PackedBatch) -> PackedBatch:
        unknown = self.text.pad_id if self.text.mask_id is None else self.text.mask_id
        return baseline_of(batch, self.session.spec.features, self._special, unknown)

    @property
    def _special(self) -> list[int]:
        """Ids of the tokens that a baseline has too."""
        layout, template = self.shape.layout, self.shape.layout.template
        around = (*template.prefix, *template.between, *template.opening, *template.suffix)
        return [*around, template.separator, layout.pad_id]

    @property
    def _names(self) -> list[str]:
        return [feature.name for feature in self.session.spec.features if not feature.along]

    def _name(self, output: int) -> str:
        """What an output of the model is of: its task, or `task/class`."""
        names = [
            f"{of.task}/{of.classes[k]}" if of.classes else of.task
            for of in self.session.spec.outputs
            for k in range(of.count)
        ]
        return names[output]

    @cached_property
    def _float_params(self) -> dict[str, jax.Array]:
        """Parameters in float32, those in 8 bits as what they stand for."""
        return {
            path: jnp.asarray(dequantize(value)) if isinstance(value, Quantized) else value
            for path, value in self.params.items()
        }

    @cached_property
    def _step(self) -> Callable:
        graphdef = ctr.build(self.session.spec, Compute())
        return jax.jit(partial(slopes, graphdef))


def _of_pair(batch: PackedBatch) -> np.ndarray:
    """[R, C, L] bool, which tokens belong to the pair in each slot: the candidate's, and those of its context."""
    slots = np.arange(1, batch.readout.shape[1] + 1)[None, :, None]
    candidate, segment = batch.candidate[:, None, :], batch.segment[:, None, :]
    return (candidate == slots) | ((candidate == 0) & (segment == batch.context_of[:, :, None] + 1))
