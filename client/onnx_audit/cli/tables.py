"""Tables for reading in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def print_facts(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Prints names and values below each other; empty values are left out, none is cut."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(f"[dim]{escape(name)}[/]", escape(value))
    console.print(table, highlight=False)


def print_section(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Prints a heading with names and values below."""
    console.print(f"\n[bold]{title}[/]")
    print_facts(console, rows)


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    whole: int = 0,
) -> None:
    """Prints a table under a title; the first `whole` columns keep their width."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number < whole)
    for row in rows:
        table.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in row))
    if title:
        console.print(title, highlight=False)
    console.print(table, highlight=False)
