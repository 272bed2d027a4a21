"""What every command shares: its arguments, the config it runs, and its exit code.

A command reads

    def main(argv: list[str] | None = None) -> int | None:
        config, name = load_config(argv, "train", __doc__)
        ...

    if __name__ == "__main__":
        run(main)
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import inspect
import itertools
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import srsjax.config
from srsjax import distributed
from srsjax.config import TrainConfig
from srsjax.config_io import (
    Leaf,
    bounds,
    check,
    check_bounds,
    field_docs,
    from_text,
    leaves,
    required,
    type_hints,
    with_field,
)
from srsjax.data.batches import workers
from srsjax.data.store import checksums
from srsjax.errors import InputError, near
from srsjax.files import trouble
from srsjax.runs.run_folder import RunFolder
from srsjax.stopping import WORKER_LOST


@dataclass(frozen=True)
class ConfigArgument:
    """What is trained."""

    config: str
    """A config file, or the name of one in `configs/` (`ctr.py` or `ctr`); with it, `--help` lists the fields of its
    features too."""


def load_config(argv: list[str] | None, command: str, description: str = "") -> tuple[TrainConfig, str]:
    """The config that `--config` names, with the fields that the command line sets, and its name (`ctr`).

    `argv` is by default the program's; `description` opens the help, which prints every field and exits.
    Raises InputError for an unknown field, a value of the wrong type, and whatever is wrong in the config file.
    """
    config, arguments = load_config_and(ConfigArgument, argv, command, description)
    return config, Path(arguments.config).stem


def load_config_and[Arguments: ConfigArgument](
    arguments: type[Arguments], argv: list[str] | None, command: str, description: str = ""
) -> tuple[TrainConfig, Arguments]:
    """`load_config` for a command with arguments of its own, a documented subclass of `ConfigArgument`."""
    return _parse(arguments, argv, command, description, lambda found: read_config(found.config), "config")


def load_run[Arguments](
    arguments: type[Arguments],
    argv: list[str] | None,
    command: str,
    description: str = "",
    fields: Sequence[str] | None = None,
) -> tuple[TrainConfig, Arguments]:
    """For commands on a run: `arguments` is a documented dataclass with a field `run: str`, the run folder.

    Returns the run's config (`config.json`) with the fields that the command line sets, and the arguments. An argument
    with the name of a config field (`overwrite`) stands for itself. `fields` are regular expressions of the names of
    the fields that the command reads: only these can be set, and are listed; None is all.
    Raises InputError as `load_config` does, and for a field that is fixed by the run.
    """
    return _parse(arguments, argv, command, description, lambda found: RunFolder(found.run).config(), "run", fields)


def parse[Arguments](
    arguments: type[Arguments], argv: list[str] | None, command: str, description: str = ""
) -> Arguments:
    """The arguments of a command without a config: `arguments` is a documented dataclass, its fields the options.

    Raises InputError for an unknown option or a value of the wrong type.
    """
    return _parse(arguments, argv, command, description, None)[1]


def read_config(name: str) -> TrainConfig:
    """The checked config of a config file, given by path or by its name in `configs/`.

    Raises InputError, with the line where there is one, for whatever is wrong in the file.
    """
    path = find_config(name)
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
        if not hasattr(module, "get_config"):
            raise InputError(f"{path}: no get_config, expected def get_config() -> TrainConfig")
        config = module.get_config()
    except InputError:
        raise
    except Exception as error:
        raise InputError(_explain(error, path)) from error
    return check(config, TrainConfig, str(path))


def find_config(name: str) -> Path:
    """The file that `--config` means: a path, else a name in `configs/` here, else in `configs/` of the checkout.

    Raises InputError that lists the names there are.
    """
    folders = [Path("configs"), Path(srsjax.config.__file__).parents[1] / "configs"]
    stem = Path(name).name.removesuffix(".py")
    for path in (Path(name), *(folder / f"{stem}.py" for folder in folders)):
        if path.is_file():
            return path
    names = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
    known = f"there are {', '.join(names)}{near(stem, names).replace(',', ';')}" if names else "there are none"
    raise InputError(f"--config {name}: no such file, and no such name in {' or '.join(map(str, folders))}; {known}")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command and exits: 0 or what `main` returns; 2 wrong input, said in one line; 71 a worker process was
    lost, said in one line; 130 interrupted.

    Any other exception is a bug and keeps its traceback (exit code 1), unless a file of a store turns out to be
    damaged: then that is what it came of.
    """
    gc.freeze()  # imported modules stay: the collector would walk them again and again while JAX traces
    try:
        code = main() or 0
        sys.stdout.flush()
    except InputError as error:
        complain(str(error))
        code = 2
    except workers.WorkerLost as error:
        complain(str(error))
        leave(WORKER_LOST)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `... --help | head`; what is still buffered must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        if found := checksums.damage():
            complain(str(found))
            sys.exit(2)
        if said := trouble(error):
            complain(f"{said}; what was complete before is kept: mend it and run the same command again")
            leave(2)
        if distributed.process_count() == 1 and not workers.left_behind():
            raise
        traceback.print_exc()
        if distributed.process_count() == 1:
            leave(1)
        complain(
            f"{type(error).__name__} above; where another process ended, this is what came of it: see what that one "
            f"printed, and run the same command again to go on"
        )
        leave(1)
    if workers.left_behind():
        leave(code)
    sys.exit(code)


def leave(code: int) -> NoReturn:
    """Ends this process without waiting for the others, which JAX would do and they would never come."""
    sys.stdout.flush()
    sys.stderr.flush()
    workers.end(code)


def complain(message: str) -> None:
    """Says in one line on standard error why a command ends; with several processes, on which."""
    count = distributed.process_count()
    where = f"process {distributed.process_index()} of {count}: " if count > 1 else ""
    print(f"{where}error: {message}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are InputErrors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


def _parse(
    own: type,
    argv: list[str] | None,
    command: str,
    description: str,
    base: Callable[[Any], TrainConfig] | None,
    source: str = "",
    scope: Sequence[str] | None = None,
) -> tuple[Any, Any]:
    """The config that `base` makes of the command's own arguments, with the fields that `argv` sets (None without a
    `base`), and those arguments.

    Two passes, because the fields that can be set (`schema.context.0...`) are known only once the config is read.
    `source` is the argument that `base` reads; `scope` are the `fields` of `load_run`.
    """
    argv = sys.argv[1:] if argv is None else argv
    first = _Parser(add_help=False, allow_abbrev=False)
    _add_options(first, _options(own))
    given = first.parse_known_args(argv)[0]
    arguments: Any
    if {"-h", "--help"} & set(argv):  # help needs no argument; without a config it shows the general fields
        arguments = _arguments(own, given, partial=True)
        config = base and (base(arguments) if getattr(given, source) else TrainConfig())
    else:
        arguments = _arguments(own, given)
        config = base and base(arguments)

    parser = _Parser(
        prog=f"python -m srsjax.{command}",
        usage="%(prog)s " + "".join(f"--{name} {name.upper()} " for name in required(own)) + "[--FIELD VALUE ...]",
        description=description.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_options(parser, _options(own))
    settable = [leaf for leaf in leaves(config) if leaf.name not in vars(given)] if config else []
    fields = [leaf for leaf in settable if scope is None or any(re.fullmatch(part, leaf.name) for part in scope)]
    for owner, members in itertools.groupby(fields, lambda leaf: leaf.name.rpartition(".")[0]):
        group = list(members)
        title = f"{owner} ({group[0].owner.__name__})" if owner else "fields of the config"
        _add_options(parser.add_argument_group(title, inspect.getdoc(group[0].owner)), group)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].partition("=")[0]
        if name in {f"--{leaf.name}" for leaf in settable}:
            raise InputError(f"{name}: fixed by the run; {command} --help lists what can be set")
        raise InputError(_unknown(unknown[0], [f"--{leaf.name}" for leaf in _options(own) + fields]))
    for leaf in fields:
        if (words := getattr(given, leaf.name)) is not None:
            config = with_field(config, leaf.name, _value(words, leaf))
    return config, arguments


def _options(own: type) -> list[Leaf]:
    """The fields of a dataclass of arguments."""
    hints, docs = type_hints(own), field_docs(own)
    defaults = {field.name: field.default for field in dataclasses.fields(own)}
    defaults |= dict.fromkeys(required(own), "")
    return [Leaf(name, hint, defaults[name], docs[name], own, bounds(own).get(name)) for name, hint in hints.items()]


def _arguments[Arguments](own: type[Arguments], given: argparse.Namespace, partial: bool = False) -> Arguments:
    """A dataclass of arguments from the words given for each field; with `partial` those needed may be missing."""
    values = {}
    for leaf in _options(own):
        if (words := getattr(given, leaf.name)) is not None:
            values[leaf.name] = _value(words, leaf)
        elif leaf.name in required(own) and partial:
            values[leaf.name] = leaf.value
        elif leaf.name in required(own):
            raise InputError(f"--{leaf.name} is missing: {leaf.doc}")
    return own(**values)


def _value(words: list[str], leaf: Leaf) -> Any:
    """What the words after an option say. Raises InputError for another type, or a number out of bounds."""
    value = from_text(words, leaf.type, f"--{leaf.name}")
    if leaf.bounds:
        check_bounds(value, leaf.bounds, f"--{leaf.name}")
    return value


def _add_options(parser: argparse._ActionsContainer, options: list[Leaf]) -> None:
    """Adds `--name` for each; what is parsed is the list of words that follow it, or None."""
    for leaf in options:
        words, metavar = _form(leaf.type)
        default = f" (default: {shown})" if (shown := _shown(leaf.value)) else ""
        limits = f" [{leaf.bounds}]" if leaf.bounds and str(leaf.bounds) else ""
        text = (leaf.doc + default + limits).replace("%", "%%")
        parser.add_argument(f"--{leaf.name}", nargs=words, action=_Words, metavar=metavar, help=text)


class _Words(argparse.Action):
    """Keeps the words after an option as a list; an option that may stand alone means true."""

    def __call__(self, parser, namespace, values, option_string=None):
        words = values if isinstance(values, list) else ["true" if values is None else values]
        setattr(namespace, self.dest, words)


def _form(expected: Any) -> tuple[int | str, str]:
    """How many words a field of this type takes (argparse's `nargs`), and what the help calls one."""
    arguments = typing.get_args(expected)
    match typing.get_origin(expected):
        case typing.Literal:
            return 1, "{" + ",".join(arguments) + "}"
        case origin if origin is dict:
            return "*", f"NAME={arguments[1].__name__.upper()}"
        case origin if origin is tuple:
            return ("*" if Ellipsis in arguments else len(arguments)), _form(arguments[0])[1]
        case None:
            return ("?", "true|false") if expected is bool else (1, expected.__name__.upper())
    return "+", arguments[0].__name__.upper()  # str | tuple[str, ...]


def _shown(value: Any) -> str:
    """A default as one would write it on the command line; empty where there is nothing to write."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(word: str, options: list[str]) -> str:
    """What to say of a word that no option takes."""
    if not word.startswith("-"):
        return f'unexpected argument "{word}", expected --FIELD VALUE'
    word = word.partition("=")[0]
    return f"unknown field {word}{near(word.lstrip('-'), [option[2:] for option in options], '--')}"


# ---------------------------------------------------------------------------------------------- config files


def _explain(error: Exception, path: Path) -> str:
    """One line about an exception raised by a config file: the file, the line, what is wrong."""
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}" if error.filename else str(path)  # none where it has zero bytes
        return f"{where}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    keyword = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if keyword and (cls := getattr(srsjax.config, keyword[1], None)):
        return f"{where}: {keyword[1]} has no field {keyword[2]}{near(keyword[2], type_hints(cls))}"
    return f"{where}: {''.join(traceback.format_exception_only(error))}"
