"""What a person reads."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from srsjax import console, distributed
from srsjax.console import Console, main_console, say

AS_IT_IS = "runs/[bold]x[/bold]:smile: " + "word " * 100 + "3.14 'quoted'"


def table() -> Table:
    made = Table("name", "value", box=None)
    made.add_row("bert/[0]/" + "long" * 60, "1")
    return made


def test_text_is_printed_as_it_is_and_on_one_line():
    out = Console(file=io.StringIO(), width=40, force_terminal=True)
    out.print(AS_IT_IS)
    assert out.file.getvalue() == AS_IT_IS + "\n"


def test_a_table_in_a_pipe_is_never_truncated():
    out = Console(file=io.StringIO())
    out.print(table())
    assert "bert/[0]/" + "long" * 60 + "  1" in out.file.getvalue()
    narrow = Console(file=io.StringIO(), width=40)  # a width that is asked for is kept
    narrow.print(table())
    assert max(map(len, narrow.file.getvalue().splitlines())) == 40


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_prints(first, monkeypatch, capsys):
    say("before the processes know each other")
    monkeypatch.setattr(distributed, "is_first", lambda: first)
    say("after")
    main_console().print("again")
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == (["after", "again"] if first else [])
    assert main_console() is console.main_console()  # one for all
