"""Format tables for a terminal, narrow enough not to wrap."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

import tabulate

MAX_TABLE_CHARACTERS = 100  # width of a table, unless all columns are wanted
MIN_CELL_CHARACTERS = 12  # minimum to which cells are cut to fit
GAP = 2  # spaces between columns


def text_table(
    rows: Sequence[Sequence[str]], wide: bool = False, left: Collection[int] = (0,), keep: Collection[int] = (0,)
) -> str:
    """Return a table with a header, at most 100 characters wide.

    To fit, columns are omitted from the right, and then the widest cells are cut. A line below the table reports this.

    Args:
        rows: the header and the rows, all of the same length.
        wide: print all columns, however wide.
        left: columns aligned to the left; the others are aligned to the right.
        keep: columns that are never omitted.

    Returns:
        Lines without spaces at their ends.
    """
    shown, cut = list(range(len(rows[0]))), False
    cells = [list(row) for row in rows]
    if not wide:
        shown = _fitting(cells, keep)
        cut = _cut_cells(cells, shown)
    table = [[row[i] for i in shown] for row in cells]
    align = ["left" if i in left else "right" for i in shown]
    text = aligned(table, align)
    lines = [line.rstrip() for line in text.splitlines()]
    hidden = [rows[0][i] for i in range(len(rows[0])) if i not in shown]
    notes = [f"not shown: {', '.join(hidden)}"] if hidden else []
    notes += ["long cells are cut"] if cut else []
    if notes:
        lines += textwrap.wrap(f"({'; '.join(notes)}; wide=true prints everything)", MAX_TABLE_CHARACTERS)
    return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]], align: Sequence[str], style: str = "simple") -> str:
    """Return a table with its cells as they are.

    Args:
        rows: the header and the rows, all of the same length.
        align: `left` or `right` for each column.
        style: tabulate's name of the format.
    """
    tabulate.MIN_PADDING = 0  # no extra width for headers; the library has no argument for it
    return tabulate.tabulate(rows[1:], rows[0], style, colalign=align if rows[1:] else None, disable_numparse=True)


def _width(rows: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    return sum(max(len(row[i]) for row in rows) for i in columns) + GAP * (len(columns) - 1)


def _fitting(rows: Sequence[Sequence[str]], keep: Collection[int]) -> list[int]:
    """Return the columns that fit; `keep` always counts as fitting."""
    shown = list(range(len(rows[0])))
    for column in reversed(range(len(rows[0]))):
        if _width(rows, shown) <= MAX_TABLE_CHARACTERS:
            break
        if column not in keep:
            shown.remove(column)
    return shown


def _cut_cells(rows: list[list[str]], shown: Sequence[int]) -> bool:
    """Cut cells of the widest columns in place until the table fits.

    Returns whether any cell was cut.
    """
    cut = False
    while (excess := _width(rows, shown) - MAX_TABLE_CHARACTERS) > 0:
        widest = max(shown, key=lambda i: max(len(row[i]) for row in rows))
        width = max(len(row[widest]) for row in rows)
        limit = max(width - excess, MIN_CELL_CHARACTERS)
        if limit >= width:
            break
        for row in rows:
            if len(row[widest]) > limit:
                row[widest] = row[widest][: limit - 3] + "..."
        cut = True
    return cut
