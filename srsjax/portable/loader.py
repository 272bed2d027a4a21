"""Python that reads a folder with a program: text for its README, to be run as it is printed.

It needs jax, flatbuffers, numpy, safetensors and tokenizers; how inputs are made is in `inputs.json`.
"""

from __future__ import annotations

import json

from srsjax.data.kinds import is_text
from srsjax.model.hf_card import Described
from srsjax.portable.program import features_read

_START = """import json

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file
{imports}
about = json.load(open("inputs.json"))
weights = jax.device_put(load_file("weights.safetensors"))
program = jax.jit(export.deserialize(bytearray(open("scores.jax", "rb").read())).call)
"""

_TEXT = '''tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.encode_special_tokens = True  # a text that spells "[SEP]" is read as those letters


def text(value, most, missing=""):
    """Token ids of a text, at most so many; `missing` where it is blank."""
    value = value if value and value.strip() else missing
    return tokenizer.encode(value, add_special_tokens=False).ids[:most]


def joined(fields):
    """Fields that are not empty, the separator between them."""
    ids = []
    for field in fields:
        ids += [about["separator"], *field] if ids and field else field
    return ids


def tokens(side, values):
    """Token ids of one side of a pair, special ones included."""
    fields = [{field}(values.get(field["name"])) for field in about[side]["texts"]]
    return about[side]["before"] + joined(fields) + about[side]["after"]
'''
_PLAIN = 'text(values.get(field["name"]), field["max_tokens"], field["missing"])'
_EITHER = 'read(field, values.get(field["name"]))'

_HISTORY = '''

def read(field, value):
    """A text, or a history: items newest first, each a list of its texts; the oldest are cut."""
    if "max_items" not in field:
        return text(value, field["max_tokens"], field["missing"])
    most = field["item_tokens"]
    items = [sum((text(part, most) for part in item), [])[:most] for item in (value or [])[: field["max_items"]]]
    whole = joined(items)
    ids = whole[: field["max_tokens"]]
    return ids[:-1] if len(ids) < len(whole) and ids[-1] == about["separator"] else ids
'''

_FEATURES = '''

def value(feature, given):
    """A feature besides text as the program takes it; None is missing."""
    given = feature["missing"] if given is None else given
    given = np.nan if given is None else given  # the model knows what is missing
    if feature["kind"] == "vector":
        return np.broadcast_to(np.asarray(given, np.float32), feature["shape"])
    if feature["kind"] == "numeric":
        return np.float32(given % feature["period"] if feature["period"] else given)
    if not feature["shape"]:
        return category(feature, given)
    ids = [category(feature, each) for each in ([given] if isinstance(given, str) else given)][: feature["shape"][0]]
    return np.array(ids + [0] * (feature["shape"][0] - len(ids)), np.int32)
'''
_CATEGORY = '''
vocabularies = json.load(open("vocabularies.json"))
known = {name: {each: 1 + i for i, each in enumerate(own)} for name, own in vocabularies.items()}


def category(feature, text):
    """The id of a category; 0 where it is missing or unknown."""
    return np.int32(known[feature["vocabulary"]].get(text, 0))
'''
_HASHED = '''
vocabularies = json.load(open("vocabularies.json"))
known = {name: {each: 1 + i for i, each in enumerate(own)} for name, own in vocabularies.items()}


def mix(x):
    """SplitMix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def category(feature, text):
    """The id of a category; 0 where it is missing or unknown."""
    if text == "" or "buckets" not in feature:
        return np.int32(0 if text == "" else known[feature["vocabulary"]].get(text, 0))
    factors = [mix((i + 1) * 0x9E3779B97F4A7C15 % 2**64) | 1 for i in range(len(text.encode()))]
    total = sum((byte + 1) * factor for byte, factor in zip(text.encode(), factors)) + len(factors)
    return np.int32(1 + mix(total % 2**64) % feature["buckets"])
'''

_SCORE = '''

def score(pairs):
    """The scores of (context, candidate) pairs, mappings of fields to values: arrays by task."""
    inputs = {{"features": {features}}}
{text}    return {{task: np.asarray(found) for task, found in program(weights, inputs)["scores"].items()}}


print(score([({context}, {candidate})]))
'''
_PADDED = """    sides = [(tokens("context", context), tokens("candidate", candidate)) for context, candidate in pairs]
    lengths = np.array([[len(side) for side in pair] for pair in sides], np.int32)
    width = min(-(-lengths.sum(1).max() // 32) * 32, about["max_tokens"])  # few widths: each is compiled once
    padded = [first + second + [about["pad"]] * (width - len(first) - len(second)) for first, second in sides]
    inputs |= {"tokens": np.array(padded, np.int32)}
    inputs |= {"context_length": lengths[:, 0], "candidate_length": lengths[:, 1]}
"""
_ARRAYS = """{
        each["name"]: np.array([value(each, pair[each["side"] == "candidate"].get(each["name"])) for pair in pairs])
        for each in about["features"]
    }"""


def code(about: Described, example: tuple[dict, dict]) -> str:
    """The program of the README for a model; `example` is a pair that it scores at its end."""
    spec, features = about.spec, features_read(about.spec)
    schema = (*about.schema.context, *about.schema.candidate)
    has_history = any(is_text(feature) and not hasattr(feature, "fill") for feature in schema)
    imports = "from tokenizers import Tokenizer\n" if spec.reads_text else ""
    parts = [_START.format(imports=imports)]
    if spec.reads_text:
        text = _TEXT.replace('{field}(values.get(field["name"]))', _EITHER if has_history else _PLAIN)
        parts += [text, *[_HISTORY] * has_history]
    if any(feature.kind == "categorical" for feature in features):
        hashed = any(getattr(feature, "hash_buckets", 0) for feature in schema)
        parts.append(_HASHED if hashed else _CATEGORY)
    parts += [_FEATURES] * bool(features)
    context, candidate = (json.dumps(side, ensure_ascii=False).replace("null", "None") for side in example)
    parts.append(
        _SCORE.format(
            features=_ARRAYS if features else "{}",
            text=_PADDED if spec.reads_text else "",
            context=context,
            candidate=candidate,
        )
    )
    return "".join(parts)
