"""Both wordings of the prompts."""

import random
import re

import pytest

from blue.text.templates import TEMPLATES, wordings
from blue.text.tokenizer import train_tokenizer

FULL, SHORT = TEMPLATES["full"], TEMPLATES["short"]


@pytest.fixture(scope="module")
def titles():
    rng = random.Random(0)
    words = [a + b + c for a in "bdklm" for b in "aeiou" for c in ("ra", "to", "nik")]
    return [" ".join(rng.choices(words, k=4)) for _ in range(300)]


@pytest.fixture(scope="module")
def tokenizer(titles):
    corpus = [*titles, *wordings(FULL), *wordings(SHORT)]
    return train_tokenizer(corpus, vocab_size=1024)


# --- the trained tokenizer knows the templates


@pytest.mark.parametrize("templates", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_words_of_the_templates_are_few_tokens(templates, tokenizer):
    for line in wordings(templates):
        parts = re.findall(r"\w+|[^\w\s]", line)
        assert len(tokenizer.encode(line)) <= 1.5 * len(parts) + line.count("\n") + 2
    assert all(w in " ".join(wordings(templates)) for w in ("likes", "and"))


def test_both_wordings_have_the_same_placeholders_but_for_ratings():
    def names(text):
        return set(re.findall(r"\{(\w+)\}", text)) - {"rating"}

    assert list(map(names, FULL)) == list(map(names, SHORT))
