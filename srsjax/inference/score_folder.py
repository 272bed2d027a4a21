"""A folder of scores: parts that are final as they are written, and what they were made from.

part-00000.parquet ...     scores of consecutive rows of the input
_bad_rows-00000.jsonl ...  what the rows of a part that were set aside have; only where there are any
_manifest.json             what the parts are made from
_SUCCESS                   how many rows there are; written last: with it the folder is complete

Readers of Parquet (pyarrow, pandas, Spark) leave out names that begin with `_` or `.`. Other scores that are replaced
stay in the folder until the new ones, in `.NAME.new` beside it, are complete; then the two exchange their names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from srsjax.data.reading.cells import Problem
from srsjax.data.store.manifest import fingerprint
from srsjax.errors import InputError
from srsjax.files import (
    atomic_file,
    remove_folder,
    remove_leftovers,
    remove_partial_files,
    swap_folders,
    write_json,
    write_text,
)
from srsjax.inference.input_parts import Part
from srsjax.runs.run_folder import differences

OWN = re.compile(r"part-\d+\.parquet|_bad_rows-\d+\.jsonl|_manifest\.json|_SUCCESS|\..*\.partial")
"""Names of the files of a folder of scores."""
KEY = b"srsjax"
"""Key of a part's Parquet metadata."""


class ScoreFolder:
    """A folder of scores being made. The caller holds its lock (`srsjax.locks`)."""

    def __init__(self, path: str | Path, made_from: dict[str, Any]):
        """`made_from`: what scores depend on, as JSON (see `describe_run`)."""
        self.target = Path(path).resolve()
        self.beside = self.target.with_name(f".{self.target.name}.new")
        self.made_from = made_from
        self.fingerprint = fingerprint(made_from)
        self.path = self.target
        """Where parts are written: the folder, or one beside it."""

    def open(self, overwrite: bool) -> bool:
        """Prepares to write parts, or to go on; returns whether the folder is complete already.

        Raises InputError where it holds other scores and not `overwrite`, or anything else in any case.
        """
        if not self.target.exists() and _is_complete(self.beside):  # killed while the two exchanged their names
            self.beside.rename(self.target)
        self._check_files()
        for name in (self.target.name, self.beside.name):
            remove_leftovers(self.target.parent, name)
        parts = any(self.target.glob("part-*.parquet")) if self.target.exists() else False
        if parts and (changed := self._changes(self.target)):
            if not overwrite:
                raise InputError(
                    f"{self.target}: holds scores made otherwise ({'; '.join(changed[:3])}); choose another --output, "
                    f"or --overwrite to replace them once the new ones are complete"
                )
            self.path = self.beside
            if self.beside.exists() and self._changes(self.beside):
                remove_folder(self.beside)
        elif overwrite:
            remove_folder(self.beside)  # what a replacement began, or left of the old scores
        if _is_complete(self.path):
            self._publish()
            return True
        self.path.mkdir(exist_ok=True)
        remove_partial_files(self.path)
        write_json(self.path / "_manifest.json", self.made_from)
        return False

    def made(self) -> list[Part]:
        """The complete parts, in order. Raises InputError for a file that is none of them."""
        found = []
        for file in sorted(self.path.glob("part-*.parquet")):
            try:
                said = json.loads((pq.read_schema(file).metadata or {})[KEY])
                if said.pop("fingerprint") != self.fingerprint:
                    raise ValueError("made from another run, input or settings")
                found.append(Part(**said))
            except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
                raise InputError(f"{file}: no part of these scores ({error}); remove it") from None
        return found

    def write(self, part: Part, scores: pa.Table, problems: Iterable[Problem]) -> None:
        """Writes a part: a table of scores, and what its rows that were set aside have. It is complete on return."""
        said = asdict(part) | {"fingerprint": self.fingerprint}
        if lines := [json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in problems]:
            write_text(self.path / f"_bad_rows-{part.number:05d}.jsonl", "".join(lines))
        scores = scores.replace_schema_metadata({KEY: json.dumps(said)})
        with atomic_file(self.path / f"part-{part.number:05d}.parquet") as partial:
            pq.write_table(scores, partial, compression="zstd")

    def finish(self, summary: dict[str, Any]) -> None:
        """Marks the folder as complete, and puts it in the place of the scores that it replaces."""
        write_json(self.path / "_SUCCESS", summary)
        self._publish()

    def discard_if_empty(self) -> None:
        """Removes the folder where no part was written: whatever is wrong is mended first."""
        if self.path.is_dir() and all(file.name == "_manifest.json" for file in self.path.iterdir()):
            remove_folder(self.path)

    @property
    def count(self) -> int:
        """Parts that are complete."""
        return sum(1 for _ in self.path.glob("part-*.parquet"))

    def summary(self) -> dict[str, Any]:
        """What `finish` was given."""
        return json.loads((self.target / "_SUCCESS").read_text(encoding="utf-8"))

    def _publish(self) -> None:
        if self.path == self.beside:
            swap_folders(self.target, self.beside)
            self.path = self.target
            remove_folder(self.beside)

    def _check_files(self) -> None:
        if self.target.exists() and not self.target.is_dir():
            raise InputError(f"{self.target}: a file, expected a folder for the files of scores")
        if self.target.exists():
            other = [file.name for file in self.target.iterdir() if not OWN.fullmatch(file.name)]
            if other:
                raise InputError(
                    f"{self.target}: not empty, and holds more than files of scores ({min(other)}); choose another "
                    f"--output"
                )

    def _changes(self, folder: Path) -> list[str]:
        """What of another folder's scores is made from something else; none where they are these."""
        try:
            before = json.loads((folder / "_manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ["no _manifest.json says from what"]
        return _named(before, json.loads(json.dumps(self.made_from)))


def _is_complete(folder: Path) -> bool:
    return (folder / "_SUCCESS").exists()


def _named(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, in words: files by name, other things by key."""
    found = [] if before.get("run") == now["run"] else ["run"]
    old = {file["name"]: file for file in before.get("input", {}).get("files", [])}
    new = {file["name"]: file for file in now["input"]["files"]}
    found += [f"input {name}" for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    tables = [each.get("catalogues", {}) for each in (before, now)]
    found += [f"catalogue {name}" for name in {**tables[0], **tables[1]} if tables[0].get(name) != tables[1].get(name)]
    rest = [{key: each[key] for key in each if key not in ("run", "catalogues")} for each in (before, now)]
    for each in rest:
        each["input"] = {key: value for key, value in each.get("input", {}).items() if key != "files"}
    return found + differences(rest[0], rest[1])
