"""What a person reads: a console that prints text as it is, and the one of this program."""

from __future__ import annotations

import functools

from rich import console as rich_console
from rich.console import RenderableType

WIDE = 1000
"""Columns where there is no terminal: a table in a pipe or a file is never truncated."""


class Console(rich_console.Console):
    """rich's console, which prints text as it is: no markup or emoji codes, nothing highlighted, no line wrapped.

    Options are those of rich; they go before these.
    """

    def __init__(self, **options):
        as_it_is = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
        super().__init__(**(as_it_is | options))
        if "width" not in options and not self.is_terminal:
            self.width = WIDE


def main_console() -> Console:
    """The console of this program, on which only process 0 prints."""
    from srsjax.distributed import is_first  # here: it imports jax, which preparing data does without

    console = _main_console()
    console.quiet = not is_first()
    return console


def say(what: RenderableType) -> None:
    """Prints a line, or a table, on the console of this program."""
    main_console().print(what)


@functools.cache
def _main_console() -> Console:
    return Console()  # one for all: a progress bar has to know what is printed beside it
