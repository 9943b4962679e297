"""A real log on a laptop: X-Wines ratings, small models from random weights.

python -m blue.main --config=configs/profiler_xwines.py --workdir=runs/xwines \\
  --config.data.path=DIR

DIR holds XWines_Slim_ratings.csv.gz and XWines_Slim_1K_wines.csv.gz of the public
X-Wines repository (github.com/rogerioxavier/X-Wines, CC0 1.0). Its authors ask to
cite: de Azambuja, Morais, Filipe, "X-Wines: A Wine Dataset for Recommender Systems and
Machine Learning", Big Data Cogn. Comput. 2023, 7(1), 20.

experiments/xwines/ has the recorded run. The other real logs start from these settings.
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
    c.data.item_template = "{WineName}. {Type} wine, {RegionName}, {Country}."
    c.data.category = "Type"
    c.data.pseudo_item_template = "{Type} wine, {RegionName}, {Country}."
    c.data.min_interactions = 10  # about 5,900 users
    c.data.validation_users = 500
    c.prompts.style = "short"
    c.prompts.history_items = 10
    c.prompts.instruction = ""
    c.tokenizer.vocab_size = 4096  # at most: a small catalogue gives fewer pieces
    c.profiler.preset, c.encoder.preset = "tiny_gemma3", "tiny_qwen3"
    c.encoder.max_tokens, c.encoder.buckets = 192, (32, 64, 192, 384)
    c.encoder.batch_size = 16
    c.remat = ""
    c.max_prompt_tokens, c.prompt_buckets = 176, (176,)
    c.max_completion_tokens = 36

    c.train_encoder.num_steps = 300
    c.train_encoder.batch_size = 128
    c.train_encoder.lr, c.train_encoder.lr_schedule = 2e-3, "cosine"
    c.train_encoder.lr_warmup_steps = 20
    # long queries cost twice as much
    c.train_encoder.queries = (*3 * ("items", "profile"), "history_profile")
    c.train_encoder.query_tokens, c.train_encoder.item_tokens = 192, 40

    c.warm_start.num_steps = 700
    c.warm_start.tasks = ("profile", "profile", "profile", "choice")
    c.warm_start.targets = 4
    c.warm_start.profile_items = 6
    c.warm_start.tie_to_encoder = True

    c.batch_size = 16
    c.num_steps = 120
    c.lr = 5e-4
    c.kl_coef = 0.02
    c.rewards.unfinished.weight = 1.0  # an addition to the paper
    c.rewards.repetition.weight = 0.5  # an addition to the paper
    c.judge.scoring = "likelihood"
    c.judge.model = "reference"
    c.rewards.choice.weight = 0.0  # the judge is near chance: logged, not rewarded
    c.judge.max_prompt_tokens = 56
    c.judge.max_option_tokens = 16
    c.checkpoint_every = 60
    c.eval_every = 40
    c.evaluate.validation_users = 200
    c.log.samples_every = 20
    c.log.sample_users = 6
    return base.with_argument(c, arg)
