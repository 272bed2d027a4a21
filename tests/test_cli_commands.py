"""Arguments of commands, and their exit codes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys

import pytest
from example_config import EXPECTED, FIELDS, message

from srsjax import cli, evaluate
from srsjax.bounds import NotNegative
from srsjax.config import Batch
from srsjax.config_io import to_json
from srsjax.data.store import checksums
from srsjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Arguments of a command."""

    run: str
    """The run folder."""
    input: tuple[str, ...] = ()
    """Files."""
    top: int = 10
    """How many."""
    overwrite: bool = False
    """A name that the config has too."""


def test_arguments_of_a_command_without_config():
    found = cli.parse(Arguments, ["--run", "r", "--input", "a", "b"], "score")
    assert found == Arguments("r", ("a", "b"))
    assert message(cli.parse, Arguments, ["--input", "a"], "score") == "--run is missing: The run folder."
    assert message(cli.parse, Arguments, ["--run", "r", "--tp", "1"], "score") == "unknown field --tp, nearest: --top"


def test_arguments_of_a_command_on_a_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_json(EXPECTED)))
    argv = ["--run", str(tmp_path), "--top", "3", "--batch.eval_rows", "8", "--overwrite"]
    config, arguments = cli.load_run(Arguments, argv, "score")
    assert arguments == Arguments(str(tmp_path), top=3, overwrite=True)
    assert config == dataclasses.replace(EXPECTED, batch=Batch(eval_rows=8))
    assert message(cli.load_run, Arguments, ["--run", "nowhere"], "score").startswith("nowhere: no config.json")
    (tmp_path / "config.json").write_text("{")
    assert "config.json: not JSON" in message(cli.load_run, Arguments, ["--run", str(tmp_path)], "score")


def test_a_command_on_a_run_takes_only_what_it_reads(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(to_json(EXPECTED)))
    fields = (r"data\.catalogues\.\d+\.files", r"batch\.eval_rows")

    def load(*words):
        return cli.load_run(Arguments, ["--run", str(tmp_path), *words], "score", fields=fields)

    config, _ = load("--data.catalogues.1.files", "new.csv")
    assert config.data.catalogues[1].files == "new.csv"
    said = message(load, "--optimizer.learning_rate", "1")
    assert said == "--optimizer.learning_rate: fixed by the run; score --help lists what can be set"
    assert message(load, "--optimizer.lerning_rate", "1") == "unknown field --optimizer.lerning_rate"
    with pytest.raises(SystemExit):
        load("--help")
    shown = capsys.readouterr().out
    assert "--data.catalogues.1.files" in shown and "(default: users.csv)" in " ".join(shown.split())
    assert "--optimizer.learning_rate" not in shown


@pytest.mark.parametrize(
    "load", [lambda: cli.load_config(["--help"], "train"), lambda: cli.load_run(Arguments, ["--help"], "score")]
)
def test_help_needs_no_config(capsys, load):
    with pytest.raises(SystemExit):
        load()
    assert "--optimizer.learning_rate" in capsys.readouterr().out


def test_help_needs_no_other_argument(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(to_json(EXPECTED)))
    with pytest.raises(SystemExit) as end:
        cli.load_run(NeedsMore, ["--run", str(tmp_path), "--help"], "score")
    assert end.value.code == 0 and "--data.catalogues.1.files" in capsys.readouterr().out


def test_numbers_of_a_command_have_bounds(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(to_json(EXPECTED)))
    given = ["--run", str(tmp_path), "--memory"]
    assert cli.load_run(Sized, [*given, "2"], "plan")[1].memory == 2
    assert message(cli.load_run, Sized, [*given, "-2"], "plan") == "--memory: found -2.0, expected at least 0"


@pytest.mark.parametrize("command", ["evaluate", "score", "export"])
def test_what_the_commands_read_of_a_run_are_fields_of_a_config(command):
    """A pattern that matches nothing would forbid what it was to allow."""
    patterns = getattr(importlib.import_module(f"srsjax.{command}"), "FIELDS", ())
    for pattern in patterns:
        assert any(re.fullmatch(pattern, name) for name in FIELDS), pattern


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--evaluate.threshold", "7"), "--evaluate.threshold: found 7.0, expected at least 0 and at most 1"),
        (("--evaluate.ndcg_at", "0"), "--evaluate.ndcg_at: found 0, expected at least 1"),
        (("--batch.rows", "8"), "--batch.rows: fixed by the run; evaluate --help lists what can be set"),
    ],
)
def test_evaluate_refuses_impossible_settings(tmp_path, monkeypatch, capsys, words, said):
    (tmp_path / "config.json").write_text(json.dumps(to_json(EXPECTED)))
    monkeypatch.setattr(sys, "argv", ["evaluate", "--run", str(tmp_path), *words])
    with pytest.raises(SystemExit) as end:
        cli.run(evaluate.main)
    assert end.value.code == 2 and capsys.readouterr().err == f"error: {said}\n"


@dataclasses.dataclass(frozen=True)
class Sized(Arguments):
    """What is measured."""

    memory: NotNegative = 0.0
    """GiB of one device."""


@dataclasses.dataclass(frozen=True)
class NeedsMore(Arguments):
    """Arguments of which two are needed."""

    more: str = dataclasses.field(kw_only=True)
    """Needed too."""


# ---------------------------------------------------------------------------------------------- exit codes


def raises(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "main, code, said",
    [
        (lambda: None, 0, ""),
        (lambda: 75, 75, ""),
        (raises(InputError("a.csv row 3:\n found x")), 2, "error: a.csv row 3: found x\n"),
        (raises(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_exit_codes(main, code, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == code
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(checksums, "damage", lambda: None)  # of stores that other tests spoilt
    with pytest.raises(ZeroDivisionError):
        cli.run(raises(ZeroDivisionError()))
