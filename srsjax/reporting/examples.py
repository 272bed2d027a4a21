"""The candidates that cost the most, as a person reads them: texts, categories and numbers, but no private ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from srsjax.config import Categorical, Numeric, Schema
from srsjax.data.kinds import is_text
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.metrics.calibration import sigmoid
from srsjax.metrics.classes import confidence
from srsjax.model.spec import Outputs
from srsjax.objectives import objectives
from srsjax.runs.attribution import Explainer, Explanation
from srsjax.runs.calibration import losses
from srsjax.runs.slices import category_name

MOST = 10
PRIVATE = "(private)"
REASONS = 6
"""Words and features of an example that are shown with what they add to its logit."""
CLASSES_APART = 2
"""At most so many examples with the same label and prediction: the next ones would show the same again."""


@dataclass(frozen=True)
class Example:
    """A candidate with a large loss."""

    row: int
    """Its number in the log."""
    label: str
    predicted: str
    loss: float
    context: Sequence[str]
    """`name: value` each."""
    candidate: Sequence[str]
    because: Sequence[tuple[str, float]] = ()
    """Words and features that move the logit the most, and by how much."""


@dataclass(frozen=True)
class Reader:
    """Turns stored values back into what a person reads."""

    schema: Schema
    split: Split
    items: Items
    text: TextEncoder
    vocabularies: Mapping[str, Sequence[str]]

    def context(self, candidate: int) -> list[str]:
        """The context of a candidate."""
        place = int(np.searchsorted(self.split.candidates, candidate, side="right") - 1)
        features = {name: values[place] for name, values in self.split.context_features.items()}
        return self._side(self.schema.context, self.split.context[place], features)

    def candidate(self, candidate: int) -> list[str]:
        """A candidate."""
        item = int(self.split.item[candidate])
        features = {name: values[item] for name, values in self.items.features.items()}
        features |= {name: values[candidate] for name, values in self.split.candidate_features.items()}
        return self._side(self.schema.candidate, self.items.tokens[item], features)

    def shown(self, explanation: Explanation) -> Explanation:
        """An explanation without the words of private texts."""
        sides: dict[str, Sequence[Any]] = {"context": self.schema.context, "candidate": self.schema.candidate}
        hidden = {side for side, of in sides.items() if any(is_text(each) and each.private for each in of)}
        return replace(explanation, tokens=tuple(each for each in explanation.tokens if each.side not in hidden))

    def _side(self, of: Sequence[Any], tokens: np.ndarray, features: Mapping[str, Any]) -> list[str]:
        texts = [each for each in of if is_text(each)]
        found = []
        if any(each.private for each in texts):
            found.append(f"text: {PRIVATE}")  # fields are joined, and their ends not kept
        elif texts:
            found.append(f"{', '.join(each.name for each in texts)}: {self._decoded(tokens)}")
        for each in of:
            if each.name in features and isinstance(each, Categorical | Numeric):
                found.append(f"{each.name}: {PRIVATE if each.private else self._value(each, features[each.name])}")
        return found

    def _decoded(self, tokens: np.ndarray) -> str:
        """Fields with a stroke between them."""
        ends = np.flatnonzero(tokens == self.text.template.separator)
        parts = [part[part != self.text.template.separator] for part in np.split(tokens, ends)]
        return " | ".join(self.text.tokenizer.decode(part.tolist()) for part in parts)

    def _value(self, feature: Categorical | Numeric, value: Any) -> str:
        if isinstance(feature, Numeric):
            return "missing" if np.isnan(value) else f"{value:.6g}"
        vocabulary = self.vocabularies.get(feature.like or feature.name)
        numbers = [int(number) for number in np.atleast_1d(value) if number or not np.ndim(value)]
        return ", ".join(category_name(vocabulary, number) for number in numbers) or "none"


def most_expensive(
    reader: Reader,
    outputs: Sequence[Outputs],
    logits: np.ndarray,
    most: int = MOST,
    explainer: Explainer | None = None,
) -> list[Example]:
    """The candidates of the largest loss of the first task (weight aside): log loss, or the distance of a number; none
    for tasks whose scores are an order. `logits` [M, K] are those that are reported."""
    made, own = objectives(reader.schema.tasks, outputs)[0]
    scored, labels = made.measured(logits[:, own]), np.asarray(reader.split.labels[:, 0])
    known = np.asarray(reader.split.weights[:, 0]) > 0
    if made.kind == "regression":
        cost = np.abs(scored - labels)
    elif made.kind in ("binary", "multiclass"):
        cost = losses(scored, labels)
    else:
        return []
    cost = np.where(known, cost, -1.0)
    order = np.argsort(-cost, kind="stable")
    found: list[Example] = []
    places: list[int] = []
    seen: dict[tuple[str, str], int] = {}
    for place in order[: min(int(known.sum()), 100 * most)].tolist():
        label, predicted = _said(made, scored[place], labels[place])
        same = (label, predicted) if made.kind == "multiclass" else (str(place), "")
        seen[same] = seen.get(same, 0) + 1
        if seen[same] <= CLASSES_APART:
            sides = reader.context(place), reader.candidate(place)
            row = int(reader.split.example[place])
            found.append(Example(row, label, predicted, float(cost[place]), *sides))
            places.append(place)
        if len(found) == most:
            break
    if explainer is None or not found:
        return found
    chosen = np.array(places)
    columns = own.start + (logits[chosen, own].argmax(axis=1) if made.kind == "multiclass" else 0 * chosen)
    explanations = explainer.explain(reader.split, reader.items, chosen, columns)
    return [
        replace(example, because=reader.shown(explanation).largest(REASONS))
        for example, explanation in zip(found, explanations, strict=True)
    ]


def _said(made: Any, scored: np.ndarray, label: float) -> tuple[str, str]:
    """Label and prediction in words."""
    if made.kind == "multiclass":
        names = made.known.classes
        return str(names[int(label)]), f"{names[int(scored.argmax())]} ({confidence(scored[None])[0]:.0%})"
    if made.kind == "regression":
        return f"{label:.4g}", f"{float(scored):.4g}"
    return f"{label:.4g}", f"{sigmoid(scored):.4f}"
