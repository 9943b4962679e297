"""Placeholder."""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str | None = None) -> ConfigDict:
    """The quickstart, or its two-step version with arg "tiny"."""
    c = base.get_config()
    c.stages = ("encoder", "warm_start", "profiler", "evaluate")
    if arg == "tiny":
        base.make_tiny(c)
    return c
