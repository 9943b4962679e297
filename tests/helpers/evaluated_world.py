"""A made-up world whose encoder, profiler and judge are rules."""

import functools
import zlib

import numpy as np

from blue.data.examples import history
from blue.inference.generate import Profile
from blue.text.rule_profiles import template_profile
from blue.text.templates import TEMPLATES
from blue.text.words import folded_words
from tests.helpers import hand_logs

WORLD = dict(users=240, items=300, topics=16, noise=0.1, loyalty=0.7, drift=0.0)

WORLD |= dict(burst=0.2, min_history=12, max_history=20)


@functools.cache
def word_vector(word):
    rng = np.random.default_rng(zlib.crc32(word.encode()))
    return rng.normal(size=64).astype(np.float32)


def embed(texts):
    """Unit vectors of bags of words; texts without words share one direction."""
    rows = [
        sum(map(word_vector, folded_words(f"{t} the")), np.zeros(64)) for t in texts
    ]
    vectors = np.stack(rows)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def choose(profiles, options):
    """Scores by the cosine of the bags of words of option and profile."""
    rows = [
        embed(row) @ embed([p])[0] for p, row in zip(profiles, options, strict=True)
    ]
    return np.stack(rows)


def prepare(log, directory, **changes):
    """Examples for a ranking among a hundred items."""
    cutting = dict(
        min_interactions=10,
        rolling_targets=10,
        max_train_targets=4,
        validation_users=20,
        test_users=48,
        eval_negatives=99,
    )
    return hand_logs.prepare(log, directory, **(cutting | changes))


def make_generate(log, examples, tokenizer, which):
    """A profiler by rule, keyed by example id; the trained one reads the prompt."""
    rows = {}
    for split in (examples.validation, examples.test):
        rows |= {int(i): (split, row) for row, i in enumerate(split.ids)}

    def generate(prompt_ids, example_ids):
        profiles = []
        for prompt, example_id in zip(prompt_ids, example_ids, strict=True):
            shown = tokenizer.decode(prompt)
            titles = [log.titles[i] for i in history(*rows[example_id])[0]]
            titles = [title for title in titles if title in shown]
            source = log.titles[::9] if which == "base" else titles
            rng = np.random.default_rng([example_id, len(prompt)])
            text = template_profile(TEMPLATES["short"], source, num_items=6, rng=rng)
            profiles.append(Profile(text, len(text.split()), which == "trained"))
        return profiles

    return generate


def num_tokens(tokenizer):
    return lambda text: len(tokenizer.pooled(text))
