"""What a config asks of the tables: which column of which table each feature reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from srsjax import config
from srsjax.config import Data, Schema, columns
from srsjax.data.kinds import is_text, kind_of
from srsjax.data.preparing import privacy
from srsjax.data.reading.cells import Problems
from srsjax.data.reading.vectors import Place


@dataclass(frozen=True)
class Column:
    """A column of a table and how it is read."""

    table: str
    """Name of a catalogue; empty for the log."""
    name: str
    kind: str
    """`text`, `texts` (a list), `number`, `time` (in seconds), `times` (a list) or `vector`."""
    size: int = 0
    """Length of a vector."""
    items: str = ""
    """The catalogue whose keys a list holds."""
    place: Place | None = None
    """Where vectors are, if the column does not hold them."""
    of: str = ""
    """The column of that catalogue which stands for each key; empty where the items themselves do."""
    secret: bytes = field(default=b"", repr=False, compare=False)
    """What keys the hashes that its texts are read as; empty reads them as they are."""


@dataclass(frozen=True)
class Sources:
    """The schema and the data settings together: where everything is read from."""

    schema: Schema
    data: Data

    @cached_property
    def features(self) -> tuple[config.Feature, ...]:
        """All features, context first, in schema order."""
        return self.schema.context + self.schema.candidate

    @cached_property
    def catalogues(self) -> dict[str, config.Catalogue]:
        """Catalogues by name."""
        return {catalogue.name: catalogue for catalogue in self.data.catalogues}

    def column(self, feature: config.Feature) -> Column:
        """The column a feature reads."""
        kind = kind_of(feature)
        column = self.locate(feature.column or feature.name, kind.reads)
        of = "" if kind.is_text else "".join(kind.item_fields)
        place = kind.place(self.data.store)
        return replace(column, size=kind.length, items=kind.items or "", of=of, place=place)

    def along(self, feature: config.Feature) -> Column | None:
        """The column of the list that a feature says more of."""
        name = feature.along if isinstance(feature, config.Categorical) else ""
        return self.column(next(each for each in self.features if each.name == name)) if name else None

    def since(self, feature: config.Feature) -> Column | None:
        """The column of times that is taken off the one a feature reads, or up to which its own count."""
        since = kind_of(feature).since
        return self.locate(since, "time") if since else None

    def read(self, feature: config.Feature) -> list[Column]:
        """All columns that a feature reads of its row: its own, and the one that is taken off."""
        since = self.since(feature)
        return [self.column(feature), *([since] if since else [])]

    @cached_property
    def drawn_by(self) -> Column | None:
        """The column of the candidates' catalogue that says how often an item is drawn as a negative."""
        return Column(self.home or "", self.data.negatives_by, "number") if self.data.negatives_by else None

    def item_columns(self, feature: config.Feature) -> list[Column]:
        """The text columns of the items that a history lists; none for other features."""
        kind = kind_of(feature)
        return [self.locate(f"{kind.items}.{name}", "text") for name in kind.item_fields]

    def locate(self, name: str, kind: str) -> Column:
        """The column that `column` or `catalogue.column` names."""
        place = self.place(name)
        return Column(*place, kind, secret=self.secret if place in self._of_users else b"")

    def place(self, name: str) -> privacy.Place:
        """Table (empty for the log) and column that `column` or `catalogue.column` names."""
        table, _, rest = name.partition(".")
        return (table, rest) if table in self.catalogues else ("", name)

    @cached_property
    def secret(self) -> bytes:
        """The secret of `data.hash_key_env`, empty without one. Raises InputError where it is not there or short."""
        return privacy.secret(self.data.hash_key_env)

    @cached_property
    def _of_users(self) -> set[privacy.Place]:
        """Where ids of users are: the column `data.user`, and what is joined by it."""
        user = self.place(self.data.user)
        return privacy.joined_with(user, self.catalogues) if self.data.user else set()

    @cached_property
    def _private(self) -> set[privacy.Place]:
        """The columns whose values are not to be shown."""
        features = [feature for feature in self.features if getattr(feature, "private", False)]
        columns = [*map(self.place, self.data.private), *((c.table, c.name) for c in map(self.column, features))]
        return {*columns, *(self._of_users if self.data.hash_key_env else ())}

    def is_private(self, feature: config.Feature) -> bool:
        """Whether a feature reads a column whose values are not to be shown."""
        column = self.column(feature)
        return (column.table, column.name) in self._private

    def hides(self, name: str) -> bool:
        """Whether the values of `column` or `catalogue.column` are not to be shown."""
        return self.place(name) in self._private

    def is_of_users(self, feature: config.Feature) -> bool:
        """Whether a feature reads the ids of users."""
        column = self.column(feature)
        return (column.table, column.name) in self._of_users

    def problems(self, table: str = "", on_bad_row: Literal["error", "skip"] = "error") -> Problems:
        """What takes the problems of a chunk of a catalogue, or of the log."""
        return Problems(on_bad_row, frozenset(name for of, name in self._private if of == table))

    @cached_property
    def split(self) -> tuple[Column, ...]:
        """The columns that decide the split; none for a hash of the whole row."""
        names = columns(self.data.split.column)
        if not names and self.data.split.by == "hash":
            names = columns(self.data.group_by)
        return tuple(self.locate(name, "text") for name in names)

    @cached_property
    def user(self) -> Column | None:
        """The column by which GAUC groups."""
        return self.locate(self.data.user, "text") if self.data.user else None

    def joined(self, splitting: bool, user: bool = True) -> list[str]:
        """Names of the catalogues that log rows are joined with; with `splitting`, those that decide the split too,
        with `user`, that of the user."""
        used = [column.table for feature in self.features for column in self.read(feature)]
        used += [self.user.table] if self.user and user else []
        used += [column.table for column in self.split] if splitting else []
        return [name for name in self.catalogues if name in used]

    @cached_property
    def home(self) -> str | None:
        """The catalogue whose rows are the store's items: the one that all candidate text (or, without text, all
        joined candidate features) comes from. None where candidates take text from the log or from several."""
        texts = [feature for feature in self.schema.candidate if is_text(feature)]
        homes = {self.column(feature).table for feature in texts or self.schema.candidate}
        return next(iter(homes)) or None if len(homes) == 1 else None

    def on(self, catalogue: str) -> tuple[str, ...]:
        """Columns of the log that hold a catalogue's key."""
        spec = self.catalogues[catalogue]
        return columns(spec.on) or columns(spec.key)

    def log_columns(self, labels: bool, splitting: bool) -> list[str]:
        """Names of the columns of the log that are read (after `explode`), each once: with the `labels` of evaluation
        or without, with what decides duplicates, impressions and the split (`splitting`) or without. The user, by whom
        metrics are grouped, is read with either of them: scores do not depend on it."""
        read = [f for f in self.features if labels or not kind_of(f).training_only]
        names = [column.name for feature in read for column in self.read(feature) if not column.table]
        names += [name for catalogue in self.joined(splitting, labels or splitting) for name in self.on(catalogue)]
        names += [self.user.name] if self.user and (labels or splitting) and not self.user.table else []
        if labels:
            for task in self.schema.tasks:
                names += ["" if task.positive == "*" else task.column or task.name, task.impressions, task.weight]
            names += [self.data.oracle]
        if splitting:
            names += columns(self.data.group_by) + tuple(column.name for column in self.split if not column.table)
            names += [name for name in columns(self.data.unique) if name != "*"]
        return [name for name in dict.fromkeys(names) if name]

    @cached_property
    def whole_row(self) -> bool:
        """Whether every column of the log is needed: to hash the whole row."""
        split = self.data.split
        by_row = split.by == "hash" and not self.split and 0 < split.valid + split.test < 1
        return by_row or "*" in columns(self.data.unique)

    def catalogue_columns(self, name: str, splitting: bool) -> list[Column]:
        """The columns of a catalogue that are read, besides its key; with `splitting`, what decides the split too."""
        wanted = [column for feature in self.features for column in self.read(feature)]
        wanted += [self.drawn_by] if self.drawn_by else []
        wanted += (list(self.split) if splitting else []) + ([self.user] if self.user else [])
        for feature in self.features:
            wanted += self.item_columns(feature)
        return [column for column in dict.fromkeys(wanted) if column.table == name]

    def kept_columns(self, names: Sequence[str]) -> list[str]:
        """The columns of a log, of which `names` are all, that go into its file of scores: `data.keys`, or all that no
        text and no vector is read from."""
        if self.data.keys:
            return list(self.data.keys)
        own = [column for column in map(self.column, self.features) if not column.table]
        long = {column.name for column in own if column.kind in ("texts", "vector") and not column.place}
        long |= {self.column(f).name for f in self.features if is_text(f) and not self.column(f).table}
        return [name for name in names if name not in long]
