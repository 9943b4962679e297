"""Prompts of the profiler and the judge, and the encoder's views of a user.

There are two wordings: "full" for pretrained language models, and "short", almost
without instructions, for tiny models trained from scratch. Each token of a prompt costs
these time. All wording is ours; the paper's own is not published. Its case studies
(BLUE, https://arxiv.org/abs/2605.06981, appendix D) show the history, oldest first, as
`[title | rating], ...`. They have a limit of 200 words.

Titles are untrusted and the policy may learn to cheat, so titles and profiles pass
`make_safe`. The structure of prompts uses only what safe text cannot contain: line
breaks, square brackets and vertical bars.
"""

import string
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np

from blue.data.clean import clean_line
from blue.errors import UserError
from blue.text.templates import Templates
from blue.text.tokenizer import Tokenizer

_STRUCTURE = str.maketrans({"[": "(", "]": ")", "|": "/"})


# --- text made safe


def make_safe(text: str) -> str:
    """`text` as one visible line that cannot imitate the structure of a prompt.

    Cleaned like titles (`clean_line`: NFKC, no hidden characters, no line breaks) but
    not shortened. Square brackets become round, vertical bars become slashes. Applying
    it twice changes nothing. The tokenizer makes control tokens safe.
    """
    return clean_line(text, max_chars=sys.maxsize).translate(_STRUCTURE)


# --- the profiler's prompt


def fit_profile_prompt(
    templates: Templates,
    titles: Sequence[str],
    ratings: Sequence[float] | np.ndarray,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
) -> tuple[list[int], int]:
    """Token ids of the profile prompt with as many of the newest items as fit.

    Oldest items are dropped; the instruction and the newest item always stay.

    Returns:
        The ids, at most `max_tokens`, and how many items were dropped.

    Raises:
        UserError: not even the newest item fits.
    """
    # An item has at least one token: more than max_tokens items never fit.
    skipped = max(0, len(titles) - max_tokens)
    items = _item_texts(templates, titles[skipped:], ratings[skipped:])
    prompt = lambda first: tokenizer.chat(_profile_message(templates, items[first:]))
    first = _guess_cut(templates, items, prompt, max_tokens=max_tokens)
    ids = prompt(first)
    while len(ids) > max_tokens:
        if first >= len(items) - 1:
            _raise_too_small(ids, items[first:], max_tokens)
        first += 1
        ids = prompt(first)
    while first > 0 and len(longer := prompt(first - 1)) <= max_tokens:
        ids, first = longer, first - 1
    return ids, skipped + first


def _guess_cut(
    templates: Templates,
    items: Sequence[str],
    prompt: Callable[[int], list[int]],
    *,
    max_tokens: int,
) -> int:
    """Estimates how many oldest items to drop, by the tokens of a character."""
    if not items:
        return 0
    separator = len(templates.item_separator)
    chars = np.cumsum([len(item) + separator for item in reversed(items)])
    instruction = len(prompt(len(items)))
    tokens_per_char, shown = 0.25, 0  # English; corrected by the prompts
    for _ in range(3):
        room = (max_tokens - instruction) / tokens_per_char
        before, shown = shown, int(np.searchsorted(chars, room, side="right"))
        shown = max(1, shown)
        if shown == before:
            break
        taken = len(prompt(len(items) - shown)) - instruction
        tokens_per_char = max(1, taken) / chars[shown - 1]
    return len(items) - shown


def _item_texts(
    templates: Templates,
    titles: Sequence[str],
    ratings: Sequence[float] | np.ndarray,
) -> list[str]:
    return [
        templates.item.format(title=make_safe(title))
        if np.isnan(rating)
        else templates.rated_item.format(title=make_safe(title), rating=f"{rating:g}")
        for title, rating in zip(titles, ratings, strict=True)
    ]


def _profile_message(templates: Templates, items: Sequence[str]) -> str:
    history = templates.item_separator.join(items) or templates.no_history
    return templates.profile.format(history=history)


def _raise_too_small(ids: list[int], items: Sequence[str], max_tokens: int) -> NoReturn:
    content = f"the newest item {items[0][:80]!r}" if items else "no item"
    raise UserError(
        f"max_prompt_tokens={max_tokens} is too small: the profile prompt with "
        f"{content} takes {len(ids)} tokens"
    )


# --- the encoder's views of a user


def history_profile_view(
    templates: Templates, titles: Sequence[str], profile: str
) -> str:
    """Recent titles (oldest first) and the profile; without titles, the profile."""
    if not titles:
        return profile_view(templates, profile)
    shown = templates.view_separator.join(map(make_safe, titles))
    text = templates.view_both.format(titles=shown, profile=make_safe(profile))
    return text.strip()


def profile_view(templates: Templates, profile: str) -> str:
    """The profile alone."""
    return templates.view_profile.format(profile=make_safe(profile)).strip()


def history_view(templates: Templates, titles: Sequence[str]) -> str:
    """Titles alone, oldest first; empty without titles."""
    shown = templates.view_separator.join(map(make_safe, titles))
    return templates.view_history.format(titles=shown) if titles else ""


def query_prefix(instruction: str) -> str:
    """The prefix of an encoder's query; empty without instruction.

    Qwen3-Embedding's form, https://huggingface.co/Qwen/Qwen3-Embedding-0.6B
    """
    return f"Instruct: {instruction}\nQuery:" if instruction else ""


# --- the judge's questions


def choice_message(templates: Templates, profile: str, options: Sequence[str]) -> str:
    """The question: which of 2 to 26 lettered options fits the profile?

    Raises:
        UserError: another number of options.
    """
    if not 2 <= len(options) <= 26:
        raise UserError(
            f"rewards.choice.num_options={len(options)} is not possible: 2 to 26 "
            f"options can be lettered"
        )
    lettered = [
        templates.option.format(letter=letter, title=make_safe(option))
        for letter, option in zip(string.ascii_uppercase, options, strict=False)
    ]
    return templates.choice.format(
        profile=make_safe(profile), options=templates.option_separator.join(lettered)
    ).strip()


def title_message(templates: Templates, profile: str) -> str:
    """The question: which title does the user take next?"""
    return templates.title.format(profile=make_safe(profile)).strip()
