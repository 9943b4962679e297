"""Profiles by continuous batching, against the plain sampler."""

import copy

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from blue.inference.continuous import Job, make_profile_writer, prompt_lengths
from blue.inference.generate import make_generator
from blue.models import gemma3
from blue.runtime import sharding
from blue.runtime.shapes import Shapes
from tests.helpers.small_model import FLOAT32, few_words, make


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, -1, 1)


# --- many profiles, one after the other


def profile_writer(tokenizer, mesh, *, batch_size, refill_size, lengths, layers=1):
    """Parameters, and a writer of profiles from prompts of 20 to 300 tokens."""
    cfg, params = make(gemma3.tiny_gemma3, tokenizer, mesh, layers)
    params = dict(params, embed=params["embed"] * 3)  # far from uniform
    write = make_profile_writer(
        cfg, tokenizer, mesh, Shapes(batch_size, 300, 1, 64), FLOAT32,
        refills=[Shapes(refill_size, length) for length in lengths],
        **SAMPLING,
    )  # fmt: skip
    return cfg, params, write


FEW = (96, 300)  # each length is a program

SAMPLING = {"temperature": 0.9, "key": (5, 77)}


@pytest.fixture(scope="module")
def often_ending():
    """Twelve ids of 336 end a completion: profiles of some 25 tokens."""
    ending = copy.copy(few_words())
    ending.end_ids = tuple(range(20, 32))
    return ending


def jobs_of(count, *, high):
    """Jobs whose prompts are as long as those of users are: log-normal, 20 to 300."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.2, 0.7, count), 20, 300).astype(int)
    keys = rng.integers(2**31, size=count).tolist()
    return [
        Job(number, keys[number], rng.integers(20, high, length).tolist())
        for number, length in enumerate(np.sort(lengths))
    ]


def collect(chunks):
    pairs = [pair for chunk in chunks for pair in chunk.profiles]
    assert len(dict(pairs)) == len(pairs), "a profile came twice"
    return dict(pairs)


def test_refilled_rows_hold_what_the_plain_sampler_gives(often_ending, mesh):
    """Eight devices; each row is refilled several times, the last rows not at all."""
    cfg, params, write = profile_writer(
        often_ending, mesh, batch_size=16, refill_size=8, lengths=FEW
    )
    jobs = jobs_of(61, high=336)
    got = collect(write(params, iter(jobs)))
    shapes = [Shapes(8, 300, 1, 64)]
    generate = make_generator(cfg, often_ending, mesh, shapes, FLOAT32, **SAMPLING)
    want = generate(params, [j.prompt for j in jobs], [j.example_id for j in jobs])
    assert got == dict(enumerate(want))
    lengths = [profile.num_tokens for profile in want]
    assert min(lengths) < 8 and max(lengths) == 64 and len(set(lengths)) > 20
    assert {profile.finished for profile in want} == {True, False}


def test_a_profile_does_not_depend_on_the_others(often_ending, mesh):
    _, params, write = profile_writer(
        often_ending, mesh, batch_size=16, refill_size=8, lengths=FEW
    )
    jobs = jobs_of(61, high=336)
    whole = collect(write(params, iter(jobs)))
    few = collect(write(params, iter(jobs[3::7])))
    assert few == {number: whole[number] for number in few} and len(few) == 9
    one = collect(write(params, iter(jobs[-1:])))
    assert one == {60: whole[60]} and not list(write(params, iter([])))


@pytest.mark.slow
def test_padding_waste_is_under_a_fifth(often_ending):
    one_device = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    _, params, write = profile_writer(
        often_ending, one_device, batch_size=16, refill_size=2,
        lengths=prompt_lengths(20, 300),
    )  # fmt: skip
    chunks = list(write(params, iter(jobs_of(300, high=336))))
    used = sum(chunk.tokens for chunk in chunks)
    got = collect(chunks).values()
    prompts = sum(len(job.prompt) for job in jobs_of(300, high=336))
    assert used == prompts + sum(profile.num_tokens for profile in got)
    waste = 1 - used / sum(chunk.token_slots for chunk in chunks)
    assert 0 < waste < 0.2


def test_prompt_lengths_grow_by_a_third():
    lengths = prompt_lengths(20, 300)
    assert lengths == (32, 48, 64, 80, 96, 112, 144, 192, 240, 300)
    for shorter, longer in zip(lengths, lengths[1:], strict=False):
        assert shorter < longer <= max(shorter * 4 / 3 + 1, shorter + 16)
    assert len(prompt_lengths(170, 2048)) == 10
    assert prompt_lengths(84, 84) == (84,)
    assert prompt_lengths(1, 8) == (8,)
