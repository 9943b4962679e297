"""The paper's second source: Gemma 3 1B on Google Local reviews of New York.

python -m blue.data.download google_local New_York DIR
python -m blue.main --config=configs/profiler_google_local.py --workdir=RUN \\
  --config.data.path=DIR --config.profiler.checkpoint=GEMMA \\
  --config.encoder.checkpoint=QWEN

GEMMA and QWEN as in configs/profiler_amazon_clothing.py. The paper trains on Clothing
and applies the profiler here unchanged: --config.stages=evaluate and, as GEMMA, the
profiler trained there. This config can also train here. Not run by the authors of this
repository. Data: Li, Shang, McAuley 2022; Yan et al. 2023.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str | None = None) -> ConfigDict:
    """The Google Local run, or two steps of tiny models on fake data with "tiny"."""
    c = base.get_config()
    c.data.name = "google_local"
    c.data.path = "google_local"  # given on the command line
    # the paper shows a place as its name, then its name and full address
    c.data.title_template = c.data.item_template = "{title} | {address}"
    c.data.category = "category"
    c.num_steps = 1562  # one epoch of the paper's 100,000 examples
    c.dtype.compute = "bfloat16"
    c.encoder.batch_size = 256  # rows: on 64 chips four each, for one gather of weights
    return base.with_argument(c, arg)
