"""The GRPO stage refuses what cannot be right."""

import pytest

from blue.inference import sampling
from blue.rewards import experience
from blue.stages import train_profiler
from tests.helpers import small_stages
from tests.helpers.small_stages import one_layer, same_updates  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_layer", "same_updates")


def test_a_first_step_that_contradicts_itself_stops_the_run(tmp_path, monkeypatch):
    """A sampler at another temperature than the trainer's."""
    c = small_stages.four_step_config()
    c.stages = ("profiler",)
    real = sampling.make_sample

    def colder(cfg, mesh, shapes, draws, dtype):
        return real(cfg, mesh, shapes, draws._replace(temperature=0.7), dtype)

    monkeypatch.setattr(sampling, "make_sample", colder)
    with pytest.raises(ValueError, match="step 0, .*sampler_gap_mean is .* must be"):
        train_profiler.run(c, str(tmp_path))
    assert not small_stages.lines(tmp_path, "profiler")


@pytest.mark.slow
def test_a_hidden_transfer_in_a_step_stops_the_run(tmp_path, monkeypatch):
    """A reward that an operation outside of the programs touches."""
    c = small_stages.four_step_config()
    c.stages = ("profiler",)
    real = experience.score

    def careless(*args, **fields):
        seen = real(*args, **fields)
        return seen._replace(device_advantages=seen.device_advantages * 2)

    monkeypatch.setattr(train_profiler, "score", careless)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train_profiler.run(c, str(tmp_path))


def test_mistakes_are_told_before_anything_runs(tmp_path):
    """`step_programs.check_profiler` finds them; its test has one of each."""
    c = small_stages.four_step_config()
    c.batch_size = 12
    words = "batch_size = 12 must be a positive multiple of 8"
    with pytest.raises(ValueError, match=words):
        train_profiler.run(c, str(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()
