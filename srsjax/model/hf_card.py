"""The model card of a folder: how inputs are joined, what the labels are, and Python that gives the scores.

The Python of an exported folder is complete: it reads this folder only, with transformers (and sentence-transformers
for towers), from the texts of a pair to the scores of `Scorer.predict`. What was measured of the run comes from
`srsjax.reporting.card`, as `Measured`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from srsjax import __version__
from srsjax.config import Categorical, Feature, History, Numeric, Schema, Text, Vector
from srsjax.data.batches.layout import Layout, is_text, most_tokens
from srsjax.data.preparing.statistics import FITTED_POLICIES
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.model.hf_code import Reading, pairs_code, towers_code
from srsjax.model.hf_export import Form, form_of
from srsjax.model.spec import ModelSpec, label_names, output_slices

LIBRARY: dict[Form, tuple[str, str]] = {
    "classifier": ("transformers", "text-classification"),
    "encoder": ("transformers", "feature-extraction"),
    "towers": ("sentence-transformers", "sentence-similarity"),
    "parts": ("transformers", "feature-extraction"),
}
"""Library and pipeline of the hub by form."""


@dataclass(frozen=True)
class Described:
    """What a card is about."""

    name: str
    """Title."""
    run: str
    """The run folder as it was given to the command."""
    spec: ModelSpec
    schema: Schema
    text: TextEncoder
    layout: Layout
    fills: Mapping[str, str | float]
    """By feature, what fills a missing value where that was found in the training rows (`Fitted.fills`)."""

    @property
    def form(self) -> Form:
        return form_of(self.spec)

    @property
    def reading(self) -> Reading:
        """The input as the code of the card needs it."""
        template, names = self.layout.template, self.tokens
        context, candidate = (
            tuple(feature for feature in side if isinstance(feature, Text | History))
            for side in (self.schema.context, self.schema.candidate)
        )
        return Reading(
            context=context,
            candidate=candidate,
            prefix=names(template.prefix),
            between=names(self.layout.between),
            opening=names(template.opening),
            suffix=names(template.suffix),
            separator=names([template.separator])[0],
            candidate_type=template.candidate_type if self.layout.has_context else 0,
            fills={
                feature.name: str(self.fills.get(feature.name, feature.fill))
                for feature in (*context, *candidate)
                if isinstance(feature, Text) and _may_be_filled(feature) and not private_fill(feature)
            },
        )

    def tokens(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Special tokens by their names."""
        return tuple(str(self.text.tokenizer.id_to_token(token)) for token in ids)


@dataclass(frozen=True)
class Measured:
    """What a card says of the run besides inputs and use: nothing of a model that no run trained."""

    results: Sequence[EvalResult] = ()
    """For the metadata."""
    sections: Sequence[str] = ()
    """Before those on input and use, headings included."""
    last: Sequence[str] = ()
    """Behind them."""
    base_model: str = ""
    """Hub name of the weights it started from."""


def model_card(about: Described, measured: Measured = Measured()) -> ModelCard:
    """The card of a Hugging Face folder; made without the network."""
    library, pipeline = LIBRARY[about.form]
    return assembled(about, library, pipeline, (), described(about), _use(about), measured)


def assembled(
    about: Described,
    library: str,
    pipeline: str | None,
    tags: Sequence[str],
    first: Sequence[str],
    use: Sequence[str],
    measured: Measured,
) -> ModelCard:
    """A card of its parts: what the model is, what was measured of it, its input, and how it is used.

    Args:
      library, pipeline: of the hub.
      tags: besides those that all have.
      first: what it is and what its scores are.
      use: input and use, with their headings.
    """
    data = ModelCardData(
        library_name=library,
        pipeline_tag=pipeline,
        tags=["srsjax", "click-model", "ranking", *tags],
        base_model=measured.base_model or None,
        eval_results=list(measured.results) or None,
        model_name=about.name if measured.results else None,
    )
    parts = [f"# {plain(about.name)}", *first, *measured.sections, *use, *measured.last]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def described(about: Described) -> list[str]:
    """What the model is, and what its scores are."""
    return [_summary(about), "## Scores", _scores(about)]


def plain(value: object) -> str:
    """A value of the data as text that Markdown shows as it is: on one line, no element, link, code or column."""
    text = " ".join(str(value).split())
    for sign, shown in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("`", "\\`"),
        ("*", "\\*"),
    ):
        text = text.replace(sign, shown)
    return text.replace("](", "]\\(")


def code(value: object) -> str:
    """A value as a code span of a table or a line."""
    return "`" + " ".join(str(value).split()).replace("`", "'").replace("|", "\\|") + "`"


def private_fill(feature: Feature) -> bool:
    """Whether what fills a missing value is a value of a private column."""
    return getattr(feature, "private", False) and getattr(feature, "missing", "") in FITTED_POLICIES


def lengths(schema: Schema, layout: Layout) -> tuple[int, int]:
    """Most tokens of a context and of a candidate by the budgets, special tokens included."""
    context = most_tokens(schema.context) + layout.context_special
    return context, most_tokens(schema.candidate) + layout.candidate_special


def _summary(about: Described) -> str:
    bert, spec = about.spec.encoder, about.spec
    made = f"A click model trained with srsjax {__version__} (`{about.run}`): "
    if not spec.reads_text:
        return f"{made}no text, {len(spec.features)} features combined by `{spec.combine}`. Weights are float32."
    family = "RoBERTa" if bert.position_offset else "BERT"
    reads = {"pooled": "the pooled first token", "first": "the first token", "mean": "the mean over the tokens"}
    return (
        f"{made}{family}, layers: {bert.num_layers}, width {bert.hidden_size}, interaction `{spec.interaction.name}`, "
        f"read-out `{spec.readout}` ({reads[spec.readout]}). Weights are float32."
    )


_ORDER = "sigmoid(logit): an order of the candidates of one context, not a probability"


def _scores(about: Described) -> str:
    rows = ["| label | task | score |", "|---|---|---|"]
    kinds = {
        "binary": "sigmoid(logit): the probability of a positive label",
        "listwise": _ORDER,
        "pairwise": _ORDER,
        "contrastive": "the logit, a scaled product of both vectors: an order of candidates, not a probability",
        "multiclass": "softmax(logits of the task): the probability of the class",
        "regression": "the logit: the number, in the units of the label",
    }
    tasks, names = about.spec.outputs, label_names(about.spec.outputs)
    for outputs, own in zip(tasks, output_slices(tasks), strict=True):
        rows += [f"| {code(name)} | {outputs.kind} | {kinds[outputs.kind]} |" for name in names[own]]
    return "\n".join(rows)


# ---------------------------------------------------------------------------------------------- input


def inputs(about: Described) -> list[str]:
    """The section on input: how a pair becomes a sequence, the fields of each side in their order, and rules."""
    rows = ["| side | field | at most | how it is read |", "|---|---|---|---|"]
    for side in ("context", "candidate"):
        features = getattr(about.schema, side)
        texts = [f for f in features if isinstance(f, Text | History)]
        rows += [f"| {side} | {code(f.name)} | {f.max_tokens} tokens | {_how(f, about)} |" for f in texts]
        others = [f for f in features if not is_text(f) and f.name in _read(about)]
        rows += [f"| {side} | {code(f.name)} | {_size(f)} | {_how_other(f, about)} |" for f in others]
    parts = [_sequence(about), "\n".join(rows), _rules(about)]
    return ["## Input", *filter(None, parts)]


def _sequence(about: Described) -> str:
    if not about.spec.reads_text:
        return ""
    reading, (context, candidate) = about.reading, lengths(about.schema, about.layout)
    before = " ".join([*reading.prefix, *["context"] * bool(reading.context), *reading.between])
    after = " ".join([*reading.opening, "candidate", *reading.suffix])
    if about.form == "towers" or about.spec.interaction.reads_context:
        return (
            f"A context is `{before}`, at most {context} tokens; a candidate is `{after}`, at most {candidate} tokens. "
            f"Each is read alone."
        )
    kind, start = reading.candidate_type, about.layout.candidate_start
    types = f"of token type 0 up to the candidate and {kind} from there on" if kind else "all of token type 0"
    sequence = f"A pair is `{before} {after}`, at most {context + candidate} tokens, {types}."
    return sequence + (f" Positions of the candidate start at {start}." if start is not None else "")


def _size(feature: Feature) -> str:
    """Of a feature besides text."""
    if isinstance(feature, Vector):
        return f"{feature.size} numbers" if feature.size else "a vector"
    values = feature.max_values if isinstance(feature, Categorical) else 1
    return f"{values} values" if values > 1 else "one value"


def _how_other(feature: Feature, about: Described) -> str:
    """How a feature besides text is read."""
    column = code(feature.column or feature.name)
    if getattr(feature, "training_only", False):
        return f"column {column}, in training only: evaluation and scoring put a fixed value in its place"
    kind = "a vector"
    if isinstance(feature, Numeric):
        since = f", less {code(feature.since)}" if feature.since else ""
        kind = f"a number{since}, scale {feature.scale}"
    elif isinstance(feature, Categorical):
        kind = f"{feature.hash_buckets} hash buckets" if feature.hash_buckets else "a vocabulary of the training rows"
        if feature.times:
            kind = f"{feature.times} of its times{f' before {code(feature.until)}' if feature.until else ''}"
        if feature.along:
            kind += f", of the elements of `{feature.along}`"
    filled = {"error": "never missing", "drop": "never missing", "indicator": "the model knows what is missing"}
    missing = filled.get(getattr(feature, "missing", "")) or f"{_fill(feature, about)} where it is missing"
    return f"column {column}, {kind}; {missing}"


def _fill(feature: Feature, about: Described) -> str:
    """What fills a missing value, in words."""
    if private_fill(feature):
        return "a value of the training rows, private and not shown here,"
    fill = about.fills.get(feature.name, getattr(feature, "fill", ""))
    return code(fill) if fill != "" else "nothing"


def _may_be_filled(feature: Feature) -> bool:
    """Whether a text may be missing."""
    return isinstance(feature, Text) and feature.missing not in ("error", "drop")


def _how(feature: Text | History, about: Described) -> str:
    column = code(feature.column or feature.name)
    if isinstance(feature, Text):
        fill = _fill(feature, about)
        missing = f"{'empty' if fill == 'nothing' else fill} where it is blank or missing"
        return f"column {column}, cut at its end; {missing if _may_be_filled(feature) else 'never missing'}"
    fields = " and ".join(map(code, feature.fields)) + " one after the other" * (len(feature.fields) > 1)
    return (
        f"column {column}, newest first: the newest {feature.max_items} items, of each its {fields}, "
        f"cut to {feature.item_tokens} tokens; the separator between items; the oldest are cut first"
    )


def _rules(about: Described) -> str:
    reading, rules = about.reading, []
    if about.spec.reads_text:
        rules = [
            f"Fields of one side are tokenised and cut one by one and joined in this order; the separator "
            f"`{reading.separator}` is put between those that are not empty.",
            f"A text that spells a special token (`{reading.separator}`) is read as those letters "
            f"(`split_special_tokens=True`).",
        ]
    hidden = [code(f.name) for f in (*reading.context, *reading.candidate) if private_fill(f)]
    if hidden:
        rules.append(f"The Python here reads a blank {', '.join(hidden)} as empty, and not as its private value.")
    features: tuple[Feature, ...] = (*about.schema.context, *about.schema.candidate)
    if unread := [code(f.name) for f in features if not is_text(f) and f.name not in _read(about)]:
        rules.append(f"Not read by this model: {', '.join(unread)}.")
    return "\n".join(f"* {rule}" for rule in rules)


def _read(about: Described) -> set[str]:
    """Names of the features besides text that the model reads."""
    return {feature.name for feature in about.spec.features}


# ---------------------------------------------------------------------------------------------- use


def _use(about: Described) -> list[str]:
    """The sections on input and on how to get scores."""
    return [*inputs(about), *_how_to_score(about)]


def _how_to_score(about: Described) -> list[str]:
    if about.form == "parts":
        return ["## Use", _only_srsjax(about)]
    exact = (
        "Run in this folder. It computes in float32: equal to `srsjax.inference.scorer.Scorer` to 1e-5 where that does "
        "too, and to the precision of bfloat16 where it computes in that (`model.dtype`)."
    )
    if about.form == "towers":
        both = towers_code(about.reading, about.spec.readout, about.spec.outputs)
        return ["## Use", exact, python(both.exact), "## With sentence-transformers", _TOWERS, python(both.encode)]
    pairs = pairs_code(about.reading, about.spec.readout, about.spec.outputs, about.form == "classifier")
    return ["## Use", exact, python(pairs)]


def python(lines: str) -> str:
    """A block of code."""
    return f"```python\n{lines.rstrip()}\n```"


def _only_srsjax(about: Described) -> str:
    return (
        f"{why_only_srsjax(about)}: transformers has no class for that. `model.safetensors` holds the encoder, which "
        f"`AutoModel` loads, and the head as `classifier.weight` and `classifier.bias`. Called as a plain encoder it "
        f"does not give the scores of this model. Score with srsjax and the run itself:\n\n"
        f"```bash\npython -m srsjax.score --run {about.run} --input 'log-*.parquet' --output scores/\n```"
    )


def why_only_srsjax(about: Described) -> str:
    """Why no other library has a class for the model (form `parts`)."""
    if not about.spec.reads_text:
        return "The model reads no text"
    if about.spec.features:
        return f"The head reads other features besides text ({', '.join(f'`{f.name}`' for f in about.spec.features)})"
    if about.spec.interaction.reads_context and about.spec.product == "bilinear":
        return "The vectors of both sides are mapped by a matrix each before they are multiplied"
    if about.spec.experts:
        return "Each task reads a mixture of experts of its own"
    if about.spec.interaction.classifier:
        return "The score of a task that comes after another is the product of both probabilities"
    return f"In `{about.spec.interaction.name}` a context does not attend to its candidates"


_TOWERS = """`SentenceTransformer` (5 or newer) loads this folder with a route to each side; `context` and `candidate`
are also models of their own, for tools that know no routes. The two are the same encoder. Vectors have length 1. With
`scale * u` as the query, the best candidates of a task are those of largest inner product with their vectors `v`.

`encode` takes a string, so fields are joined by the separator's text. That is exact for BERT's tokenizers as long as no
text is longer than its budget or spells a special token; else take the token ids of the code above."""
