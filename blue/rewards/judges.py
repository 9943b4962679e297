"""Judges of profiles: who answers the next-item question from a profile alone.

The multiple choice of the paper (2605.06981): a language model sees the profile and
some titles, one of them the next item's.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from blue.errors import UserError
from blue.inference.pad import pad_left, pad_right
from blue.inference.scoring import make_completion_logprobs, make_letter_logits
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.programs import Program
from blue.runtime.sharding import by_batch, put, to_host
from blue.text import prompts
from blue.text.templates import Templates
from blue.text.tokenizer import Tokenizer

# (the judge's parameters, profiles, options of each) -> scores [n options]
Judge = Callable[[Params, Sequence[str], Sequence[Sequence[str]]], np.ndarray]


class ChoiceShapes(NamedTuple):
    """Sizes of the multiple-choice programs."""

    batch_size: int  # rows a call
    num_options: int
    prompt_tokens: int
    option_tokens: int


def make_judge(
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    templates: Templates,
    mesh: Mesh,
    *,
    scoring: str,
    shapes: ChoiceShapes,
    params_dtype: str,
    dtype: str,
) -> Judge:
    """The judge whose parameters have the architecture `cfg`.

    `letters`: logits of the option letters at the answer position (the paper's).
    `likelihood`: log p(title | profile) - log p(title | empty profile).
    """
    sizes: dict[str, Any] = {
        "batch_size": shapes.batch_size,
        "prompt_tokens": shapes.prompt_tokens,
        "params_dtype": params_dtype,
        "dtype": dtype,
    }
    if scoring == "letters":
        letters = tuple(tokenizer.letter_ids(shapes.num_options))
        run = make_letter_logits(cfg, mesh, letter_ids=letters, **sizes)
        return _by_letters(run, tokenizer, templates, mesh, shapes)
    if scoring == "likelihood":
        run = make_completion_logprobs(
            cfg,
            mesh,
            group_size=shapes.num_options,
            max_tokens=shapes.option_tokens,
            temperature=1.0,
            **sizes,
        )
        return _by_likelihood(run, tokenizer, templates, mesh, shapes)
    raise UserError(
        f"judge.scoring is {scoring!r}; known are 'letters' and 'likelihood'"
    )


def fit_message(
    tokenizer: Tokenizer, make: Callable[[str], str], profile: str, limit: int
) -> list[int]:
    """The chat prompt around a profile; an over-long profile loses its end."""
    while True:
        ids = tokenizer.chat(make(profile))
        if len(ids) <= limit:
            return ids
        if not profile:
            raise UserError(
                f"the question alone has {len(ids)} tokens, more than "
                f"judge.max_prompt_tokens = {limit}; raise it"
            )
        profile = profile[: int(len(profile) * 0.95 * limit / len(ids))]


def _batched(
    call: Callable[..., Any], arrays: Sequence[np.ndarray], size: int, mesh: Mesh
) -> np.ndarray:
    """call on rows of `arrays`, `size` at a time, the last ones padded."""
    out = []
    for start in range(0, len(arrays[0]), size):
        part = [a[start : start + size] for a in arrays]
        real = len(part[0])
        if real < size:
            part = [np.concatenate([a, np.repeat(a[:1], size - real, 0)]) for a in part]
        out.append(to_host(call(*put(tuple(part), by_batch(mesh))))[:real])
    return np.concatenate(out)


def _by_letters(
    run: Program,
    tokenizer: Tokenizer,
    templates: Templates,
    mesh: Mesh,
    shapes: ChoiceShapes,
) -> Judge:
    def score(
        params: Params, profiles: Sequence[str], options: Sequence[Sequence[str]]
    ) -> np.ndarray:
        rows = []
        for profile, opts in zip(profiles, options, strict=True):
            make = lambda p: prompts.choice_message(templates, p, opts)  # noqa: B023
            rows.append(fit_message(tokenizer, make, profile, shapes.prompt_tokens))
        arrays = pad_left(rows, shapes.prompt_tokens, tokenizer.pad_id)
        call = lambda tokens, mask: run(params, tokens, mask)
        return _batched(call, arrays, shapes.batch_size, mesh)

    return score


def title_target(tokenizer: Tokenizer, title: str, max_tokens: int) -> list[int]:
    """What a likelihood judge is trained on and scored with: title, end token."""
    return tokenizer.encode(title)[: max_tokens - 1] + [tokenizer.turn_end_id]


def _by_likelihood(
    run: Program,
    tokenizer: Tokenizer,
    templates: Templates,
    mesh: Mesh,
    shapes: ChoiceShapes,
) -> Judge:
    make = lambda profile: prompts.title_message(templates, profile)
    empty = fit_message(tokenizer, make, "", shapes.prompt_tokens)

    def score(
        params: Params, profiles: Sequence[str], options: Sequence[Sequence[str]]
    ) -> np.ndarray:
        fit = lambda p: fit_message(tokenizer, make, p, shapes.prompt_tokens)
        # rows that share their options share the empty-profile row, too
        unique = list(dict.fromkeys(tuple(o) for o in options))
        rows = [fit(p) for p in profiles] + [empty] * len(unique)
        titles = [*map(tuple, options), *unique]
        prompt = pad_left(rows, shapes.prompt_tokens, tokenizer.pad_id)
        size = shapes.option_tokens
        targets = [title_target(tokenizer, t, size) for row in titles for t in row]
        tokens, mask = pad_right(targets, size, tokenizer.pad_id)
        tokens = tokens.reshape(len(rows), shapes.num_options, size)
        call = lambda *batch: run(params, *batch)
        logprobs = _batched(call, (*prompt, tokens), shapes.batch_size, mesh)
        scores = np.where(mask.reshape(tokens.shape), logprobs, 0.0).sum(axis=-1)
        n = len(profiles)
        prior = {row: scores[n + i] for i, row in enumerate(unique)}
        return scores[:n] - np.stack([prior[tuple(o)] for o in options])

    return score
