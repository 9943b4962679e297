"""The words of docstrings: short sentences, no pointer to absent documents."""

import ast
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "blue").rglob("*.py"))
MOST_WORDS = 25
# of a list, or "name: ..."
ENTRY = re.compile(r"\* |\d+\. |\w+(, \w+)*: |(Args|Raises|Returns|Attributes):$")


def docstrings(source):
    """(name, docstring) of the module and of all classes and functions in it."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "module"), text


def sentences(text):
    """The prose of a docstring: no code blocks, no tables; shapes are no words."""
    lines, in_entries = [], False
    for line in inspect.cleandoc(text).splitlines():
        in_entries = (in_entries and line[:1] in ("", " ")) or bool(ENTRY.match(line))
        if "  " in line.strip() or (line.startswith("    ") and not in_entries):
            line = ""  # a table, or code
        entry = ENTRY.match(line.strip())
        lines += ["", line.strip()] if entry else [line.strip()]
    for paragraph in "\n".join(lines).split("\n\n"):
        words = re.sub(r"`[^`]*`|\[[^\]]*\]", "code", paragraph.replace("\n", " "))
        yield from re.split(r"(?<=[.!?])\s+", words.strip())


def too_long(text):
    """Sentences of more words than `MOST_WORDS`."""
    count = lambda sentence: len([w for w in sentence.split() if re.search(r"\w", w)])
    return [sentence for sentence in sentences(text) if count(sentence) > MOST_WORDS]


@pytest.mark.parametrize("folder", ["blue", "configs", "tests", "tools"])
def test_a_sentence_of_a_docstring_has_at_most_25_words(folder):
    found = {
        f"{path.relative_to(ROOT)}: {name}": too_long(text)
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, text in docstrings(path.read_text())
    }
    assert len(found) > 20
    assert not {name: long for name, long in found.items() if long}


def test_long_sentences_are_found():
    words = " ".join(["word"] * 25)
    table = f"a  {words} {words}"
    assert not too_long(f"{words}. {words}.\n\n    {words} {words}\n\n{table}")
    assert not too_long(f"One [B G C] `a b c`.\n\nArgs:\n    x: {words[5:]}\n    y: z")
    assert len(too_long(f"One {words}.\n\n* two {words}\n* three\n  {words}")) == 3
    assert len(too_long(f"Args:\n    x: {words}\n        {words}\n    y: z")) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_name_of_a_document_that_is_not_here(path):
    names = r"\b(DESIGN|ECOSYSTEM|SIGNAL|STYLE|QUICKSTART|HOUSE|PEERS)\b"
    assert not re.search(names, path.read_text())
