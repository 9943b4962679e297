"""Words of titles and profiles, by two definitions that differ on purpose.

* As written (`content_words`): for lists of words. "Sci-Fi" and "it's" are one word
  each, capitals stay, and text without spaces is one word between punctuation marks.
* Folded (`folded_words`): for comparisons. NFKC, without capitals, split at every mark;
  in scripts without spaces each character is a word.

Each has its own list of ignored words, in several languages: FUNCTION_WORDS say nothing
about taste, EMPTY_IN_NAMES nothing about a name. Recorded results depend on both
definitions.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

from blue.text.prompts import make_safe

PHRASE_SEPARATOR = re.compile(r", | \| ")
WRITTEN_WORD = re.compile(r"[^\W_]+(?:['’&-][^\W_]+)*")
PHRASE_CHARS = 60  # a phrase of a template profile, at most
# Words that say nothing about taste; those of `Templates.likes` are among them.
FUNCTION_WORDS = frozenset(
    "a about after all an and are as at be but by for from had has have he her his how "
    "i in into is it its likes my new no not of off on or our out over she so than "
    "that the their them they this to under up user was we were what when who will "
    "with you your".split()
)
INSIDE_NAMES = frozenset(
    "a an da de del der des di du el la le les of the van von".split()
)
# Ignored in names. "and" is not in FUNCTION_WORDS: it joins two names.
EMPTY_IN_NAMES = INSIDE_NAMES | frozenset(
    "and at by for from i in on or to und with y".split()
)

# Thai and Lao, Burmese, Khmer, kana, Chinese characters
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_FOLDED_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")
# Sentence ends: a stop and a space, but not after "J.", "Dr." or "Mrs.".
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b[A-Z][a-z]\.)(?<!\bMrs\.)\s+"
    rf"|(?<=[.!?])(?=[{_SPACELESS}])|(?<=。)"
)


# --- as written


@functools.lru_cache(maxsize=2**14)  # users share titles
def word_set(title: str) -> frozenset[str]:
    """The words of a title as written, in lower case."""
    return frozenset(word.casefold() for word in WRITTEN_WORD.findall(make_safe(title)))


def content_words(text: str) -> list[str]:
    """Words as written, of three letters or more, that are not function words.

    Scripts without capitals (Chinese, Japanese, Korean) make words of two.
    """
    words = []
    for word in WRITTEN_WORD.findall(text):
        least = 3 if word.lower() != word.upper() else 2
        content = word.casefold() not in FUNCTION_WORDS
        if content and sum(map(str.isalpha, word)) >= least:
            words.append(word)
    return words


def shorten(phrase: str) -> str:
    """At most `PHRASE_CHARS` characters, cut between words where there are any."""
    if len(phrase) <= PHRASE_CHARS:
        return phrase
    cut = phrase[:PHRASE_CHARS]
    return cut.rsplit(" ", 1)[0] if " " in cut else cut


# --- folded


def folded_words(text: str) -> list[str]:
    """Words of `text`, in order: NFKC, case folded; of scripts without spaces
    (Chinese, Japanese, Thai, ...) each character is one."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _FOLDED_WORD.findall(text.casefold())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n consecutive tokens, in order."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def sentences(text: str) -> list[str]:
    """Sentences and lines of `text` that hold a word, each clean and on one line."""
    lines = [make_safe(line) for line in text.splitlines() if line]
    parts = [part for line in lines for part in _SENTENCE_END.split(line)]
    return [part for part in parts if _FOLDED_WORD.search(part)]
