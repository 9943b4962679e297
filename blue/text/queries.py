"""Users as text: the encoder's queries and the profiler's prompts.

The two user views of BLUE (https://arxiv.org/abs/2605.06981) are recent history +
profile, and profile alone. They are compared with raw history. Training and evaluation
build their texts here, so they use the same.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from blue.data.examples import Split, history
from blue.runtime.progress import slices_with_progress
from blue.text import prompts
from blue.text.templates import Templates
from blue.text.tokenizer import Tokenizer

TEXTS_A_CALL = 1024  # of the encoder: between two lines of progress


class QueryFormat(NamedTuple):
    """Settings of the encoder's queries."""

    templates: Templates
    prefix: str  # before every query: an instruction, or the encoder's own prompt
    recent_items: int  # titles in the views with recent history
    num_tokens: Callable[[str], int]  # of a text as the encoder reads it
    max_tokens: int  # the encoder's


class PromptFormat(NamedTuple):
    """Settings of the profiler's prompts."""

    templates: Templates
    history_items: int  # newest titles shown
    tokenizer: Tokenizer  # the profiler's
    max_tokens: int


def fit_titles(
    view: Callable[[list[str]], str],
    titles: list[str],
    *,
    num_tokens: Callable[[str], int],
    max_tokens: int,
) -> str:
    """`view` of the newest titles that fit into `max_tokens` of the encoder.

    Oldest titles are dropped first; one always stays, and the encoder cuts its end.
    """
    fits = lambda first: num_tokens(view(titles[first:])) <= max_tokens
    if not titles or fits(0):
        return view(titles)
    first = bisect.bisect_left(range(len(titles)), True, key=fits)
    return view(titles[min(first, len(titles) - 1) :])


def profile_query(f: QueryFormat, profile: str) -> str:
    """The query of the view "profile alone"."""
    return f.prefix + prompts.profile_view(f.templates, profile)


def history_query(f: QueryFormat, titles: list[str]) -> str:
    """The query of raw history: as many of the newest titles as fit."""
    view = lambda kept: f.prefix + prompts.history_view(f.templates, kept)
    return fit_titles(view, titles, num_tokens=f.num_tokens, max_tokens=f.max_tokens)


def recent_query(f: QueryFormat, titles: list[str]) -> str:
    """The query of raw recent history: the newest `recent_items` titles."""
    return history_query(f, titles[-f.recent_items :])


def history_profile_query(f: QueryFormat, titles: list[str], profile: str) -> str:
    """The query of the view "recent history + profile": `recent_items` titles."""
    view = lambda kept: (
        f.prefix + prompts.history_profile_view(f.templates, kept, profile)
    )
    recent = titles[-f.recent_items :]
    return fit_titles(view, recent, num_tokens=f.num_tokens, max_tokens=f.max_tokens)


def profile_prompt(
    f: PromptFormat,
    items: Sequence[int] | Int[np.ndarray, " h"],
    ratings: Sequence[float] | Float[np.ndarray, " h"],
    titles: list[str],
) -> list[int]:
    """The profiler's prompt, token ids, of a history, oldest first."""
    items, ratings = items[-f.history_items :], ratings[-f.history_items :]
    shown = [titles[int(i)] for i in items]
    prompt, _ = prompts.fit_profile_prompt(
        f.templates, shown, ratings, f.tokenizer, max_tokens=f.max_tokens
    )
    return prompt


def profile_prompts(
    f: PromptFormat, split: Split, rows: Int[np.ndarray, " U"], titles: list[str]
) -> list[list[int]]:
    """The profiler's prompt, token ids, of each of the users `rows` of `split`."""
    return [profile_prompt(f, *history(split, int(row)), titles) for row in rows]


# --- the queries of several methods


def other_users(num_users: int, *, seed: int) -> Int[np.ndarray, " U"]:
    """For every user a different other one: one random cycle through all users."""
    order = np.random.default_rng(seed).permutation(num_users)
    partners = np.empty_like(order)
    partners[order] = np.roll(order, 1)
    return partners


def embed_texts(
    embed: Callable[[Sequence[str]], np.ndarray], texts: Mapping[str, Sequence[str]]
) -> Float[np.ndarray, "R U E"]:
    """Unit vectors of the queries of R methods; equal texts are embedded once."""
    unique = list(dict.fromkeys(t for rows in texts.values() for t in rows))
    position = {text: i for i, text in enumerate(unique)}
    parts = slices_with_progress(len(unique), TEXTS_A_CALL, name="queries", unit="text")
    vectors = np.concatenate([embed(unique[part]) for part in parts])
    return np.stack([vectors[[position[t] for t in rows]] for rows in texts.values()])
