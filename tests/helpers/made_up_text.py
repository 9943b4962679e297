"""Made-up words and titles, and tokenizers trained on them once a process."""

import functools
import random

from blue.text.templates import TEMPLATES, wordings
from blue.text.tokenizer import train_tokenizer


@functools.cache
def words():
    """Six hundred words of three syllables."""
    rng = random.Random(0)
    syllables = [c + v for c in "bdklmnrst" for v in "aeiou"]
    return sorted({"".join(rng.choices(syllables, k=3)) for _ in range(700)})[:600]


@functools.cache
def lines():
    """Titles of four of the words, and sentences about a few of them."""
    rng = random.Random(1)
    titles = [" ".join(rng.choices(words(), k=4)) for _ in range(2000)]
    spoken = [f"The user likes {', '.join(t.split())} and tea." for t in titles[:50]]
    return titles + spoken


@functools.cache
def tokenizer_of_lines():
    return train_tokenizer(lines(), vocab_size=1024)


@functools.cache
def titles():
    """Three hundred titles of four words, and few words in all."""
    rng = random.Random(0)
    few = [a + b + c for a in "bdklm" for b in "aeiou" for c in ("ra", "to", "nik")]
    return [" ".join(rng.choices(few, k=4)) for _ in range(300)]


@functools.cache
def tokenizer_of_titles():
    """It knows the words of the titles and of both wordings of the prompts."""
    templates = wordings(TEMPLATES["full"]), wordings(TEMPLATES["short"])
    return train_tokenizer([*titles(), *templates[0], *templates[1]], vocab_size=1024)
