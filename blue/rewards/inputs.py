"""Inputs of rewards: one function for each, with the name that a reward's parameter
has.

An input is computed only where a reward needs it. Its return type says its shape, in
the letters of `SIZES`, and the kind of its numbers: Float is float32, Int int32.
Vectors are those of the frozen encoder, of unit length.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from blue.errors import UserError
from blue.inference.generate import Profile
from blue.rewards.batch import Batch
from blue.text import queries
from blue.text.rule_profiles import profile_word_stats

SIZES = {
    "B": "users of a batch",
    "G": "profiles of a user",
    "K": "next items of a user",
    "M": "negatives of a user",
    "O": "options of a question",
    "E": "width of the encoder",
}
DTYPES = {Float: np.float32, Bool: np.bool_, Int: np.int32}


class Context(NamedTuple):
    """What inputs are computed from, on the host."""

    batch: Batch
    profiles: Sequence[Sequence[Profile]]  # [B][G]
    titles: Sequence[str]  # of the catalogue, as the next
    items: Float[np.ndarray, "items E"]
    ask: Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray] | None
    # the judge: (profiles, options of each) -> scores
    views: Mapping[str, Float[np.ndarray, "B G E"]]  # the requested ones of VIEWS


# --- inputs of the encoder: (query format, history, profile) -> the text it embeds

VIEWS: dict[str, Callable[[queries.QueryFormat, list[str], str], str]] = {
    "history_profile_emb": queries.history_profile_query,
    "profile_emb": lambda form, history, profile: queries.profile_query(form, profile),
}


def history_profile_emb(context: Context) -> Float[np.ndarray, "B G E"]:
    """The vector of the recent history with the profile."""
    return context.views["history_profile_emb"]


def profile_emb(context: Context) -> Float[np.ndarray, "B G E"]:
    """The vector of the profile alone."""
    return context.views["profile_emb"]


# --- inputs of the judge: a forward pass each

JUDGED = ("choice_scores",)


def choice_scores(context: Context) -> Float[np.ndarray, "B G O"]:
    """The judge's score of each option, from the profile alone."""
    assert context.ask, "asked for without a judge"
    options = context.batch.options
    pairs = [(b, p.text) for b, row in enumerate(context.profiles) for p in row]
    shown = [[context.titles[int(i)] for i in options[b]] for b, _ in pairs]
    scores = context.ask([text for _, text in pairs], shown)
    return scores.reshape(len(context.profiles), -1, options.shape[1])


# --- inputs of the batch and of the text


def choice_answer(context: Context) -> Float[np.ndarray, "B O"]:
    """1 at the next item, else 0."""
    return context.batch.answer.astype(np.float32)


def next_item_emb(context: Context) -> Float[np.ndarray, "B K E"]:
    """Vectors of the next items; the paper has one, K = 1."""
    return context.items[context.batch.next_items]


def next_item_mask(context: Context) -> Bool[np.ndarray, "B K"]:
    """Which of the K next items there are."""
    return context.batch.next_item_mask


def negative_emb(context: Context) -> Float[np.ndarray, "B M E"]:
    """Vectors of the negatives, sampled once a user and shared by the group."""
    return context.items[context.batch.negatives]


def negative_mask(context: Context) -> Bool[np.ndarray, "B M"]:
    """Which of the M negatives there are."""
    return context.batch.negative_mask


def in_batch_mask(context: Context) -> Bool[np.ndarray, "B K B"]:
    """[u, k, w]: whether user w may be compared with user u's next item k."""
    return context.batch.in_batch_mask


def finished(context: Context) -> Bool[np.ndarray, "B G"]:
    """Whether an end token was sampled."""
    return np.array([[p.finished for p in group] for group in context.profiles])


def repeated_words(context: Context) -> Float[np.ndarray, "B G"]:
    """The share of a profile's words that occurred before in it, in [0, 1]."""
    stats = [[profile_word_stats(p.text, []) for p in row] for row in context.profiles]
    share = lambda s: 1.0 - s["distinct"] if s["words"] else 0.0
    return np.array([[share(s) for s in row] for row in stats], np.float32)


# --- finding and computing them


def find(name: str) -> Callable[[Context], np.ndarray] | None:
    """The input of that name: a function of this file that takes `context` alone."""
    found = globals().get(name)
    right = inspect.isfunction(found) and [*inspect.signature(found).parameters]
    return found if right == ["context"] else None


def names() -> list[str]:
    """Names of all inputs."""
    return [name for name in globals() if find(name)]


def shape_and_dtype(name: str, sizes: Mapping[str, int]) -> tuple[tuple, Any]:
    """Shape and dtype by the return type of the input; sizes: of its letters."""
    found = find(name)
    assert found, name
    kind = inspect.signature(found, eval_str=True).return_annotation
    words = kind.dim_str.split()
    shape = tuple(int(w) if w.isdecimal() else sizes[w] for w in words)
    return shape, DTYPES[kind.dtype]


def compute(name: str, context: Context, expected: Any) -> np.ndarray:
    """The input as `expected`, an abstract array, describes it."""
    found = find(name)
    assert found, name
    array = np.asarray(found(context), expected.dtype)
    if array.shape != expected.shape:
        raise UserError(
            f"the input {name} has shape {array.shape}, and its return type says "
            f"{expected.shape}"
        )
    return array
