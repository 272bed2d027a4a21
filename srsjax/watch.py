"""Says whether new rows are still like those that a run was tested on:
`python -m srsjax.watch --run runs/ctr --input 'new/*.parquet'`.

The rows have the columns of the training log; label columns may be missing. They are read, grouped into impressions and
scored as `evaluate` does, and compared with `reference.json` of the run: the distribution of each feature, of words,
items and scores, what is unknown, and, where there are labels, how true the scores are: `calibration` is the mean label
less the mean score, `slope` below 1 says that scores are too far apart. One line each (shares that were 0 and are left
out), and all of it in a JSON file.

Something has drifted where it differs by more than chance and by so much that it matters. Chance is that of all lines
together (`--alpha`); rows of one user are not taken for independent ones. Distances are the population stability index,
less what it would be by chance (`--psi`), and that of Kolmogorov and Smirnov (`--ks`). Of few rows only large drift can
be told from chance.

Exit codes: 0 nothing drifted; 3 something did, and is named; 2 wrong input or arguments, one line on stderr; 1 a bug.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from srsjax import cli, distributed
from srsjax.bounds import Positive, Share
from srsjax.compilation import enable_cache
from srsjax.config import TrainConfig, columns
from srsjax.console import say
from srsjax.cpu import keep_freed_memory
from srsjax.data.preparing.prepare import labelled_store
from srsjax.data.reading import tables
from srsjax.data.reading.cells import Problem
from srsjax.data.reading.files import expand
from srsjax.data.store.arrays import Store
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.errors import InputError, did_you_mean
from srsjax.files import make_way, write_json
from srsjax.inference.scorer import Scorer
from srsjax.metrics.drift import FEWEST
from srsjax.runs import drift, reference
from srsjax.runs.observation import MOST, Named, Rows, not_watched
from srsjax.runs.reference import Reference
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Quantize
from srsjax.runs.slices import category_name

FIELDS = (
    r"data\.catalogues\.\d+\.(files|format|encoding)",
    r"data\.log\.(format|encoding)",
    r"data\.workers",
    r"batch\.eval_rows",
    r"mesh\..*",
    r"model\.(dtype|attention)",
)
"""Fields of the run's config that watching reads."""

DRIFTED = 3
"""Exit code: something has drifted."""
SHOWN = 40
"""Characters of an item's text that are shown."""


@dataclass(frozen=True)
class Arguments:
    """What the command takes besides the fields of the run's config."""

    run: str
    """Run folder written by srsjax.train."""
    input: str | tuple[str, ...]
    """Paths or globs of the new rows: the columns of the training log, labels not needed."""
    output: str = "watch.json"
    """JSON file of what was found."""
    alpha: Share = 0.001
    """Probability of any alarm at all where nothing has drifted."""
    psi: Positive = 0.1
    """Population stability index, beyond that by chance, from which on a difference matters."""
    ks: Positive = 0.1
    """Distance of Kolmogorov and Smirnov from which on a difference matters."""
    share: Positive = 0.01
    """Change of the share of unknown words, categories or items from which on it matters: 0.01 is one in a hundred."""
    calibration: Positive = 0.1
    """Change of mean label less mean score, as a share of the mean label, or of the slope of labels over scores, from
    which on it matters."""
    metric: Positive = 0.03
    """Loss of the metric that chooses checkpoints, as a share of it, from which on it matters."""
    ignore: tuple[str, ...] = ()
    """Lines that are left out, by their names: what must change, as a time."""
    quantize: Quantize = "none"
    """`int8` computes with 8-bit weights, all that may be (`srsjax.compress` chooses them)."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, arguments = cli.load_run(Arguments, argv, "watch", __doc__, FIELDS)
    distributed.initialize()
    distributed.on_first(lambda: make_way(arguments.output))
    enable_cache()
    keep_freed_memory()
    folder = RunFolder(arguments.run)
    known = Reference.load(folder)
    check_ignored(known, arguments.ignore)
    scorer = Scorer.load(arguments.run, config=config, unknown="missing", quantize=arguments.quantize)
    found, seen = watch(scorer, config, known, arguments)
    drifted = [each.name for each in found if each.drifted]
    say(drift.table(found, f"{seen['rows']:,} new rows beside {known.rows:,} of the {known.split} split"))
    if private := not_watched(scorer.encoder.sources):
        say(f"not watched, as private: {', '.join(private)}")
    say(f"drift: {', '.join(drifted)}" if drifted else "no drift")
    if distributed.is_first():
        lines = {each.name: each.to_json() for each in found}
        said = {"run": arguments.run, **seen, "limits": vars(limits_of(arguments)), "drift": drifted}
        write_json(Path(arguments.output), said | {"watched": lines})
    return DRIFTED if drifted else 0


def watch(
    scorer: Scorer, config: TrainConfig, known: Reference, arguments: Arguments
) -> tuple[list[drift.Finding], dict[str, Any]]:
    """What became of everything that is watched, and what was read. Raises InputError as reading the rows does."""
    log = replace(config.data.log, files=arguments.input)
    labelled = has_labels(config, log.files, tables.column_names(log, columns(config.data.explode)))
    scorer.encoder = scorer.encoder.with_new_rows(log)
    with tempfile.TemporaryDirectory() as folder:
        bad: list[Problem] = []
        store = labelled_store(scorer.encoder, log, Path(folder) / "store", labelled, partial(keep_first, bad))
        rows = few_enough(store, config, scorer, bad)
        outputs = scorer.session.spec.outputs
        raw = scorer.raw_logits(rows.split, store.items)
        logits = scorer.calibration.apply(config.schema, outputs, rows.split, store.items, raw)
        series = reference.observe(rows, known.known, outputs, logits)
        lacking = reference.lacking(replace(config, data=scorer.encoder.sources.data), store.manifest)
        split = store.split("test")
        counts = len(split.item), len(split)
        named = Namer(scorer, rows)
        found = drift.find(known, series, lacking, counts, limits_of(arguments), named, arguments.ignore)
    if bad:
        count = store.manifest["rows"]["left_out"]["bad row"]
        say(f"{count:,} rows cannot be read and are left out, the first: {bad[0]}")
    files = [str(path) for path in expand(log.files)]
    return found, {"input": files, "rows": counts[0], "impressions": counts[1], "labels": labelled}


def keep_first(bad: list[Problem], problem: Problem) -> None:
    """Adds the first problem; there may be as many as rows."""
    if not bad:
        bad.append(problem)


def few_enough(store: Store, config: TrainConfig, scorer: Scorer, bad: Sequence[Problem]) -> Rows:
    """The rows that are looked at; `bad` ones are not in the store. Raises InputError where they are too few."""
    split = store.split("test")
    if not len(split):
        why = f": {bad[0]}" if bad else ""
        raise InputError(f"--input: no row is left to compare{why}")
    rows, _ = reference.chosen(config, split, store.items, scorer.encoder.text)
    if (users := reference.users(rows)) < FEWEST:
        raise InputError(
            f"--input: found {users} users (impressions, without data.user), expected at least {FEWEST} to tell drift "
            "from chance; give more rows"
        )
    if len(rows.split.item) < len(split.item):
        say(f"of {len(split.item):,} candidates, {len(rows.split.item):,} are looked at, by lot (about {MOST:,})")
    return rows


def has_labels(config: TrainConfig, files: str | Sequence[str], names: Sequence[str]) -> bool:
    """Whether the labels of all tasks are read. Of drawn negatives they always are: without, items would be others."""
    wanted = [t.column or t.name for t in config.schema.tasks if t.positive != "*"]
    wanted += [name for t in config.schema.tasks for name in (t.impressions, t.weight) if name]
    lacking = [name for name in (*wanted, *columns(config.data.oracle)) if name not in names]
    if config.data.negatives or not lacking:
        return True
    say(f"no column {', '.join(lacking)}: how true the scores are is not watched")
    return False


def limits_of(arguments: Arguments) -> drift.Limits:
    """The limits that the arguments ask for."""
    return drift.Limits(
        arguments.alpha, arguments.psi, arguments.ks, arguments.share, arguments.calibration, arguments.metric
    )


def check_ignored(known: Reference, ignore: Sequence[str]) -> None:
    """Raises InputError for a name that no line has."""
    names = [*known.series, *known.lacking]
    for name in ignore:
        if name not in names:
            raise InputError(f"--ignore: found {name!r}, expected one of {', '.join(names)}{did_you_mean(name, names)}")


class Namer:
    """What a person calls a category, a word and an item."""

    def __init__(self, scorer: Scorer, rows: Rows):
        self.text: TextEncoder = scorer.encoder.text
        self.vocabularies = scorer.encoder.fitted.vocabularies
        self.rows = rows

    def __call__(self, named: Named, feature: str, number: int) -> str:
        """The name of an id of a mix (`srsjax.runs.drift.Name`)."""
        if named == "token":
            return str(self.text.tokenizer.id_to_token(number))
        if named == "item":
            return self._item(number)
        return category_name(self.vocabularies.get(feature), number)

    def _item(self, number: int) -> str:
        """The beginning of an item's text, where the new rows have it."""
        found = (self.rows.identities == number).nonzero()[0]
        tokens = self.rows.items.tokens[int(self.rows.split.item[found[0]])].tolist() if len(found) else []
        text = self.text.tokenizer.decode(tokens)
        return f"“{text[:SHOWN]}”" if text else f"item {number:016x}"


if __name__ == "__main__":
    cli.run(main)
