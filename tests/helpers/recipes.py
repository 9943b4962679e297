"""The recipes of the READMEs: how many lines blue/README.md promises, and they take."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "blue/README.md"


def promised_lines(what: str) -> int:
    """The lines that blue/README.md's "How to add" promises for `what`."""
    (number,) = re.findall(rf"^\| {what} \| (\d+) \|", PAGE.read_text("utf-8"), re.M)
    return int(number)


def lines_of(*code: str) -> int:
    """Lines with something on them."""
    return sum(bool(line.strip()) for text in code for line in text.splitlines())
