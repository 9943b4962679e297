"""The paper's second profiler: Qwen3 1.7B on the Clothing, Shoes and Jewelry reviews.

As configs/profiler_amazon_clothing.py, with a directory of Qwen3-1.7B as
`profiler.checkpoint`. Not run by the authors of this repository; planned
(experiments/scaling).
"""

from ml_collections import ConfigDict

from configs import base, profiler_amazon_clothing


def get_config(arg: str | None = None) -> ConfigDict:
    """The paper's run, or two steps of tiny models on fake data with arg "tiny"."""
    c = profiler_amazon_clothing.get_config()
    c.profiler.preset = "qwen3_1_7b"
    return base.with_argument(c, arg)
