"""Judges: models that answer the next-item question from a profile alone.

The multiple choice of the paper (2605.06981): a language model sees the profile and
some titles, one of them the next item's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from blue.errors import UserError
from blue.inference.pad import pad_left, pad_right
from blue.inference.scoring import make_completion_logprobs, make_letter_logits
from blue.models.decoder import DecoderConfig, Params
from blue.runtime.programs import Program
from blue.runtime.shapes import Precision, Shapes
from blue.runtime.sharding import by_batch, put, to_host
from blue.text import prompts
from blue.text.templates import Templates
from blue.text.tokenizer import Tokenizer

# (the judge's parameters, profiles, options of each) -> scores [n options]
Judge = Callable[[Params, Sequence[str], Sequence[Sequence[str]]], np.ndarray]


def make_choice_program(
    cfg: DecoderConfig,
    mesh: Mesh,
    shapes: Shapes,
    precision: Precision,
    *,
    scoring: str,
    letter_ids: tuple[int, ...],
) -> Program:
    """What a judge computes: logits of `letter_ids`, or log-probabilities of titles.

    shapes: questions a call, their tokens, options of each, tokens of an option.
    """
    if scoring == "letters":
        questions = shapes.prompts()
        return make_letter_logits(
            cfg, mesh, questions, precision, letter_ids=letter_ids
        )
    assert scoring == "likelihood", scoring
    return make_completion_logprobs(cfg, mesh, shapes, precision, temperature=1.0)


def make_judge(
    cfg: DecoderConfig,
    tokenizer: Tokenizer,
    templates: Templates,
    mesh: Mesh,
    *,
    scoring: str,
    shapes: Shapes,
    precision: Precision,
) -> Judge:
    """The judge whose parameters have the architecture `cfg`.

    `letters`: logits of the option letters at the answer position (the paper's).
    `likelihood`: log p(title | profile) - log p(title | empty profile). shapes: as in
    `make_choice_program`.
    """
    letters = tuple(tokenizer.letter_ids(shapes.group)) if scoring == "letters" else ()
    run = make_choice_program(
        cfg, mesh, shapes, precision, scoring=scoring, letter_ids=letters
    )
    by = _by_letters if scoring == "letters" else _by_likelihood
    return by(run, tokenizer, templates, mesh, shapes)


def fit_message(
    tokenizer: Tokenizer, make: Callable[[str], str], profile: str, limit: int
) -> list[int]:
    """The chat prompt around a profile; a profile that is too long is cut at its
    end."""
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
    shapes: Shapes,
) -> Judge:
    def score(
        params: Params, profiles: Sequence[str], options: Sequence[Sequence[str]]
    ) -> np.ndarray:
        rows = []
        for profile, opts in zip(profiles, options, strict=True):
            make = lambda p: prompts.choice_message(templates, p, opts)  # noqa: B023
            rows.append(fit_message(tokenizer, make, profile, shapes.prompt))
        arrays = pad_left(rows, shapes.prompt, tokenizer.pad_id)
        call = lambda tokens, mask: run(params, tokens, mask)
        return _batched(call, arrays, shapes.batch, mesh)

    return score


def title_target(tokenizer: Tokenizer, title: str, max_tokens: int) -> list[int]:
    """Tokens that a likelihood judge is trained on and scored with: title, end
    token."""
    return tokenizer.encode(title)[: max_tokens - 1] + [tokenizer.turn_end_id]


def _by_likelihood(
    run: Program,
    tokenizer: Tokenizer,
    templates: Templates,
    mesh: Mesh,
    shapes: Shapes,
) -> Judge:
    make = lambda profile: prompts.title_message(templates, profile)
    empty = fit_message(tokenizer, make, "", shapes.prompt)

    def score(
        params: Params, profiles: Sequence[str], options: Sequence[Sequence[str]]
    ) -> np.ndarray:
        fit = lambda p: fit_message(tokenizer, make, p, shapes.prompt)
        # rows with the same options share one question with the empty profile
        unique = list(dict.fromkeys(tuple(o) for o in options))
        rows = [fit(p) for p in profiles] + [empty] * len(unique)
        titles = [*map(tuple, options), *unique]
        prompt = pad_left(rows, shapes.prompt, tokenizer.pad_id)
        size = shapes.completion
        targets = [title_target(tokenizer, t, size) for row in titles for t in row]
        tokens, mask = pad_right(targets, size, tokenizer.pad_id)
        tokens = tokens.reshape(len(rows), shapes.group, size)
        call = lambda *batch: run(params, *batch)
        logprobs = _batched(call, (*prompt, tokens), shapes.batch, mesh)
        scores = np.where(mask.reshape(tokens.shape), logprobs, 0.0).sum(axis=-1)
        n = len(profiles)
        prior = {row: scores[n + i] for i, row in enumerate(unique)}
        return scores[:n] - np.stack([prior[tuple(o)] for o in options])

    return score
