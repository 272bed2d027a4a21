"""Configs as plain data: checked field by field, to and from JSON."""

from __future__ import annotations

from srsjax.config import TrainConfig


def to_json(config) -> dict:
    """A config as JSON data; a member of a union (a feature) carries its class name as `type`."""
    raise NotImplementedError


def from_json(data: dict, source: str = "config.json") -> TrainConfig:
    """The config that `to_json` wrote. A field that is absent takes its default; raises InputError for an unknown
    field or a value of the wrong type, naming `source`."""
    raise NotImplementedError
