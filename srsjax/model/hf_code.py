"""Python that reads an exported folder: text for its model card, to be run as it is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from srsjax.config import History, Text
from srsjax.model.spec import Outputs, label_names, output_slices


@dataclass(frozen=True)
class Reading:
    """How texts become tokens: fields of each side, and special tokens by name."""

    context: tuple[Text | History, ...]
    candidate: tuple[Text | History, ...]
    prefix: tuple[str, ...]
    between: tuple[str, ...]
    """Empty where there is no context text: a pair is then a single sequence."""
    opening: tuple[str, ...]
    suffix: tuple[str, ...]
    separator: str
    candidate_type: int
    fills: Mapping[str, str]
    """By field, what is read where a text is missing; those without one are then empty."""

    @property
    def has_history(self) -> bool:
        return any(isinstance(feature, History) for feature in self.context)


class TowersCode(NamedTuple):
    """Two programs."""

    exact: str
    """With transformers, by token ids: the scores of every pair."""
    encode: str
    """With sentence-transformers, from strings."""


def pairs_code(reading: Reading, readout: str, outputs: Sequence[Outputs], classifier: bool) -> str:
    """Scores of pairs that one sequence holds.

    Args:
      readout: `model.readout`.
      outputs: of each task.
      classifier: whether transformers has the class; else the head is a matmul on what the encoder gives.
    """
    of = "AutoModelForSequenceClassification" if classifier else "AutoModel"
    imports = ["import torch", *["from safetensors.torch import load_file"] * (not classifier)]
    lines = [
        *imports,
        f"from transformers import {of}, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    ]
    if classifier:
        lines.append(f'model = {of}.from_pretrained(".").eval()')
    else:
        lines.append('model = AutoModel.from_pretrained(".", add_pooling_layer=False).eval()')
        lines.append('head = load_file("model.safetensors")')
    lines += [*_tokens(reading), *_reading(reading), "", "", "def score(context, candidate):"]
    lines += ["    first, second = context_ids(context), candidate_ids(candidate)"]
    given = ["input_ids=torch.tensor([first + second])"]
    if reading.candidate_type:
        given.append(f"token_type_ids=torch.tensor([[0] * len(first) + [{reading.candidate_type}] * len(second)])")
    lines += [
        "    with torch.no_grad():",
        "        output = model(",
        *(f"            {x}," for x in given),
        "        )",
    ]
    if classifier:
        lines.append("    logits = output.logits[0]")
    else:
        lines.append(f"    vector = output.{_READ[readout]}")
        lines.append('    logits = head["classifier.weight"] @ vector + head["classifier.bias"]')
    return _finish(lines, reading, outputs)


def towers_code(reading: Reading, readout: str, outputs: Sequence[Outputs]) -> TowersCode:
    """Scores of pairs whose sides are read alone; arguments as in `pairs_code`."""
    pooling = "" if readout == "pooled" else ", add_pooling_layer=False"
    lines = [
        "import torch",
        "from safetensors.torch import load_file",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("context")',
        f'encoders = [AutoModel.from_pretrained(side{pooling}).eval() for side in ("context", "candidate")]',
        'head = load_file("head.safetensors")',
        *_tokens(reading),
        *_reading(reading),
        "",
        "",
        "def score(context, candidate):",
        "    vectors = []",
        "    for encoder, ids in zip(encoders, [context_ids(context), candidate_ids(candidate)]):",
        "        with torch.no_grad():",
        "            output = encoder(input_ids=torch.tensor([ids]))",
        f"        vectors.append(torch.nn.functional.normalize(output.{_READ[readout]}, dim=0))",
        '    logits = (vectors[0] * vectors[1]) @ head["scale"] + head["bias"]',
    ]
    return TowersCode(_finish(lines, reading, outputs), _encode(reading, outputs))


_READ = {
    "pooled": "pooler_output[0]",
    "first": "last_hidden_state[0, 0]",
    "mean": "last_hidden_state[0].mean(0)",
}
"""What is read of an encoder's output, by `model.readout`."""


def _tokens(reading: Reading) -> list[str]:
    """The special tokens as constants."""
    lines = []
    for name in ("prefix", "between", "opening", "suffix"):
        tokens = list(getattr(reading, name))
        if tokens:
            lines.append(f"{name.upper()} = tokenizer.convert_tokens_to_ids({_quoted(tokens)})")
    return [*lines, f"SEPARATOR = tokenizer.convert_tokens_to_ids({_quoted(reading.separator)})"]


_TEXT = '''

def text(value, most, missing=""):
    """Token ids of a text, at most so many; `missing` where it is blank. Special tokens in it are read as letters."""
    value = value if value and value.strip() else missing
    ids = tokenizer(value, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids[:most]


def joined(fields):
    """Fields that are not empty, the separator between them."""
    ids = []
    for field in fields:
        ids += [SEPARATOR, *field] if ids and field else field
    return ids
'''
_HISTORY = '''

def history(items, most_items, item_tokens, most):
    """Items newest first, each a tuple of its texts; the oldest are cut."""
    whole = joined([sum((text(part, item_tokens) for part in item), [])[:item_tokens] for item in items[:most_items]])
    ids = whole[:most]
    return ids[:-1] if len(ids) < len(whole) and ids[-1:] == [SEPARATOR] else ids
'''


def _reading(reading: Reading) -> list[str]:
    """The functions from the fields of a side to its token ids."""
    lines = _TEXT.rstrip("\n").split("\n") + (_HISTORY.rstrip("\n").split("\n") if reading.has_history else [])
    before = "PREFIX + joined([" if reading.context else "PREFIX"
    lines += ["", "", "def context_ids(context):"]
    if reading.context:
        lines += [f"    return {before}", *_fields(reading, "context"), "    ]) + BETWEEN"]
    else:
        lines += ["    return PREFIX"]
    opening = "OPENING + " if reading.opening else ""
    lines += ["", "", "def candidate_ids(candidate):", f"    return {opening}joined(["]
    return [*lines, *_fields(reading, "candidate"), "    ]) + SUFFIX"]


def _fields(reading: Reading, side: str) -> list[str]:
    lines = []
    for feature in getattr(reading, side):
        value = f"{side}[{_quoted(feature.name)}]"
        if isinstance(feature, Text):
            fill = reading.fills.get(feature.name)
            missing = f", missing={_quoted(fill)}" if fill else ""
            lines.append(f"        text({value}, {feature.max_tokens}{missing}),")
        else:
            budgets = f"{feature.max_items}, {feature.item_tokens}, {feature.max_tokens}"
            lines.append(f"        history({value}, {budgets}),")
    return lines


def _finish(lines: list[str], reading: Reading, outputs: Sequence[Outputs]) -> str:
    """The end of `score` and a call."""
    lines = [*lines, f"    return {_scored(outputs)}", "", ""]
    lines += [f"context = {_example(reading.context)}", f"candidate = {_example(reading.candidate)}"]
    return "\n".join([*lines, "print(score(context, candidate))", ""])


_SCORES = {"multiclass": "torch.softmax({}, -1)", "regression": "{}", "contrastive": "{}"}
"""The scores of a task's logits by kind; of others the logistic."""


def _scored(outputs: Sequence[Outputs]) -> str:
    """An expression: the scores of all `logits` [K] by the names of the outputs."""
    kinds = {_SCORES.get(each.kind, "torch.sigmoid({})") for each in outputs}
    if len(kinds) == 1 and (len(outputs) == 1 or "multiclass" not in {each.kind for each in outputs}):
        return f"dict(zip({_quoted(label_names(outputs))}, {kinds.pop().format('logits')}.tolist()))"
    parts, names = [], label_names(outputs)
    for each, own in zip(outputs, output_slices(outputs), strict=True):
        score = _SCORES.get(each.kind, "torch.sigmoid({})").format(f"logits[{own.start}:{own.stop}]")
        parts.append(f"**dict(zip({_quoted(names[own])}, {score}.tolist()))")
    return "{" + ", ".join(parts) + "}"


def _encode(reading: Reading, outputs: Sequence[Outputs]) -> str:
    """sentence-transformers from strings: fields joined by the separator's text."""
    context, candidate = example_strings(reading)
    lines = [
        "import torch",
        "from safetensors.torch import load_file",
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer(".")',
        'head = {name: x.to(model.device) for name, x in load_file("head.safetensors").items()}',
        f"u = model.encode_query([{_quoted(context)}], convert_to_tensor=True)",
        f"v = model.encode_document([{_quoted(candidate)}], convert_to_tensor=True)",
        f'print([{_scored(outputs)} for logits in (u * v) @ head["scale"] + head["bias"]])',
    ]
    return "\n".join([*lines, ""])


def _example(features: Sequence[Text | History]) -> str:
    """Values to try: a text, and of histories items as tuples of texts."""
    return "{" + ", ".join(f"{_quoted(f.name)}: {_quoted(_value(f))}" for f in features) + "}"


def _value(feature: Text | History) -> str | list[tuple[str, ...]]:
    words = feature.name.replace("_", " ")
    if isinstance(feature, Text):
        return f"a {words}"
    return [tuple(f"the {field} of {which} item" for field in feature.fields) for which in ("the newest", "an older")]


def example_strings(reading: Reading) -> tuple[str, str]:
    """A context and a candidate to try, each as one string, fields joined by the separator; the context is empty where
    there is none."""
    return _string(reading.context, reading.separator), _string(reading.candidate, reading.separator)


def _string(features: Sequence[Text | History], separator: str) -> str:
    """The values of `_example` as one string."""
    fields = []
    for feature in features:
        value = _value(feature)
        fields += [value] if isinstance(value, str) else [" ".join(item) for item in value]
    return separator.join(fields)


def _quoted(value: str | Sequence) -> str:
    """A Python literal, in double quotes as formatters like them."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    inside = ", ".join(map(_quoted, value))
    if isinstance(value, tuple):
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return f"[{inside}]"
