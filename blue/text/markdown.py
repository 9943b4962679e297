"""Markdown made safe, and tables of text."""

from collections.abc import Sequence
from typing import Any

MAX_CHARS = 2000  # of one text that `escape` keeps


def escape(text: str) -> str:
    """One line of `text` that Markdown shows as it is, at most MAX_CHARS of it."""
    if len(text) > MAX_CHARS:
        text = text[:MAX_CHARS] + "..."
    # control, direction-changing and zero-width characters are not printable
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return "".join(f"&#{ord(c)};" if c in "&<>|`*_[]!~#$\\" else c for c in text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary_table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Aligned text; numbers to the right, floats with four digits."""
    cells = [list(map(str, header))] + [[_cell(x) for x in row] for row in rows]
    assert all(len(line) == len(header) for line in cells)
    columns = range(len(header))
    widths = [max(len(line[i]) for line in cells) for i in columns]
    right = [
        bool(rows) and all(isinstance(r[i], int | float) for r in rows) for i in columns
    ]
    lines = [
        "  ".join(
            line[i].rjust(widths[i]) if right[i] else line[i].ljust(widths[i])
            for i in columns
        ).rstrip()
        for line in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
