"""The paper's second stage: Qwen3-Embedding-0.6B fine-tuned on profiles of Clothing.

python -m blue.main --config=configs/encoder_amazon_clothing.py --workdir=RUN \\
  --config.data.path=DIR --config.train_encoder.profiles=PROFILES \\
  --config.profiler.checkpoint=TRAINED --config.encoder.checkpoint=QWEN

TRAINED is the profiler of configs/profiler_amazon_clothing.py, PROFILES a file with a
profile of each training user that it wrote; DIR and QWEN as there. The encoder learns
last 10 items + profile -> next item, one epoch. Not run by the authors of this
repository.
"""

from ml_collections import ConfigDict

from configs import base, profiler_amazon_clothing


def get_config(arg: str | None = None) -> ConfigDict:
    """The encoder's run, or two steps of tiny models on fake data with arg "tiny"."""
    c = profiler_amazon_clothing.get_config()
    c.stages = ("encoder", "evaluate")
    c.train_encoder.num_steps = 208  # one epoch of 106,946 examples, 512 a step
    c.train_encoder.profiles = "profiles.jsonl"  # given on the command line
    return base.with_argument(c, arg)
