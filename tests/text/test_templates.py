"""Both wordings of the prompts."""

import re

import pytest

from blue.text.templates import TEMPLATES, wordings
from tests.helpers.made_up_text import tokenizer_of_titles

FULL, SHORT = TEMPLATES["full"], TEMPLATES["short"]


@pytest.mark.parametrize("templates", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_words_of_the_templates_are_few_tokens(templates):
    tokenizer = tokenizer_of_titles()
    for line in wordings(templates):
        parts = re.findall(r"\w+|[^\w\s]", line)
        assert len(tokenizer.encode(line)) <= 1.5 * len(parts) + line.count("\n") + 2
    assert all(w in " ".join(wordings(templates)) for w in ("likes", "and"))


def test_both_wordings_have_the_same_placeholders_but_for_ratings():
    def names(text):
        return set(re.findall(r"\{(\w+)\}", text)) - {"rating"}

    assert list(map(names, FULL)) == list(map(names, SHORT))
