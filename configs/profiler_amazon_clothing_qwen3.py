"""The paper's second profiler: Qwen3 1.7B on the Clothing, Shoes and Jewelry reviews.

python -m blue.main --config=configs/profiler_amazon_clothing_qwen3.py --workdir=RUN \\
  --config.data.path=DIR --config.profiler.checkpoint=QWEN3 \\
  --config.encoder.checkpoint=QWEN

QWEN3 is a directory with Qwen3-1.7B; the rest is as in profiler_amazon_clothing.py. Not
run by the authors of this repository, but planned (experiments/scaling).
"""

from ml_collections import ConfigDict

from configs import base, profiler_amazon_clothing


def get_config(arg: str | None = None) -> ConfigDict:
    """The paper's run, or two steps of tiny models on fake data with arg "tiny"."""
    c = profiler_amazon_clothing.get_config()
    c.profiler.preset = "qwen3_1_7b"
    return base.with_argument(c, arg)
