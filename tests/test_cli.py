"""Configs from files and command lines: every field can be set, every mistake is one line that says where."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path

import pytest
from example_config import EXPECTED, FIELDS, get_config, message

from srsjax import cli
from srsjax.config import (
    Catalogue,
    Categorical,
    History,
    Numeric,
    Table,
    Task,
    Text,
    TrainConfig,
    Vector,
)
from srsjax.config_io import check, field_docs, from_json, to_json, with_field

CONFIG = "from srsjax.config import *\n\n" + inspect.getsource(get_config)


@pytest.fixture
def config_file(tmp_path):
    def write(text: str = CONFIG) -> str:
        path = tmp_path / "shop.py"
        path.write_text(text)
        return str(path)

    return write


# ---------------------------------------------------------------------------------------------- the command line


def another(leaf) -> tuple[list[str], object]:
    """Words for a field that set it to something else than it is, and what they set it to."""
    expected, value = leaf.type, leaf.value
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is typing.Literal:
        other = next((choice for choice in arguments if choice != value), arguments[0])
        return [other], other
    if origin is dict:
        return ["b1=0.5", "eps=1e-06"], {"b1": 0.5, "eps": 1e-6}
    if origin is tuple and typing.get_origin(arguments[0]) is typing.Literal:
        made = [choice for choice in typing.get_args(arguments[0]) if choice not in value]
        return made, tuple(made)
    if origin is tuple:
        made = [7, 8, 9] if arguments[0] is int else [f"word {i}" for i in range(3)]
        return [str(each) for each in made], tuple(made)
    number = next((n for n in (-7, 7, 777) if leaf.bounds is None or leaf.bounds.allow(n)), 7)
    share = next((n for n in (0.25, 777.5) if leaf.bounds is None or leaf.bounds.allow(n)), 0.25)
    simple = {bool: (["true"], True), int: ([f"{number}"], number), float: ([f"{share}"], share), str: (["x y"], "x y")}
    # What else there is takes one string or several.
    return simple.get(expected, (["x", "y"], ("x", "y")))


def field(config, name: str):
    for part in name.split("."):
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return config


def test_every_field_can_be_set_on_the_command_line_and_alone(config_file):
    path = config_file()
    for name, leaf in FIELDS.items():
        words, expected = another(leaf)
        config, _ = cli.load_config(["--config", path, f"--{name}", *words], "train")
        assert field(config, name) == expected, name
        changed = {other for other in FIELDS if field(config, other) != FIELDS[other].value}
        assert changed == ({name} if expected != leaf.value else set()), name


def test_all_fields_at_once(config_file):
    argv, expected = ["--config", config_file()], {}
    for name, leaf in FIELDS.items():
        words, expected[name] = another(leaf)
        argv += [f"--{name}", *words]
    config, _ = cli.load_config(argv, "train")
    assert {name: field(config, name) for name in FIELDS} == expected


def test_every_field_of_every_config_class_is_a_field_of_the_example():
    """So that the walk above leaves none out."""
    owners = {leaf.owner for leaf in FIELDS.values()}
    seen = {(leaf.owner, leaf.name.rpartition(".")[2]) for leaf in FIELDS.values()}
    for owner in owners:
        for one in dataclasses.fields(owner):
            holds_more = any(leaf.startswith(f"{one.name}.") or f".{one.name}." in leaf for leaf in FIELDS)
            assert (owner, one.name) in seen or holds_more, (owner, one.name)
    assert {Text, History, Categorical, Numeric, Vector, Task, Table, Catalogue} <= owners


def test_every_field_is_documented():
    for leaf in FIELDS.values():
        assert leaf.doc.endswith((".", ")")), leaf.name
    assert field_docs(Catalogue)["files"] == field_docs(Table)["files"]  # documentation is inherited with the field


def test_every_number_has_bounds_and_help_shows_them(config_file, capsys):
    for name, leaf in FIELDS.items():
        assert leaf.bounds is None or leaf.type in (int, float), name
        assert leaf.bounds is not None or leaf.type not in (int, float), name
    with pytest.raises(SystemExit):
        cli.load_config(["--config", config_file(), "--help"], "train")
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "Most optimizer steps" not in said
        and "(default: 32) [at least 1]" in said
        and "[at least 0 and at most 1]" in said
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch.rows", 0, "at least 1"),
        ("batch.tokens", 10**21, "at most 2,147,483,647"),
        ("epochs", 0.0, "more than 0"),
        ("evaluate.threshold", 7.0, "at least 0 and at most 1"),
        ("model.split_layers", -2, "-1, or at least 0"),
        ("schema.tasks.0.softmax", 1.5, "at least 0 and at most 1"),
        ("model.head_dropout", 1.0, "at least 0 and less than 1"),
    ],
)
def test_numbers_out_of_bounds_are_refused_wherever_they_come_from(config_file, name, value, expected):
    path, word = config_file(), str(value)
    said = message(cli.load_config, ["--config", path, f"--{name}", word], "train")
    assert said == f"--{name}: found {value}, expected {expected}"
    replaced = with_field(EXPECTED, name, value)
    assert message(check, replaced, TrainConfig, "shop.py") == f"shop.py: {name}: found {value}, expected {expected}"
    assert message(from_json, to_json(replaced), "config.json").startswith(f"config.json: {name}: found")


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--overwrite"], True),
        (["--overwrite", "false"], False),
        (["--mesh.data", "-1"], -1),
        (["--mesh.data=-1"], -1),
        (["--optimizer.learning_rate", "1"], 1.0),
        (["--data.group_by", ""], ""),
        (["--data.keys"], ()),
        (["--data.log.files", "logs/*.csv"], "logs/*.csv"),
        (["--schema.context.0.max_tokens", "8", "--schema.context.0.max_tokens", "24"], 24),
    ],
)
def test_forms_of_values(config_file, words, expected):
    config, name = cli.load_config(["--config", config_file(), *words], "train")
    assert field(config, words[0][2:].partition("=")[0]) == expected
    assert name == "shop"


@pytest.mark.parametrize(
    "words, expected",
    [
        (
            ["--optimizer.lerning_rate", "1"],
            "unknown field --optimizer.lerning_rate, nearest: --optimizer.learning_rate",
        ),
        (["--lerning_rate", "1"], "unknown field --lerning_rate, nearest: --optimizer.learning_rate"),
        (["--run-dir", "x"], "unknown field --run-dir, nearest: --run_dir"),
        (["--run", "x"], "unknown field --run, nearest: --run_dir"),  # no abbreviations
        (["--lr", "1"], "unknown field --lr, nearest: --optimizer.learning_rate"),
        (["--nothing_like_it", "1"], "unknown field --nothing_like_it"),
        (["--schema.context.7.name", "x"], "unknown field --schema.context.7.name, nearest: --schema.context.0.name"),
        (["--batch.rows", "many"], '--batch.rows: found "many", expected int'),
        (["--batch.rows", "1.5"], '--batch.rows: found "1.5", expected int'),
        (["--batch.rows"], "--batch.rows: expected 1 argument"),
        (["--batch.rows", "1", "2"], 'unexpected argument "2", expected --FIELD VALUE'),
        (["--optimizer.learning_rate", "nan"], '--optimizer.learning_rate: found "nan", expected finite number'),
        (["--optimizer.args", "b2"], '--optimizer.args: found "b2", expected NAME=FLOAT'),
        (["--optimizer.args", "b2=x"], '--optimizer.args b2: found "x", expected finite number'),
        (["--overwrite", "maybe"], '--overwrite: found "maybe", expected true or false'),
        (["--model.readout", "last"], '--model.readout: found "last", expected one of pooled, first, mean'),
        (["--data.split.values", "a", "b"], "--data.split.values: expected 3 arguments"),
    ],
)
def test_mistakes_on_the_command_line(config_file, words, expected):
    assert message(cli.load_config, ["--config", config_file(), *words], "train") == expected


def test_help_lists_every_field(config_file, capsys):
    with pytest.raises(SystemExit) as end:
        cli.load_config(["--config", config_file(), "--help"], "train", "Trains.\n\n  an example")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "Trains.\n\n  an example" in shown
    assert all(f"--{name} " in shown for name in FIELDS)
    said = " ".join(shown.split())
    assert "Peak learning rate. (default: 3e-05)" in said
    assert "Share of the softmax cross-entropy" in said


# ---------------------------------------------------------------------------------------------- config files


def test_a_config_file(config_file):
    assert cli.read_config(config_file()) == EXPECTED


@pytest.mark.parametrize("name", ["ctr", "ctr.py", "configs/ctr.py"])
def test_a_name_in_configs(tmp_path, monkeypatch, name):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ctr.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    assert cli.load_config(["--config", name], "train") == (EXPECTED, "ctr")


def test_every_config_of_the_checkout_is_whole_and_found_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py")]
    assert names
    for name in names:
        assert cli.read_config(name).schema.candidate


def test_an_unknown_name_lists_the_others(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    said = message(cli.read_config, "minee.py")
    assert said.startswith("--config minee.py: no such file") and said.endswith("nearest: mine")


def test_no_config_named():
    assert message(cli.load_config, [], "train").startswith("--config is missing")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("import srsjax\n\ndef get_config(:\n    pass", ":3: invalid syntax"),
        ("x = 1", ": no get_config, expected def get_config() -> TrainConfig"),
        ("def get_config():\n    return None", ": found None, expected TrainConfig"),
        ("from srsjax.config import *\ndef get_config():\n    return Batch()", ": found Batch, expected TrainConfig"),
        (
            "from srsjax.config import *\ndef get_config():\n    return Optimizer(lerning_rate=1)",
            ":3: Optimizer has no field lerning_rate, nearest: learning_rate",
        ),
        ("def get_config():\n    return TrainConfig()", ":2: NameError: name 'TrainConfig' is not defined"),
        ("import no_such_module\n", ":1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from srsjax.config import *\n{}.x", ":2: AttributeError: 'dict' object has no attribute 'x'"),
    ],
)
def test_mistakes_in_a_config_file(config_file, text, expected):
    path = config_file(text)
    assert message(cli.read_config, path) == path + expected


@pytest.mark.parametrize(
    "field, expected",
    [
        ('batch=Batch(rows="many")', 'batch.rows: found "many", expected int'),
        ("batch=Batch(rows=1.0)", "batch.rows: found 1.0, expected int"),
        ("batch=Batch(rows=True)", "batch.rows: found True, expected int"),
        ("overwrite=1", "overwrite: found 1, expected true or false"),
        (
            'model=Model(dtype="float16")',
            'model.dtype: found "float16", expected one of auto, float32, bfloat16, float8',
        ),
        ('optimizer=Optimizer(args={"b2": "x"})', 'optimizer.args.b2: found "x", expected finite number'),
        ("optimizer=Adam", None),
        ("data=Data(log=Table(files=1))", "data.log.files: found 1, expected str or tuple of str"),
        ('data=Data(keys=("a", 2))', "data.keys.1: found 2, expected str"),
        ('data=Data(split=Split(values=("a", "b")))', "data.split.values: found ('a', 'b'), expected tuple of 3 str"),
        ("schema=Schema(context=Text())", None),
        ('schema=Schema(context=Text("q"))', None),
        ('schema=Schema(candidate=(History("h"),))', None),
    ],
)
def test_values_of_the_wrong_type_in_a_config_file(config_file, field, expected):
    path = config_file(f"from srsjax.config import *\ndef get_config():\n    return TrainConfig({field})")
    said = message(cli.read_config, path)
    assert said.startswith(path)
    if expected is not None:
        assert said == f"{path}: {expected}"


def test_lists_become_tuples_and_whole_numbers_floats(config_file):
    text = 'from srsjax.config import *\ndef get_config():\n    return TrainConfig(epochs=2, data=Data(keys=["a"]))'
    config = cli.read_config(config_file(text))
    assert config.data.keys == ("a",) and isinstance(config.epochs, float)
