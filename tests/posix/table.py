"""Tables of checks: rows become parameters of a test, each under a name that says what it is about."""

from collections.abc import Iterable
from typing import Any

import pytest


def table(names: str, rows: Iterable[tuple[Any, ...]]) -> pytest.MarkDecorator:
    """Run a test once a row. A row's name is its cells in words, without those that are none."""
    listed = list(rows)
    return pytest.mark.parametrize(names.split(), listed, ids=[_name(row) for row in listed])


def grid(text: str) -> list[tuple[str, str, str]]:
    """A table drawn as text, cells two spaces apart, the first line its columns': (row, column, cell) for each cell."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.strip().splitlines()]
    columns = lines[0]
    cells = []
    for row, *values in lines[1:]:
        assert len(values) == len(columns), (row, values)
        cells += [(row, column, value) for column, value in zip(columns, values, strict=True)]
    return cells


def _name(row: tuple[Any, ...]) -> str:
    return ", ".join(str(cell) for cell in row if isinstance(cell, str | int | bool)).replace("[", "(").replace("]", ")")
