# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""What a command prints and where it writes."""

import json
import re
import sys
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

from .errors import printable
from .recordings import STDIN, Recording


class Table:
    """Rows that are printed at the end on a terminal, and elsewhere as they come, with tabs."""

    def __init__(self, *columns: str):
        self._rows: list[tuple[str, ...]] = []
        self._columns = columns
        if not sys.stdout.isatty():
            print("\t".join(columns))

    def add(self, *cells: Any) -> None:
        texts = tuple("-" if c is None else f"{c:.2f}" if isinstance(c, float) else printable(str(c)) for c in cells)
        if sys.stdout.isatty():
            self._rows.append(texts)
        else:
            print("\t".join(texts), flush=True)

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows:
            from rich.console import Console
            from rich.table import Table as RichTable
            from rich.text import Text

            table = RichTable(box=None)
            for name, *cells in zip(self._columns, *self._rows, strict=True):
                are_numbers = all(re.fullmatch(r"-|-?\d+(\.\d+)?", cell) for cell in cells)
                table.add_column(name, justify="right" if are_numbers else "left")
            for row in self._rows:
                table.add_row(*map(Text, row))
            Console().print(table)


def print_row(*cells: str) -> None:
    """Print a row at once: in columns on a terminal, elsewhere with tabs."""
    print("  ".join(f"{cell:>8}" for cell in cells) if sys.stdout.isatty() else "\t".join(cells), flush=True)


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def counted(things: Sized, what: str) -> str:
    """Such as "1 voice" or "2 voices"."""
    return f"{len(things)} {what}{'s' * (len(things) != 1)}"


def yes_no(decision: bool | None) -> str | None:
    return None if decision is None else "yes" if decision else "no"


def check_stdout(out: str) -> None:
    """Raise a ValueError if `out` is standard output and that is a terminal, which shows no binary data."""
    if out == STDIN and sys.stdout.isatty():
        raise ValueError("--out - would write binary data to the terminal: send standard output to a file or pipe")


def check_targets(targets: Sequence[Path], sources: Sequence[Recording]) -> None:
    """Raise a ValueError if a file cannot be written, or would be written over a recording that is read."""
    from ..files import check_target

    read = {recording.path.resolve(): recording for recording in sources}
    for target in targets:
        check_target(target)
        if target.resolve() in read:
            raise ValueError(f"{str(target)!r} would be written over the recording itself: choose another --out")
