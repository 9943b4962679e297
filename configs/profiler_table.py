"""Your own log: a file of events and a file of items, from CSV to profiles.

python -m blue.main --config=configs/profiler_table.py --workdir=runs/mine \\
  --config.data.path=DIR --config.data.events=clicks.csv \\
  --config.data.items=products.csv --config.data.title_template='{name}' \\
  --config.data.columns.user_id=customer --config.data.columns.item_id=product \\
  --config.data.columns.timestamp=clicked_at

On a laptop, without any checkpoint: small models from random weights, whose tokenizer
is trained on the catalogue. They show that the log is read as meant and what comes out;
they write lists of words. For profiles in sentences take pretrained models, on a GPU:

python -m blue.main --config=configs/profiler_table.py:real --workdir=runs/real \\
  --config.profiler.checkpoint=GEMMA3_OR_QWEN3 --config.encoder.checkpoint=QWEN3_EMB \\
  --config.data...

Checkpoints are Hugging Face directories. Any sentence-transformers encoder will do as
well: --config.encoder.kind=sentence_transformers.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Small models on a laptop; arg "real": for pretrained ones; "tiny": two steps."""
    c = base.get_config()
    c.data.name = "table"
    c.data.min_interactions = 5
    # People's logs rarely have sessions, and often only dates. So targets are spread
    # over each user's log, with a history strictly earlier in time: the order within
    # the same moment is nowhere relied on, and a small log gives more examples.
    c.data.window_policy = "rolling"
    c.data.rolling_targets = 5
    c.data.validation_users = 200
    c.data.test_users = 500
    if arg == "real":
        c.stages = ("profiler", "evaluate", "write_profiles")
        c.dtype.compute = "bfloat16"
        c.batch_size = 16
        c.num_steps = 200
        c.max_completion_tokens = 512
        return c

    c.stages = ("encoder", "warm_start", "profiler", "evaluate", "write_profiles")
    c.prompts.style = "short"
    c.prompts.history_items = 12
    c.prompts.instruction = ""
    c.tokenizer.vocab_size = 4096
    c.profiler.preset, c.encoder.preset = "tiny_gemma3", "tiny_qwen3"
    c.encoder.max_tokens, c.encoder.buckets = 160, (32, 64, 160, 320)
    c.encoder.batch_size = 16
    c.remat = ""
    # Twelve titles of 15 tokens; of longer ones the newest that fit.
    c.max_prompt_tokens, c.prompt_buckets = 192, (96, 192)
    c.max_completion_tokens = 32

    c.train_encoder.num_steps = 300
    c.train_encoder.batch_size = 128
    c.train_encoder.lr, c.train_encoder.lr_schedule = 2e-3, "cosine"
    c.train_encoder.lr_warmup_steps = 20
    short = 2 * ("items", "profile")  # long queries cost twice as much
    c.train_encoder.queries = (*short, "history_profile", *short, "history")
    c.train_encoder.query_tokens, c.train_encoder.item_tokens = 128, 32

    c.warm_start.num_steps = 450
    c.warm_start.tasks = ("profile", "profile", "choice")
    c.warm_start.choice_batch_size = 32
    c.warm_start.tie_to_encoder = True

    c.batch_size = 16
    c.num_steps = 80
    c.lr = 7e-4
    c.kl_coef = 0.03
    c.rewards.unfinished.weight = 1.0  # an addition to the paper
    c.rewards.repetition.weight = 0.5  # an addition to the paper
    c.judge.scoring = "likelihood"
    c.judge.model = "reference"
    c.rewards.choice.weight = 0.25
    c.judge.max_prompt_tokens = 56
    c.judge.max_option_tokens = 16
    c.checkpoint_every = 40
    c.eval_every = 40
    c.log.every = 5
    c.log.samples_every = 20
    return base.with_argument(c, arg)
