"""The table of stages."""

from pathlib import Path

from blue.workdir import settings
from blue.workdir.stages import STAGES, trained_by
from configs import base

ROOT = Path(__file__).parents[2]


def test_every_stage_module_exists():
    for stage in STAGES.values():
        assert (ROOT / "blue" / "stages" / f"{stage.module}.py").exists()


def test_the_table_says_what_each_stage_trains_and_may_not_change():
    assert trained_by("profiler") == ["warm_start", "profiler"]
    assert trained_by("encoder") == ["encoder"]
    fields = dict(settings.leaves(base.get_config()))
    for name, stage in STAGES.items():
        assert bool(stage.trains) == bool(stage.sizes), name
        assert set(stage.sizes) <= set(fields)
