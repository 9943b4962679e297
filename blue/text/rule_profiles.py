"""Profiles made by rule from titles: the targets of a tiny model's warm start."""

from collections.abc import Sequence

import numpy as np

from blue.text.prompts import make_safe
from blue.text.templates import Templates
from blue.text.words import PHRASE_SEPARATOR, content_words, shorten, word_set


def template_profile(
    templates: Templates,
    titles: Sequence[str],
    *,
    num_items: int,
    rng: np.random.Generator,
) -> str:
    """A simple profile of frequent words of a history.

    "The user likes a, b and c.": at most `num_items` distinct words of the titles. A
    word is drawn in proportion to its frequency. Where most titles contain ", " or " |
    ", the parts between these are drawn instead of words.
    """
    things = _things(titles)
    drawn: dict[str, str] = {}
    for i in rng.permutation(len(things)):
        drawn.setdefault(things[i].casefold(), things[i])
        if len(drawn) == num_items:
            break
    if not drawn:
        return templates.likes_nothing
    *first, last = drawn.values()
    listed = [templates.likes_separator.join(first)] if first else []
    return templates.likes.format(things=templates.likes_last.join([*listed, last]))


def profile_word_stats(profile: str, titles: Sequence[str]) -> dict[str, float]:
    """How a profile's content words relate to the history it was written from.

    Returns: `words`: their number. `in_history`: share of them that occur in titles, in
    [0, 1]. `distinct`: distinct words over all words, in [0, 1]. Both shares are 0 for
    a profile without content words.
    """
    words = [word.casefold() for word in content_words(make_safe(profile))]
    known = frozenset[str]().union(*map(word_set, titles))
    count = max(1, len(words))
    return {
        "words": float(len(words)),
        "in_history": sum(word in known for word in words) / count,
        "distinct": len(set(words)) / count,
    }


def _things(titles: Sequence[str]) -> list[str]:
    """All words, or all phrases, of the titles, repeats included."""
    separated = sum(PHRASE_SEPARATOR.search(title) is not None for title in titles)
    if 2 * separated <= len(titles):
        words = [w for title in titles for w in content_words(make_safe(title))]
        if words:
            return words
    parts = [part for title in titles for part in PHRASE_SEPARATOR.split(title)]
    phrases = [shorten(make_safe(part)).strip(" .,;") for part in parts]
    return [phrase for phrase in phrases if phrase]
