"""The paper's main run: Gemma 3 1B on Amazon Reviews 2023, Clothing, Shoes and Jewelry.

python -m blue.data.download amazon_reviews_2023 Clothing_Shoes_and_Jewelry DIR
python -m blue.main --config=configs/profiler_amazon_clothing.py --workdir=RUN \\
  --config.data.path=DIR --config.stage=prepare
python -m blue.main --config=configs/profiler_amazon_clothing.py --workdir=RUN \\
  --config.data.path=DIR --config.profiler.checkpoint=GEMMA \\
  --config.encoder.checkpoint=QWEN

GEMMA and QWEN are directories with Gemma 3 1B IT and Qwen3-Embedding-0.6B. The paper
used 64 TPU v6e chips; all its values stand in configs/base.py, marked [P]. Not run by
the authors of this repository. Data: Hou et al. 2024, https://arxiv.org/abs/2403.03952.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str | None = None) -> ConfigDict:
    """The paper's run, or two steps of tiny models on fake data with arg "tiny"."""
    c = base.get_config()
    c.data.name = "amazon_reviews_2023"
    c.data.path = "amazon_clothing"  # given on the command line
    c.data.category = "categories"  # main_category is the same for most items here
    c.dtype.compute = "bfloat16"
    c.encoder.batch_size = 256  # rows: on 64 chips four each, for one gather of weights
    return base.with_argument(c, arg)
