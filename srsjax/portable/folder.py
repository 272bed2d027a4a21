"""A folder that gives the scores of a run without srsjax: program, weights, tokenizer, and how inputs are made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from huggingface_hub import ModelCard
from safetensors.numpy import save_file

from srsjax import __version__
from srsjax.config import Categorical, Feature, History, Schema, Text
from srsjax.data.kind import ArrayKind
from srsjax.data.kinds import of_kind
from srsjax.data.preparing.statistics import Fitted
from srsjax.files import atomic_file, write_json, write_text
from srsjax.model import hf_card
from srsjax.model.compute import Compute
from srsjax.model.hf_card import Described
from srsjax.model.int8 import flat
from srsjax.objectives import objectives
from srsjax.portable import loader
from srsjax.portable.program import DTYPES, PLATFORMS, exported, feature_shape, features_read

PROGRAM, WEIGHTS = "scores.jax", "weights.safetensors"


def save(
    folder: Path,
    params: Mapping[str, Any],
    compute: Compute,
    about: Described,
    fitted: Fitted,
    measured: hf_card.Measured = hf_card.Measured(),
) -> None:
    """Writes the folder, made if absent.

    Args:
      params: as `ctr.init` names them, as they are: their dtypes are those of the program.
      compute: how the run computes.
      fitted: fills and vocabularies of the run.
      measured: of the run, for the README.
    """
    folder.mkdir(parents=True, exist_ok=True)
    goals = objectives(about.schema.tasks, about.spec.outputs)
    program = exported(about.spec, compute, about.layout, goals, params)
    with atomic_file(folder / PROGRAM) as partial:
        partial.write_bytes(program.serialize())
    with atomic_file(folder / WEIGHTS) as partial:
        save_file({path: np.ascontiguousarray(array) for path, array in flat(params).items()}, partial)
    if about.spec.reads_text:
        write_text(folder / "tokenizer.json", about.text.tokenizer.to_str(pretty=True))
    described = description(about, fitted)
    write_json(folder / "inputs.json", described)
    used = {each["vocabulary"] for each in described["features"] if "vocabulary" in each}
    if any(each["kind"] == "categorical" for each in described["features"]):
        write_json(folder / "vocabularies.json", {name: fitted.vocabularies[name] for name in sorted(used)})
    write_text(folder / "README.md", str(_card(about, compute, described, measured)))


def description(about: Described, fitted: Fitted) -> dict[str, Any]:
    """What `inputs.json` says: arrays in and out, and how texts and values become them."""
    spec, layout, template = about.spec, about.layout, about.layout.template
    around = {"context": (template.prefix, layout.between), "candidate": (template.opening, template.suffix)}
    sides = {
        side: {
            "before": [int(token) for token in before],
            "after": [int(token) for token in after],
            "texts": [_text(feature, fitted) for feature in getattr(about.schema, side) if _is_text(feature)],
        }
        for side, (before, after) in around.items()
    }
    texts = {"pad": int(about.text.pad_id), "separator": int(template.separator)} | sides
    texts["max_tokens"] = sum(hf_card.lengths(about.schema, layout))
    return {
        "made_with": {"srsjax": __version__, "jax": jax.__version__},
        "platforms": list(PLATFORMS),
        **(texts if spec.reads_text else {}),
        "features": _features(about, fitted),
        "inputs": _arrays(about),
        "outputs": {
            "logits": {"shape": ["pairs", spec.num_outputs], "dtype": "float32"},
            "scores": {each.task: _output(each) for each in spec.outputs},
        },
    }


def _is_text(feature: Feature) -> bool:
    return isinstance(feature, Text | History)


def _text(feature: Any, fitted: Fitted) -> dict[str, Any]:
    """How a text or a history is read."""
    made = {"name": feature.name, "column": feature.column or feature.name, "max_tokens": feature.max_tokens}
    if isinstance(feature, History):
        fields = {"fields": list(feature.fields), "max_items": feature.max_items, "item_tokens": feature.item_tokens}
        return made | fields
    return made | {"missing": str(fitted.fills.get(feature.name, feature.fill))}


def _features(about: Described, fitted: Fitted) -> list[dict[str, Any]]:
    """How the values of features besides text are read."""
    kinds = {kind.feature.name: kind for kind in of_kind(_all(about.schema), ArrayKind)}
    made = []
    for spec in features_read(about.spec):
        kind = kinds[spec.name]
        feature, fill = kind.feature, kind.fill(fitted)
        missing: Any = None if spec.may_be_missing else fill
        one: dict[str, Any] = {
            "name": spec.name,
            "side": spec.side,
            "kind": spec.kind,
            "shape": list(feature_shape(spec)),
            "dtype": np.dtype(DTYPES[spec.kind]).name,
            "missing": missing,
        }
        if isinstance(feature, Categorical):
            one["missing"] = [] if spec.values > 1 and not fill else fill
            if feature.hash_buckets:
                one["buckets"] = feature.hash_buckets
            else:
                one["vocabulary"] = feature.like or feature.name
            if feature.times:
                one |= {"times": feature.times, "until": feature.until}
        elif spec.kind == "numeric":
            one |= {"period": spec.period, "since": kind.since}
        made.append(one)
    return made


def _all(schema: Schema) -> tuple[Feature, ...]:
    return (*schema.context, *schema.candidate)


def _arrays(about: Described) -> dict[str, Any]:
    """Names, shapes and dtypes of what the program takes besides weights."""
    arrays: dict[str, Any] = {
        "features": {
            each.name: {"shape": ["pairs", *feature_shape(each)], "dtype": np.dtype(DTYPES[each.kind]).name}
            for each in features_read(about.spec)
        }
    }
    if about.spec.reads_text:
        arrays["tokens"] = {"shape": ["pairs", "tokens"], "dtype": "int32"}
        arrays |= {f"{side}_length": {"shape": ["pairs"], "dtype": "int32"} for side in ("context", "candidate")}
    return arrays


def _output(outputs: Any) -> dict[str, Any]:
    shape = ["pairs", outputs.count] if outputs.classes else ["pairs"]
    return {"kind": outputs.kind, "shape": shape, "dtype": "float32", "classes": list(outputs.classes)}


# ---------------------------------------------------------------------------------------------- the README


_KINDS = {
    "binary": "the probability of a positive label",
    "listwise": "an order of the candidates of one context, in (0, 1), and no probability",
    "pairwise": "an order of the candidates of one context, in (0, 1), and no probability",
    "contrastive": "a scaled product of both vectors: an order of candidates, and no probability",
    "multiclass": "the probability of each class",
    "regression": "the number, in the units of the label",
}


def _card(about: Described, compute: Compute, described: dict[str, Any], measured: hf_card.Measured) -> ModelCard:
    spec, dtype = about.spec, compute.dtype.name
    reads = f", interaction `{spec.interaction.name}`, read-out `{spec.readout}`" if spec.reads_text else ""
    scores = ["| task | kind | score |", "|---|---|---|"]
    scores += [f"| `{each.task}` | {each.kind} | {_KINDS[each.kind]}{_classes(each)} |" for each in spec.outputs]
    first = [
        f"A click model trained with srsjax {__version__} (`{about.run}`){reads}, as a program that JAX alone runs: on "
        f"{', '.join(PLATFORMS)}, for any number of pairs. It computes in {dtype}; its scores are those of "
        f"`srsjax.inference.scorer.Scorer` to the rounding of {dtype}.",
        _FILES,
        "## Scores",
        "\n".join(scores),
    ]
    example: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for side, values in zip(("context", "candidate"), example, strict=True):
        values |= {each["name"]: _example(each) for each in described.get(side, {}).get("texts", ())}
        values |= {each["name"]: None for each in described["features"] if each["side"] == side}
    use = [
        "## Input",
        _fields(about, described),
        "A history or a key of a catalogue is given as what the catalogue says of it, not as the key.",
        "## Use",
        "Run in this folder, with `pip install jax flatbuffers numpy safetensors tokenizers`. Each new number of "
        "pairs, and each new width of tokens, is compiled when it first comes: keep to a few.",
        hf_card.python(loader.code(about, example)),
    ]
    return hf_card.assembled(about, "jax", None, ["stablehlo"], first, use, measured)


def _fields(about: Described, described: dict[str, Any]) -> str:
    """The table of what is read."""
    hidden = {feature.name for feature in _all(about.schema) if hf_card.private_fill(feature)}
    rows = ["| side | field | what it is |", "|---|---|---|"]
    for side in ("context", "candidate"):
        texts = described.get(side, {}).get("texts", ())
        own = [*texts, *(each for each in described["features"] if each["side"] == side)]
        rows += [f"| {side} | `{each['name']}` | {_said(each, each['name'] in hidden)} |" for each in own]
    return "\n".join(rows)


_FILES = f"""* `{PROGRAM}`: the program, StableHLO serialized by `jax.export`. JAX promises that versions of the next
  six months run it.
* `{WEIGHTS}`: its parameters, by name.
* `inputs.json`: its arrays, and how texts and values become them, with `tokenizer.json` and `vocabularies.json` where
  there are texts and categories."""


def _classes(outputs: Any) -> str:
    return ", in the order " + ", ".join(map(hf_card.code, outputs.classes)) if outputs.classes else ""


def _said(field: dict[str, Any], hidden: bool) -> str:
    """A field in words; `hidden`: what fills a missing value is private."""
    fill = "a private value" if hidden else hf_card.code(field.get("missing"))
    if "max_items" in field:
        of = " and ".join(f"`{name}`" for name in field["fields"])
        return (
            f"a list of items, newest first, each a list of its {of}: the newest {field['max_items']}, of each "
            f"{field['item_tokens']} tokens, {field['max_tokens']} in all"
        )
    if "max_tokens" in field:
        return f"a text, at most {field['max_tokens']} tokens; {fill} where it is blank"
    number = "a list of categories" if field["shape"] else "a category"
    number += f", as text{_TIMES.get(field.get('times', ''), '').format(until=field.get('until'))}"
    words = {"numeric": "a number", "vector": f"a vector {field['shape']}", "categorical": number}
    since = f", less `{field['since']}`, in seconds" if field.get("since") else ""
    missing = "may be missing" if field["missing"] is None else f"{fill} where it is missing"
    return f"{words[field['kind']]}{since}; {missing}"


_TIMES = {
    "recency": ": of each time how long before `{until}` it was, `2^k s` of 2^k seconds and less than twice as many, "
    "`0 s` of less than one, `later` of a time after it",
    "hour": ": of each time its hour in UTC, `00 h` to `23 h`",
    "weekday": ": of each time its weekday in UTC, `Monday` to `Sunday`",
}
"""How times become categories (`srsjax.data.reading.listed_times`), by `Categorical.times`."""


def _example(field: dict[str, Any]) -> Any:
    words = field["name"].replace("_", " ")
    if "max_items" in field:
        return [[f"the {name} of {which} item" for name in field["fields"]] for which in ("the newest", "an older")]
    return f"a {words}"
