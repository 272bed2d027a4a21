"""What every command shares: its arguments, the config it runs, and its exit code.

A command reads

    def main(argv: list[str] | None = None) -> int | None:
        config, name = load_config(argv, "train", __doc__)
        ...

    if __name__ == "__main__":
        run(main)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

from srsjax.config import TrainConfig

Arguments = TypeVar("Arguments")


def load_config(argv: list[str] | None, command: str, description: str = "") -> tuple[TrainConfig, str]:
    """The config that `--config` names, with the fields that the command line sets, and its name (`ctr`).

    Raises InputError; `--help` prints every field with its documentation and exits.
    """
    raise NotImplementedError


def load_run(
    arguments: type[Arguments], argv: list[str] | None, command: str, description: str = ""
) -> tuple[TrainConfig, Arguments]:
    """For commands on a finished run: `arguments` is a dataclass with a field `run`, the run folder.

    Returns the run's config (`config.json`) with the fields that the command line sets, and the arguments.
    """
    raise NotImplementedError


def parse(arguments: type[Arguments], argv: list[str] | None, command: str, description: str = "") -> Arguments:
    """The arguments of a command that needs no config: a documented dataclass, its fields as options."""
    raise NotImplementedError


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and exits: 0 done, or what it returns; 2 wrong input, said in one line; 130 Ctrl-C."""
    raise NotImplementedError
