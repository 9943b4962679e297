"""A real log on a laptop: X-Wines ratings, the real Gemma 3 tokenizer, small models.

python -m blue.main --config=configs/profiler_xwines.py --workdir=runs/xwines \\
  --config.data.path=DIR --config.profiler.tokenizer=GEMMA

DIR holds XWines_Slim_ratings.csv.gz and XWines_Slim_1K_wines.csv.gz of the public
X-Wines repository (github.com/rogerioxavier/X-Wines, CC0 1.0). Its authors ask to
cite: de Azambuja, Morais, Filipe, "X-Wines: A Wine Dataset for Recommender Systems and
Machine Learning", Big Data Cogn. Comput. 2023, 7(1), 20.

GEMMA is a directory with the tokenizer files of a Gemma 3 instruction model:
tokenizer.json (or .json.gz), tokenizer_config.json, chat_template.jinja,
generation_config.json. No weights are read: both models start from nothing.
experiments/xwines/ has the recorded run.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str | None = None) -> ConfigDict:
    """The X-Wines run, or two steps of tiny models on fake data with arg "tiny"."""
    c = base.get_config()
    c.stages = ("encoder", "warm_start", "profiler", "evaluate")
    c.data.name = "table"
    c.data.path = "xwines"  # given on the command line
    c.data.events = "XWines_Slim_ratings.csv.gz"
    c.data["items"] = "XWines_Slim_1K_wines.csv.gz"
    c.data.columns.user_id = "UserID"
    c.data.columns.item_id = "WineID"
    c.data.columns.timestamp = "Date"
    c.data.columns.rating = "Rating"
    c.data.columns.items_item_id = "WineID"
    c.data.title_template = "{WineName} | {Type} | {RegionName} | {Country}"
    c.data.item_template = (
        "{WineName}, {WineryName}. {Type} wine from {RegionName}, {Country}. "
        "Grapes: {Grapes}. Food: {Harmonize}."
    )
    c.data.min_interactions = 10  # about 5,900 users
    c.data.validation_users = 500
    c.prompts.style = "short"
    c.prompts.history_items = 10
    c.prompts.recent_items = 10
    c.prompts.instruction = ""
    c.tokenizer.vocab_size = 4096  # of the encoder
    c.profiler.preset, c.encoder.preset = "small_gemma3", "tiny_qwen3"
    c.encoder.max_tokens, c.encoder.buckets = 160, (32, 64, 160)
    c.encoder.batch_size = 128
    c.remat = False
    c.max_prompt_tokens, c.prompt_buckets = 176, (176,)
    c.max_completion_tokens = 20

    c.train_encoder.num_steps = 320
    c.train_encoder.batch_size = 128
    c.train_encoder.lr, c.train_encoder.lr_schedule = 2e-3, "cosine"
    c.train_encoder.lr_warmup_steps = 20
    short = 2 * ("items", "profile")  # long queries cost twice as much
    c.train_encoder.queries = (*short, "history_profile", *short, "history")
    c.train_encoder.query_tokens, c.train_encoder.item_tokens = 160, 56

    # the 262,144-row head is nearly all of the cost: few and short completions
    c.warm_start.num_steps = 280
    c.warm_start.tasks = ("profile", "profile", "profile", "choice")
    c.warm_start.batch_size, c.warm_start.targets = 12, 2
    c.warm_start.choice_batch_size = 16
    c.warm_start.profile_items = 4

    c.batch_size, c.group_size = 8, 4
    c.num_steps = 50
    c.lr = 7e-4
    c.kl_coef = 0.03
    c.rewards.unfinished.weight = 1.0  # an addition to the paper
    c.rewards.repetition.weight = 0.5  # an addition to the paper
    c.rewards.choice.scoring = "likelihood"
    c.rewards.choice.reader = "reference"
    c.rewards.choice.weight = 0.0
    c.rewards.choice.max_prompt_tokens = 48
    c.rewards.choice.max_option_tokens = 12
    c.checkpoint_every = 50
    c.eval_every = 50
    c.log.samples_every = 25
    c.log.sample_users = 6
    return base.with_argument(c, arg)
