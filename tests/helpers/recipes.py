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
