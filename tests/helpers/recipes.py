"""What READMEs say how to add: their sections and the code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def readme_section(readme, heading):
    """The section `## heading` of a README, its heading included."""
    text = (ROOT / readme).read_text("utf-8")
    start = text.index(f"## {heading}\n")
    return text[start:].partition("\n## ")[0].strip()


def python_blocks(text):
    """The code of its blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


def promised_lines(what: str) -> int:
    """The lines that blue/README.md's "How to add" promises for `what`."""
    page = (ROOT / "blue/README.md").read_text("utf-8")
    (number,) = re.findall(rf"^\| {what} \| (\d+) \|", page, re.M)
    return int(number)


def lines_of(*code: str) -> int:
    """Lines with something on them."""
    return sum(bool(line.strip()) for text in code for line in text.splitlines())
