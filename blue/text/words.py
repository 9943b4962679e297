"""Words of titles and profiles."""

import functools
import re

from blue.text.prompts import make_safe

PHRASE_SEPARATOR = re.compile(r", | \| ")
WORD = re.compile(r"[^\W_]+(?:['’&-][^\W_]+)*")
PHRASE_CHARS = 60  # a phrase of a template profile, at most
# Words that say nothing about taste; those of `Templates.likes` are among them.
FUNCTION_WORDS = frozenset(
    "a about after all an and are as at be but by for from had has have he her his how "
    "i in into is it its likes my new no not of off on or our out over she so than "
    "that the their them they this to under up user was we were what when who will "
    "with you your".split()
)


@functools.lru_cache(maxsize=2**14)  # the same titles come with every user
def word_set(title: str) -> frozenset[str]:
    """The words of a title, without case."""
    return frozenset(word.casefold() for word in WORD.findall(make_safe(title)))


def content_words(text: str) -> list[str]:
    """Words of three letters or more that are not function words.

    Scripts without capitals (Chinese, Japanese, Korean) make words of two.
    """
    words = []
    for word in WORD.findall(text):
        least = 3 if word.lower() != word.upper() else 2
        content = word.casefold() not in FUNCTION_WORDS
        if content and sum(map(str.isalpha, word)) >= least:
            words.append(word)
    return words


def shorten(phrase: str) -> str:
    """At most `_PHRASE_CHARS` characters, cut between words where there are any."""
    if len(phrase) <= PHRASE_CHARS:
        return phrase
    cut = phrase[:PHRASE_CHARS]
    return cut.rsplit(" ", 1)[0] if " " in cut else cut
