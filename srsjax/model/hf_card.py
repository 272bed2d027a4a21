"""The model card of an exported folder: how inputs are joined, what the labels are, and Python that gives the scores.

The Python is complete: it reads this folder only, with transformers (and sentence-transformers for towers), from the
texts of a pair to the scores of `Scorer.predict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCard, ModelCardData

from srsjax import __version__
from srsjax.config import Feature, History, Schema, Text
from srsjax.data.batches.layout import Layout, is_text, most_tokens
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
                if isinstance(feature, Text) and _may_be_filled(feature)
            },
        )

    def tokens(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Special tokens by their names."""
        return tuple(str(self.text.tokenizer.id_to_token(token)) for token in ids)


def model_card(about: Described) -> ModelCard:
    """The card; made without the network."""
    library, pipeline = LIBRARY[about.form]
    data = ModelCardData(library_name=library, pipeline_tag=pipeline, tags=["srsjax", "click-model", "ranking"])
    parts = [f"# {about.name}", _summary(about), "## Scores", _scores(about), "## Input", _input(about)]
    parts += _use(about)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def lengths(schema: Schema, layout: Layout) -> tuple[int, int]:
    """Most tokens of a context and of a candidate by the budgets, special tokens included."""
    context = most_tokens(schema.context) + layout.context_special
    return context, most_tokens(schema.candidate) + layout.candidate_special


def _summary(about: Described) -> str:
    bert, spec = about.spec.encoder, about.spec
    family = "RoBERTa" if bert.position_offset else "BERT"
    reads = {"pooled": "the pooled first token", "first": "the first token", "mean": "the mean over the tokens"}
    return (
        f"A click model trained with srsjax {__version__} (`{about.run}`): {family}, {bert.num_layers} layers of width "
        f"{bert.hidden_size}, interaction `{spec.interaction.name}`, read-out `{spec.readout}` ({reads[spec.readout]})."
        f" Weights are float32."
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
        rows += [f"| `{name}` | {outputs.kind} | {kinds[outputs.kind]} |" for name in names[own]]
    return "\n".join(rows)


# ---------------------------------------------------------------------------------------------- input


def _input(about: Described) -> str:
    reading, (context, candidate) = about.reading, lengths(about.schema, about.layout)
    before = " ".join([*reading.prefix, *["context"] * bool(reading.context), *reading.between])
    after = " ".join([*reading.opening, "candidate", *reading.suffix])
    if about.form == "towers":
        sequence = (
            f"A context is `{before}`, at most {context} tokens; a candidate is `{after}`, at most {candidate} tokens. "
            f"Each is read alone."
        )
    else:
        kind, start = reading.candidate_type, about.layout.candidate_start
        types = f"of token type 0 up to the candidate and {kind} from there on" if kind else "all of token type 0"
        sequence = f"A pair is `{before} {after}`, at most {context + candidate} tokens, {types}."
        sequence += f" Positions of the candidate start at {start}." if start is not None else ""
    rows = ["| side | field | at most | how it is read |", "|---|---|---|---|"]
    for side, features in (("context", reading.context), ("candidate", reading.candidate)):
        rows += [f"| {side} | `{f.name}` | {f.max_tokens} tokens | {_how(f, about)} |" for f in features]
    return "\n\n".join([sequence, "\n".join(rows), _rules(about)])


def _may_be_filled(feature: Feature) -> bool:
    """Whether a text may be missing."""
    return isinstance(feature, Text) and feature.missing not in ("error", "drop")


def _how(feature: Text | History, about: Described) -> str:
    column = feature.column or feature.name
    if isinstance(feature, Text):
        fill = about.reading.fills.get(feature.name)
        missing = f"`{fill}` where it is blank or missing" if fill else "empty where it is blank or missing"
        return f"column `{column}`, cut at its end; {missing if _may_be_filled(feature) else 'never missing'}"
    fields = " and ".join(f"`{name}`" for name in feature.fields) + " one after the other" * (len(feature.fields) > 1)
    return (
        f"column `{column}`, newest first: the newest {feature.max_items} items, of each its {fields}, "
        f"cut to {feature.item_tokens} tokens; the separator between items; the oldest are cut first"
    )


def _rules(about: Described) -> str:
    reading = about.reading
    rules = [
        f"Fields of one side are tokenised and cut one by one and joined in this order; the separator "
        f"`{reading.separator}` is put between those that are not empty.",
        f"A text that spells a special token (`{reading.separator}`) is read as those letters "
        f"(`split_special_tokens=True`).",
    ]
    unread = _unread(about)
    if unread:
        rules.append(f"Not read by this model: {unread}.")
    return "\n".join(f"* {rule}" for rule in rules)


def _unread(about: Described) -> str:
    read = {feature.name for feature in about.spec.features}
    features: tuple[Feature, ...] = (*about.schema.context, *about.schema.candidate)
    return ", ".join(f"`{f.name}`" for f in features if not is_text(f) and f.name not in read)


# ---------------------------------------------------------------------------------------------- use


def _use(about: Described) -> list[str]:
    """The sections that say how to get scores."""
    if about.form == "parts":
        return ["## Use", _only_srsjax(about)]
    exact = (
        "Run in this folder. It computes in float32: equal to `srsjax.inference.scorer.Scorer` to 1e-5 where that does "
        "too, and to the precision of bfloat16 where it computes in that (`model.dtype`)."
    )
    if about.form == "towers":
        both = towers_code(about.reading, about.spec.readout, about.spec.outputs)
        return ["## Use", exact, _python(both.exact), "## With sentence-transformers", _TOWERS, _python(both.encode)]
    code = pairs_code(about.reading, about.spec.readout, about.spec.outputs, about.form == "classifier")
    return ["## Use", exact, _python(code)]


def _python(code: str) -> str:
    return f"```python\n{code}```"


def _only_srsjax(about: Described) -> str:
    if about.spec.features:
        why = f"The head reads other features besides text ({', '.join(f'`{f.name}`' for f in about.spec.features)})"
    elif about.spec.interaction.reads_context and about.spec.product == "bilinear":
        why = "The vectors of both sides are mapped by a matrix each before they are multiplied"
    elif about.spec.experts:
        why = "Each task reads a mixture of experts of its own"
    elif about.spec.interaction.classifier:
        why = "The score of a task that comes after another is the product of both probabilities"
    else:
        why = f"In `{about.spec.interaction.name}` a context does not attend to its candidates"
    return (
        f"{why}: transformers has no class for that. `model.safetensors` holds the encoder, which `AutoModel` loads, "
        f"and the head as `classifier.weight` and `classifier.bias`. Called as a plain encoder it does not give the "
        f"scores of this model. Score with srsjax and the run itself:\n\n"
        f"```bash\npython -m srsjax.score --run {about.run} --input 'log-*.parquet' --output scores/\n```"
    )


_TOWERS = """`SentenceTransformer` (5 or newer) loads this folder with a route to each side; `context` and `candidate`
are also models of their own, for tools that know no routes. The two are the same encoder. Vectors have length 1. With
`scale * u` as the query, the best candidates of a task are those of largest inner product with their vectors `v`.

`encode` takes a string, so fields are joined by the separator's text. That is exact for BERT's tokenizers as long as no
text is longer than its budget or spells a special token; else take the token ids of the code above."""
