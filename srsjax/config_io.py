"""Configs as plain data: checked field by field, read from text, and to and from JSON.

Fields are typed by `int`, `float`, `bool`, `str`, `Literal`, dataclasses, `tuple`, `dict` and unions of those; every
function here walks a value and its type together.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import math
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from srsjax.bounds import Bounds
from srsjax.config import TrainConfig
from srsjax.errors import InputError, near


def to_json(config: TrainConfig) -> dict:
    """A config as JSON data. Where the type is a union of dataclasses, a key `type` holds the class name."""
    return _to_json(config, type(config))


def from_json(data: dict, source: str = "config.json") -> TrainConfig:
    """The config that `to_json` wrote; a field that is absent takes its default.

    Raises InputError naming `source` and the field: an unknown field, a value of the wrong type.
    """
    return check(_from_json(data, TrainConfig, source, ""), TrainConfig, source)


def check(value: Any, expected: Any, source: str, name: str = "") -> Any:
    """`value` if it is of the type `expected` and within its bounds, all the way down; lists become tuples, whole
    numbers floats.

    Raises InputError: `source`: `name`: found ..., expected ... .
    """
    if _is_union(expected):
        expected = next((member for member in typing.get_args(expected) if _fits(value, member)), expected)
    if not _fits(value, expected):
        raise _wrong(value, expected, source, name)
    if isinstance(expected, type) and dataclasses.is_dataclass(expected):
        hints, limits = type_hints(expected), bounds(expected)
        made = {key: check(getattr(value, key), hints[key], source, _at(name, key)) for key in hints}
        for key, limit in limits.items():
            check_bounds(made[key], limit, f"{source}: {_at(name, key)}")
        return expected(**made)
    if typing.get_origin(expected) is dict:
        _, held = typing.get_args(expected)
        return {check(key, str, source, name): check(item, held, source, _at(name, key)) for key, item in value.items()}
    if typing.get_origin(expected) is tuple:
        elements = zip(value, _elements(expected, len(value)), strict=True)
        return tuple(check(item, element, source, _at(name, i)) for i, (item, element) in enumerate(elements))
    return float(value) if expected is float else value


def from_text(words: list[str], expected: Any, source: str) -> Any:
    """The value of type `expected` that these words of a command line say. Raises InputError: `source`: found ... ."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if _is_union(expected):  # str | tuple[str, ...]
        return words[0] if len(words) == 1 else tuple(words)
    if origin is tuple:
        elements = zip(words, _elements(expected, len(words)), strict=True)
        return tuple(from_text([word], element, source) for word, element in elements)
    if origin is dict:
        return dict(_pair(word, arguments[1], source) for word in words)
    (word,) = words
    try:
        value = PARSERS.get(expected, str)(word)
    except ValueError:
        value = None
    if not _fits(value, expected):
        raise _wrong(word, expected, source)
    return value


def check_bounds(value: float, limit: Bounds, where: str) -> None:
    """Raises InputError, which names the field `where`, for a number that is not within its bounds."""
    if not limit.allow(value):
        raise InputError(f"{where}: found {value}, expected {limit.wanted(value)}")


class Leaf(NamedTuple):
    """One settable field of a config."""

    name: str
    """Dotted name: `optimizer.learning_rate`, `schema.context.0.max_tokens`."""
    type: Any
    value: Any
    doc: str
    """Its documentation."""
    owner: type
    """The dataclass it is a field of."""
    bounds: Bounds | None = None
    """Of a number."""


def leaves(config: Any, prefix: str = "") -> Iterator[Leaf]:
    """Every settable field below a dataclass instance, its own fields first, then those of its parts."""
    hints, docs, limits = type_hints(type(config)), field_docs(type(config)), bounds(type(config))
    parts = []
    for name, expected in hints.items():
        value, dotted = getattr(config, name), prefix + name
        if dataclasses.is_dataclass(value):
            parts.append((dotted, value))
        elif isinstance(value, tuple) and _holds_dataclasses(expected):
            parts += [(f"{dotted}.{i}", item) for i, item in enumerate(value)]
        else:
            yield Leaf(dotted, expected, value, docs.get(name, ""), type(config), limits.get(name))
    for dotted, part in parts:
        yield from leaves(part, dotted + ".")


def with_field(config: Any, name: str, value: Any) -> Any:
    """A copy of a config with the field of this dotted name changed."""
    first, _, rest = name.partition(".")
    if isinstance(config, tuple):
        at = int(first)
        return (*config[:at], with_field(config[at], rest, value), *config[at + 1 :])
    return dataclasses.replace(config, **{first: with_field(getattr(config, first), rest, value) if rest else value})


def describe(expected: Any) -> str:
    """A type in words: `int`, `one of linear, cosine`, `str or tuple of str`."""
    arguments = typing.get_args(expected)
    if _is_union(expected):
        return " or ".join(describe(member) for member in arguments)
    match typing.get_origin(expected):
        case typing.Literal:
            return ("one of " if len(arguments) > 1 else "") + ", ".join(arguments)
        case origin if origin is tuple:
            count = "" if Ellipsis in arguments else f"{len(arguments)} "
            return f"tuple of {count}{describe(arguments[0])}"
        case origin if origin is dict:
            return f"dict of {describe(arguments[1])} by name"
    return {float: "finite number", bool: "true or false"}.get(expected, expected.__name__)


def _cached[Result](read: Callable[[type], Result]) -> Callable[[type], Result]:
    """`functools.cache`, for which a type checker takes the class of a dataclass to be unhashable."""
    return functools.cache(read)


@_cached
def type_hints(cls: type) -> dict[str, Any]:
    """The resolved types of a dataclass's fields, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@_cached
def bounds(cls: type) -> dict[str, Bounds]:
    """The bounds of a dataclass's numbers, by field."""
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Bounds):
                found[name] = extra
    return found


def required(cls: type) -> list[str]:
    """The fields of a dataclass that have no default."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]


@_cached
def field_docs(cls: type) -> dict[str, str]:
    """The string literal that follows each field in the source of a dataclass and its bases."""
    docs = {}
    for base in reversed(cls.__mro__[:-1]):
        for statement, following in itertools.pairwise(_class_definitions(base.__module__)[base.__name__].body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                docs[ast.unparse(statement.target)] = " ".join(ast.literal_eval(following.value).split())
    return docs


@functools.cache
def _class_definitions(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module by name. Its source is parsed once: every command waits for this before it begins."""
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    return {statement.name: statement for statement in body if isinstance(statement, ast.ClassDef)}


def _to_json(value: Any, expected: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = {"type": type(value).__name__} if _is_union(expected) else {}
        return tag | {name: _to_json(getattr(value, name), hint) for name, hint in type_hints(type(value)).items()}
    if isinstance(value, tuple):
        return [_to_json(item, _element(expected)) for item in value]
    return dict(value) if isinstance(value, dict) else value


def _from_json(data: Any, expected: Any, source: str, name: str) -> Any:
    """Objects of `data` as the dataclasses they stand for; every other value is left for `check`."""
    if isinstance(data, list):
        return tuple(_from_json(item, _element(expected), source, _at(name, i)) for i, item in enumerate(data))
    if not isinstance(data, dict):
        return data
    where = f"{source}: {name}" if name else source
    if _is_union(expected):
        classes = {member.__name__: member for member in typing.get_args(expected)}
        tag, data = data.get("type"), {key: item for key, item in data.items() if key != "type"}
        if not isinstance(tag, str) or tag not in classes:
            raise InputError(f"{where}: found type {json.dumps(tag)}, expected one of {', '.join(classes)}")
        expected = classes[tag]
    if not (isinstance(expected, type) and dataclasses.is_dataclass(expected)):
        return data
    hints = type_hints(expected)
    for key in data:
        if key not in hints:
            raise InputError(f"{where}: unknown field {key}{near(key, hints)}")
    for key in required(expected):
        if key not in data:
            raise InputError(f"{where}: no field {key}, which {expected.__name__} needs")
    return expected(**{key: _from_json(item, hints[key], source, _at(name, key)) for key, item in data.items()})


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value is of this type, seen from outside (not what it holds)."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        return isinstance(value, tuple | list) and (Ellipsis in arguments or len(value) == len(arguments))
    if origin is dict:
        return isinstance(value, dict)
    if expected is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is expected  # not isinstance: True is no int here, and JSON has no subclasses


def _elements(expected: Any, count: int) -> tuple:
    """The types of the `count` elements of a tuple type."""
    arguments = typing.get_args(expected)
    return arguments[:1] * count if Ellipsis in arguments else arguments


def _element(expected: Any) -> Any:
    """`X` of `tuple[X, ...]`, else None."""
    arguments = typing.get_args(expected)
    return arguments[0] if typing.get_origin(expected) is tuple and Ellipsis in arguments else None


def _holds_dataclasses(expected: Any) -> bool:
    """Whether the type is a tuple of dataclasses, or of a union of them."""
    element = _element(expected)
    return any(dataclasses.is_dataclass(member) for member in (element, *typing.get_args(element)))


def _is_union(expected: Any) -> bool:
    return typing.get_origin(expected) in (typing.Union, types.UnionType)


def _at(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _pair(word: str, expected: type, source: str) -> tuple[str, Any]:
    """`eps=1e-8` as a name and a value."""
    name, equals, text = word.partition("=")
    if not equals:
        raise InputError(f'{source}: found "{word}", expected NAME={expected.__name__.upper()}')
    return name, from_text([text], expected, f"{source} {name}")


def _bool(word: str) -> bool | None:
    return {"true": True, "false": False}.get(word.lower())


PARSERS: dict[type, Callable[[str], Any]] = {bool: _bool, int: int, float: float}
"""What a word of the command line is for a field of these types; for any other, itself."""


def _wrong(value: Any, expected: Any, source: str, name: str = "") -> InputError:
    found = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    if dataclasses.is_dataclass(value):
        found = type(value).__name__
    where = f"{source}: {name}" if name else source
    return InputError(f"{where}: found {textwrap.shorten(found, 80)}, expected {describe(expected)}")
