"""What a model card says of use: for what, for what not, and the lines that load the model."""

from __future__ import annotations

import json
from typing import Any

from srsjax.config import Categorical, Feature, History, Numeric, Schema, Task, TrainConfig, Vector
from srsjax.data.preparing.sources import Sources
from srsjax.model.hf_card import Described, code, python, why_only_srsjax
from srsjax.model.hf_code import example_strings
from srsjax.training.show import command

EXPORTED = "exported"
"""The folder that the lines on other libraries read."""


def intended_use(config: TrainConfig) -> str:
    """What the scores are for, and what they must not be used for."""
    schema = config.schema
    asked = " ".join(_asked(task) for task in schema.tasks)
    sides = " ".join(
        f"{side.capitalize()}: {', '.join(code(f.name) for f in features)}."
        for side, features in (("context", schema.context), ("candidate", schema.candidate))
        if features
    )
    return f"For search and recommendation: {asked} {sides}\n\nNot for:\n\n" + "\n".join(
        f"* {line}" for line in _not_for(config)
    )


def _asked(task: Task) -> str:
    name = code(task.name)
    label = code(task.column or task.name)
    positive = f" (positive: {code(task.positive)})" if task.positive else ""
    after = f" and of {code(task.after)} before it" if task.after else ""
    return {
        "binary": f"{name} is the probability{after} that {label} is positive{positive} for a candidate in a context.",
        "multiclass": f"{name} is the class of {label}.",
        "regression": f"{name} is the number {label}.",
    }.get(task.kind, f"{name} orders the candidates of a context by {label}.")


def _not_for(config: TrainConfig) -> list[str]:
    schema = config.schema
    lines = [
        "Decisions about people (credit, work, housing, insurance, health, education, law): nothing here was measured "
        "for them.",
        "Contexts, candidates, languages and times unlike those of the training rows: how good it is there is unknown.",
        "As a measure of what people want: labels are what was done with what was shown, where and when it was shown.",
    ]
    orders = [code(task.name) for task in schema.tasks if task.kind in ("listwise", "pairwise", "contrastive")]
    if orders:
        lines.append(f"As a probability: {', '.join(orders)} only orders the candidates of one context.")
    if config.data.shop.folder:
        lines.append("Any real shop: its data are simulated.")
    private = [code(f.name) for f in _features(schema) if getattr(f, "private", False)]
    if private:
        lines.append(
            f"Publication without thought: it reads {', '.join(private)}, marked private. Their values are not in this "
            "card, but the weights were fitted on them, and tokenizer and vocabularies of the folder may hold them."
        )
    return lines


def _features(schema: Schema) -> tuple[Feature, ...]:
    return (*schema.context, *schema.candidate)


# ---------------------------------------------------------------------------------------------- loading


def how_to_load(config: TrainConfig, about: Described) -> list[str]:
    """The sections with the lines that load the run: in srsjax, and in the libraries that know such a model."""
    parts = ["## Use", _with_srsjax(config, about)]
    export = f"```bash\n{command('export')} --run {about.run} --output {EXPORTED}\n```"
    if about.form == "parts":
        text = "" if about.spec.reads_text else ", which know no model without text"
        program = f"`{command('export')} --run {about.run} --format stablehlo` writes a program that JAX alone runs."
        return [*parts, f"Not with transformers or sentence-transformers{text}. {why_only_srsjax(about)}. {program}"]
    exact = (
        f"These lines join fields by the separator's text: exact as long as no text is longer than its budget or "
        f"spells a special token. The Python in `{EXPORTED}/README.md` is exact for all."
    )
    first, second = example_strings(about.reading)
    if about.form == "towers":
        return [*parts, "## Other libraries", export, exact, *_towers(first, second)]
    if about.form == "encoder":
        only = f"transformers loads its encoder; the Python in `{EXPORTED}/README.md` adds the head and gives scores."
        return [*parts, "## Other libraries", export, only]
    return [*parts, "## Other libraries", export, exact, *_classifier(first, second)]


def _with_srsjax(config: TrainConfig, about: Described) -> str:
    pair = example_pair(config)
    if pair is None:
        line = f"{command('score')} --run {about.run} --input 'log-*.parquet' --output scores/"
        return f"Its vectors are files, so it is given rows of a log:\n\n```bash\n{line}\n```"
    context, candidate = map(_literal, pair)
    given = f"({context}, {candidate})" if config.schema.context else candidate
    return "The values are placeholders.\n\n" + python(
        "from srsjax.inference.scorer import Scorer\n"
        f"scorer = Scorer.load({_literal(about.run)})\n"
        f"print(scorer.predict([{given}]))"
    )


def _classifier(first: str, second: str) -> list[str]:
    """A pair, or without context a single text."""
    pair = f'{{"text": {_literal(first)}, "text_pair": {_literal(second)}}}' if first else _literal(second)
    made = [
        "With transformers:",
        python(
            "from transformers import pipeline\n"
            f'score = pipeline("text-classification", model="{EXPORTED}", top_k=None)\n'
            f"print(score({pair}))"
        ),
    ]
    if not first:
        return made
    return [
        *made,
        "With sentence-transformers:",
        python(
            "from sentence_transformers import CrossEncoder\n"
            f'encoder = CrossEncoder("{EXPORTED}")\n'
            f"print(encoder.predict([({_literal(first)}, {_literal(second)})]))"
        ),
    ]


def _towers(first: str, second: str) -> list[str]:
    return [
        "With sentence-transformers, the cosine of both vectors; the score is made of them by `head.safetensors`, as "
        f"`{EXPORTED}/README.md` shows, which has the lines for transformers too:",
        python(
            "from sentence_transformers import SentenceTransformer\n"
            f'model = SentenceTransformer("{EXPORTED}")\n'
            f"print(model.similarity(model.encode_query({_literal(first)}), model.encode_document({_literal(second)})))"
        ),
    ]


def example_pair(config: TrainConfig) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Values that `Scorer.predict` takes for both sides, by column, none of them from the data; None where a vector
    has to be a file."""
    sources = Sources(config.schema, config.data)
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for values, features in zip(found, (config.schema.context, config.schema.candidate), strict=True):
        for feature in features:
            if getattr(feature, "training_only", False):
                continue
            own = sources.column(feature)
            if own.name not in values or _value(feature) in (0, []):  # what all readers of a column take
                values[own.name] = _value(feature)
            values |= {column.name: 0 for column in sources.read(feature) if column != own}
            if values[own.name] is None and getattr(feature, "missing", "") in ("error", "drop"):
                return None
        for feature in features:
            other = sources.along(feature)
            if other and values[other.name] == []:  # a list has an element for each of those that it says more of
                values[sources.column(feature).name] = []
    return found


def _value(feature: Feature) -> Any:
    """A value of a feature that says nothing of anyone."""
    if isinstance(feature, History):
        return []
    if isinstance(feature, Numeric):
        return 0
    if isinstance(feature, Vector):
        return None if feature.files else [0.0] * feature.size
    article = "an" if feature.name[0].lower() in "aeiou" else "a"
    words = f"{article} {feature.name.replace('_', ' ')}"
    if isinstance(feature, Categorical) and feature.max_values > 1:
        return [] if feature.of else [0] if feature.times else [words]
    return words


def _literal(value: Any) -> str:
    """As Python, in double quotes; a vector of zeros in short."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        if len(value) > 3 and not any(value):
            return f"[{value[0]!r}] * {len(value)}"
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(each)}" for key, each in value.items()) + "}"
    return repr(value)
