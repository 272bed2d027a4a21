"""How the texts of a run become sequences, and the budgets that bound their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from srsjax.config import Feature, TrainConfig
from srsjax.data.kinds import has_text, is_text, kind_of
from srsjax.errors import InputError

if TYPE_CHECKING:
    from srsjax.data.store.tokenizer import PairTemplate, TextEncoder


@dataclass(frozen=True)
class Layout:
    """How texts become sequences; fixed for a run."""

    template: PairTemplate
    """Special tokens, from the `TextEncoder`."""
    pad_id: int
    has_context: bool
    """Whether the schema has context text. Without it a pair is a single sequence, prefix + candidate + suffix, all of
    token type 0; the prefix is its context token."""
    candidate_start: int | None = None
    """Position at which every candidate starts, behind one context for all candidates of an impression in a row. None:
    each candidate has its own copy of the context, and its positions run on (`cross`)."""

    def alone(self) -> Layout:
        """The layout of rows that hold candidates only, each at the position where it starts behind a context."""
        if self.candidate_start is None:
            raise ValueError("positions of candidates run on behind their contexts: alone they have none")
        return replace(self, template=replace(self.template, prefix=(), between=()), has_context=True)

    @property
    def shares_context(self) -> bool:
        """Whether candidates of an impression share one context in a row."""
        return self.candidate_start is not None

    @property
    def between(self) -> tuple[int, ...]:
        """Special tokens between the context's text and the candidate's; none in a single sequence."""
        return self.template.between if self.has_context else ()

    @property
    def context_special(self) -> int:
        """Special tokens of a context."""
        return len(self.template.prefix) + len(self.between)

    @property
    def candidate_special(self) -> int:
        """Special tokens of a candidate without its context."""
        return len(self.template.opening) + len(self.template.suffix)


@dataclass(frozen=True)
class BatchShape:
    """What the assembly of batches needs besides the data: fixed for a run."""

    layout: Layout
    tokens: int
    """Token slots L."""
    candidates: int
    """Candidate slots C."""
    eval_rows: int
    """Rows R of an evaluation batch."""
    outputs: int = 1
    """Logits K of a candidate."""


def make_layout(config: TrainConfig, text: TextEncoder, shares_context: bool, apart: bool = False) -> Layout:
    """How the texts of a run become sequences; `shares_context` and `apart` are the interaction's.

    Raises InputError for a shared context where the schema has no context text: there is nothing to share then.
    """
    if not has_text(config.schema):
        return no_text(text)
    has_context, start = any(map(is_text, config.schema.context)), None
    if shares_context:
        if not has_context:
            raise InputError(
                f"model.interaction: found {config.model.interaction!r}, but schema.context has no text; use 'cross'"
            )
        start = 0 if apart else config.model.candidate_start
        if start < 0:
            start = most_tokens(config.schema.context) + len(text.template.prefix) + len(text.template.between)
    return Layout(text.template.apart() if apart else text.template, text.pad_id, has_context, start)


def no_text(text: TextEncoder) -> Layout:
    """The layout of a schema without text: each candidate is one token, which nothing reads, so that a row of L tokens
    holds L candidates."""
    template = replace(text.template, prefix=(), between=(), suffix=(text.pad_id,), candidate_type=0)
    return Layout(template, text.pad_id, has_context=False)


def most_tokens(features: Sequence[Feature]) -> int:
    """Most tokens of one side of a pair by its budgets, separators between fields included."""
    budgets = [kind.budget for kind in map(kind_of, features) if kind.is_text]
    return sum(budgets) + max(len(budgets) - 1, 0)


def check_lengths(config: TrainConfig, layout: Layout, longest: int) -> None:
    """Raises InputError where the schema's budgets allow a pair longer than a row, or than the encoder's positions.

    `longest` is the number of positions. Checked by the budgets and not by the data at hand, so that a finished run can
    score whatever comes.
    """
    context, candidate = most_tokens(config.schema.context), most_tokens(config.schema.candidate)
    context, candidate = context + layout.context_special, candidate + layout.candidate_special
    most = context + candidate
    if most > config.batch.tokens:
        raise InputError(
            f"batch.tokens: found {config.batch.tokens}, but the budgets of the schema allow pairs of {most} tokens "
            f"(special ones included); raise it, or lower max_tokens of Text and History features"
        )
    start = layout.candidate_start
    last = most if start is None else max(context, start + candidate)
    if last > longest:
        raise InputError(
            f"schema: the budgets allow pairs of {last} tokens (special ones included), but the encoder has {longest} "
            f"positions; lower max_tokens of Text and History features"
        )
