"""Stages of models of one layer: what tests of whole stages share."""

import dataclasses

import pytest

from blue.models import families
from configs import quickstart


def make_config():
    """The tiny quickstart, with as few programs to compile as there can be."""
    c = quickstart.get_config("tiny")
    c.train_encoder.batch_size = 8
    return c


@pytest.fixture(scope="module")
def one_layer():
    """Presets have one layer: programs are traced and compiled in half the time."""
    real = families.preset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            families,
            "preset",
            lambda name: dataclasses.replace(real(name), num_layers=1),
        )
        yield
