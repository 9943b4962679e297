"""Every field of BLUE with its default, its meaning and the paper's value.

Other configs start from `get_config()` here and write only what differs. Values are
plain data; on the command line a field is `--config.rewards.choice.weight=0`.
[P] marks a value the paper states (https://arxiv.org/abs/2605.06981); the others are
the defaults of the framework the paper built on, or ours.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """The base config; `arg` is empty or "tiny" (two steps of tiny models)."""
    c = ConfigDict()
    c.seed = 0  # the only source of randomness: data split, weights, sampling
    c.stages = ("profiler", "evaluate")  # stages in order; finished ones are skipped
    c.stage = ""  # not empty: run this one stage alone

    c.resume = "auto"  # from a checkpoint: auto | must | never | step:<n>

    # --- devices, and when a process leaves
    c.platform = ""  # tpu | gpu | cpu: anything else found is an error; empty: any
    c.num_devices = 0  # expected, of all hosts; 0: any number
    c.num_processes = 0  # expected; 0: any number
    c.compile_cache = "~/.cache/blue/xla"  # compiled programs; or gs://...; empty: none
    c.xla_flags = True  # of blue/runtime/xla_flags.py, on TPUs and GPUs; False: none
    c.distributed = ConfigDict()  # several processes, one a host; the same command each
    c.distributed.coordinator = ""  # host:port of process 0, else that of environment
    #   JAX_COORDINATOR_ADDRESS; neither: one process alone
    c.distributed.num_processes = 0  # 0: JAX_NUM_PROCESSES of the environment
    c.distributed.process_id = -1  # of this one, from 0; -1: JAX_PROCESS_ID
    c.distributed.auto = False  # jax asks the cluster: TPU slices, SLURM, MPI
    c.distributed.heartbeat_s = 30.0  # a process silent for so long is lost: all end
    c.distributed.start_timeout_s = 300.0  # for all of them to connect
    c.preemption_grace_s = 60.0  # after SIGTERM, at most, for the checkpoint (exit 75)
    c.watchdog = ConfigDict()  # seconds without a sign of life, then exit 71; 0: off
    c.watchdog.load = 14400.0  # data, models, tables of item vectors
    c.watchdog.compile = 7200.0  # a program
    c.watchdog.data = 1800.0  # of a step
    c.watchdog.rollout = 3600.0
    c.watchdog.reward = 3600.0
    c.watchdog.update = 3600.0
    c.watchdog.save = 7200.0  # checkpoints, exports
    c.watchdog.evaluate = 14400.0  # validation, stages evaluate and write_profiles

    # --- data: which log, and how examples are cut from it
    c.data = ConfigDict()
    # reader: synthetic | table | movielens | amazon_reviews_2023 | google_local
    c.data.name = "synthetic"
    c.data.path = ""  # directory of the raw files; several, with commas, are joined
    c.data.events = "events.csv"  # events file under data.path (table)
    c.data.items = "items.csv"  # items file under data.path (table)
    c.data.separator = ""  # column separator of CSV files; empty: from the header
    c.data.columns = ConfigDict()  # names the columns have in the files (table)
    c.data.columns.user_id = "user_id"
    c.data.columns.item_id = "item_id"  # in the events file
    c.data.columns.timestamp = "timestamp"  # seconds, milliseconds or ISO text
    c.data.columns.rating = "rating"  # empty: the log has no ratings
    c.data.columns.items_item_id = "item_id"  # in the items file
    c.data.title_template = "{title}"  # a history line; {column} of the items file
    c.data.item_template = "{title}"  # an item's text for the encoder
    c.data.category = ""  # item column of the candidates of the same category
    c.data.pseudo_item_template = ""  # a profile by rule: item columns of the history
    c.data.min_interactions = 20  # users with fewer are left out [P]
    c.data.max_interactions = 1000  # users with more are left out [P]
    c.data.window_policy = "exclude_window"  # or include_window, rolling
    c.data.window_s = 3600  # seconds before the last event whose items are targets [P]
    c.data.rolling_targets = 10  # targets a user under window_policy=rolling
    c.data.embargo_items = 0  # items before the target withheld, window_policy=rolling
    c.data.ties = "hash"  # order of simultaneous events: a seeded hash, or file order
    c.data.min_history = 1  # least items of a target's history
    c.data.targets_per_example = 1  # next items the embedding reward averages [P: 1]
    c.data.max_train_targets = 16  # training examples a user, at most (newest first)
    c.data.validation_users = 1000  # at most; and at most 10% of the users
    c.data.test_users = 1000  # at most; and at most 20% of the users
    c.data.splits = ""  # file of user_id and split; empty: by a hash of the id
    c.data.eval_negatives = 99  # candidates beside the target at evaluation [P]
    c.data.max_bad_fraction = 0.01  # more broken rows than this (and 100): stop
    c.data.synthetic = ConfigDict()  # the world with a known answer
    c.data.synthetic.users = 600
    c.data.synthetic.items = 2000
    c.data.synthetic.topics = 24  # at most 24; 20 words each
    c.data.synthetic.noise = 0.4  # share of a history's items that are uniform
    c.data.synthetic.loyalty = 0.7  # chance of taking the favourite brand
    c.data.synthetic.drift = 0.5  # chance that one topic is replaced
    c.data.synthetic.burst = 0.2  # chance that an event follows within the hour
    c.data.synthetic.min_history = 20
    c.data.synthetic.max_history = 36

    # --- text: tokenizers and templates
    c.tokenizer = ConfigDict()  # for models without one: trained on the items
    c.tokenizer.vocab_size = 2048  # pieces of the freshly trained SentencePiece model
    c.prompts = ConfigDict()
    c.prompts.style = "full"  # wording of all templates: full | short (tiny models)
    c.prompts.history_items = 1000  # newest items shown in the profile prompt
    c.prompts.recent_items = 10  # items in the history+profile view [P]
    c.prompts.instruction = "Given what a user likes, retrieve the item taken next"
    #   of encoder queries; empty: none; "@encoder": the query prompt that an encoder
    #   checkpoint brings (config_sentence_transformers.json), word for word

    # --- models
    c.profiler = ConfigDict()
    c.profiler.checkpoint = ""  # directory, gs://..., or hub id owner/name[@revision];
    #   Gemma 3 or Qwen3, safetensors; empty: preset, random weights
    c.profiler.preset = "gemma3_1b"  # [P]
    c.profiler.tokenizer = ""  # likewise; empty: the checkpoint's, else a trained one
    c.profiler.lora = ConfigDict()  # low-rank adapters, trained in every stage
    c.profiler.lora.rank = 0  # 0: off, all parameters are trained
    c.profiler.lora.alpha = 32.0  # adapters are scaled by alpha / rank
    c.profiler.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")  # matrices
    c.encoder = ConfigDict()
    c.encoder.kind = "own"  # own | sentence_transformers | function
    c.encoder.checkpoint = ""  # as profiler.checkpoint (own), directory or package
    #   (sentence_transformers), "module:function", texts -> vectors [n, d] (function)
    c.encoder.preset = "qwen3_embedding_0_6b"  # [P]
    c.encoder.tokenizer = ""
    c.encoder.lora = ConfigDict()  # as profiler.lora, in stage encoder
    c.encoder.lora.rank = 0  # 0: off
    c.encoder.lora.alpha = 32.0
    c.encoder.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")
    c.encoder.max_tokens = 512  # longer texts lose their oldest items, then their end
    c.encoder.buckets = (32, 64, 128, 256, 512, 1024)  # tokens of a row, which holds
    #   texts side by side; ascending, the last takes max_tokens or more
    c.encoder.batch_size = 64  # rows a call of the encoder, global; texts if kind is
    #   not own
    c.dtype = ConfigDict()
    c.dtype.params = "float32"  # parameters and Adam moments of trained models
    c.dtype.compute = "float32"  # forward and backward; bfloat16 on TPU and GPU
    c.remat = "layers"  # what the backward pass recomputes: layers | attention |
    #   "": nothing. The less, the more memory and the less time
    c.mesh = ConfigDict()  # devices along each axis; -1: the rest
    c.mesh.data = 1  # replicates parameters (across slices)
    c.mesh.fsdp = -1  # shards parameters and the batch
    c.mesh.tensor = 1  # shards heads and mlp

    # --- stage profiler: GRPO
    c.batch_size = 64  # users a step, global [P]
    c.microbatch_size = 0  # users at a time in update, reference pass and multiple
    #   choice; 0: the whole batch
    c.group_size = 8  # profiles a user [P]
    c.max_prompt_tokens = 2048  # [P]; whole oldest items go first
    c.prompt_buckets = (512, 1024, 2048)  # padded prompt lengths, ascending
    c.max_completion_tokens = 2048  # [P]
    c.num_steps = 1671  # one epoch of the paper's Clothing data at 64 users a step
    c.lr = 1e-6  # Adam, constant after lr_warmup_steps [P]
    c.lr_warmup_steps = 1
    c.lr_schedule = "constant"  # after the warm-up: constant | cosine (to zero)
    c.adam_b1 = 0.9
    c.adam_b2 = 0.95
    c.adam_eps = 1e-8
    c.grad_clip = 1.0  # global norm
    c.kl_coef = 0.01  # weight of the k3 KL to the starting profiler [P]
    c.clip_eps = 0.2  # inactive with one update a rollout batch
    c.sampling_temperature = 1.0  # of rollouts in training [P]
    c.top_k = 0  # 0: off. The update scores the untruncated distribution, so
    c.top_p = 1.0  # truncation shows up as sampler gap: keep both off in training
    c.num_negatives = 128  # sampled items an example [P]
    c.max_nonfinite = 3  # skipped updates in a row before the run stops (exit 70)
    c.rewards = ConfigDict()  # a section each: weight, arguments (blue/rewards/)
    c.rewards.embedding = ConfigDict()
    c.rewards.embedding.weight = 1.0
    c.rewards.embedding.history_profile = 1.0  # weight of the view history + profile
    c.rewards.embedding.profile = 1.0  # weight of the view profile alone
    c.rewards.embedding.u2i = 1.0  # weight of user -> item
    c.rewards.embedding.i2u = 1.0  # weight of item -> user
    c.rewards.embedding.similarity_temperature = 0.07  # [P]
    c.rewards.choice = ConfigDict()
    c.rewards.choice.weight = 1.0
    c.rewards.choice.num_options = 4  # titles of a question, one of them right
    c.rewards.unfinished = ConfigDict()  # an addition to the paper:
    c.rewards.unfinished.weight = 0.0  # -weight for a profile without end token
    c.rewards.repetition = ConfigDict()  # an addition to the paper:
    c.rewards.repetition.weight = 0.0  # -weight * share of repeated words
    c.judge = ConfigDict()  # the model that answers questions about a profile
    c.judge.model = "policy"  # or reference: the frozen starting profiler
    c.judge.scoring = "letters"  # or likelihood of the titles (tiny judges)
    c.judge.max_prompt_tokens = 2560  # profile, options and question
    c.judge.max_option_tokens = 16  # title tokens scored (likelihood)

    # --- alarms: what stops the first step after a start, and what later ones warn of
    c.alarms = ConfigDict()
    c.alarms.first_kl = 1e-4  # nats a token before any update; more: stop
    c.alarms.gap_mean = 1e-3  # |sampler - trainer| log-probability; more at first: stop
    c.alarms.gap_max = 2e-2  # the same of one token; more at first: stop, later: warn
    c.alarms.coarse = 100.0  # times the three above on a GPU or TPU, or in bfloat16
    c.alarms.window = 50  # logged lines whose median a spike is measured by
    c.alarms.patience = 5  # logged lines in a row until a share or entropy alarms
    c.alarms.kl_spike = 10.0  # KL above so many medians
    c.alarms.kl_floor = 0.1  # nats a token: a lower KL is no spike
    c.alarms.grad_spike = 10.0  # gradient norm above so many medians
    c.alarms.zero_std = 0.9  # share of users whose profiles have equal rewards
    c.alarms.invalid = 0.1  # share of profiles without a valid reward
    c.alarms.truncated = 0.9  # share of profiles without an end
    c.alarms.empty = 0.5  # share of profiles without text
    c.alarms.entropy = 0.05  # nats a token; less: warn

    # --- stage encoder: supervised contrastive
    c.train_encoder = ConfigDict()
    c.train_encoder.num_steps = 200
    c.train_encoder.batch_size = 512  # [P]
    c.train_encoder.lr = 1e-6  # [P]
    c.train_encoder.lr_schedule = "constant"
    c.train_encoder.lr_warmup_steps = 1
    c.train_encoder.similarity_temperature = 0.07  # [P]
    c.train_encoder.queries = ("history_profile",)  # views drawn in turn, one a step:
    #   history_profile [P], history, profile, items (1 to 4 titles)
    c.train_encoder.profiles = ""  # profiles.jsonl; empty: rule-made template profiles
    c.train_encoder.query_tokens = 512  # padded length of a query
    c.train_encoder.item_tokens = 64  # padded length of an item

    # --- stage warm_start: supervised fine-tuning of the profiler
    c.warm_start = ConfigDict()
    c.warm_start.num_steps = 500
    c.warm_start.tasks = ("profile",)  # profile | choice; one a step, in turn
    c.warm_start.batch_size = 16  # prompts a step of task profile
    c.warm_start.targets = 6  # template profiles a prompt
    c.warm_start.choice_batch_size = 64  # profiles a step of task choice
    c.warm_start.profile_items = 8  # words or phrases in a template profile
    c.warm_start.lr = 5e-3
    c.warm_start.lr_schedule = "cosine"
    c.warm_start.lr_warmup_steps = 20
    c.warm_start.adam_b2 = 0.98
    c.warm_start.tie_to_encoder = False  # start from the encoder's token embeddings

    # --- checkpoints, evaluation, logging
    c.checkpoint_every = 100  # steps
    c.checkpoint_keep = 3  # newest kept
    c.checkpoint_milestone_every = 0  # kept forever, every so many steps; 0: none
    c.eval_every = 100  # steps between validations; 0: never
    c.evaluate = ConfigDict()
    c.evaluate.validation_users = 256  # at most, while training
    c.evaluate.test_users = 0  # 0: all test users
    c.evaluate.sampling_temperature = 0.7  # of profiles at evaluation [P]
    c.evaluate.bootstrap = 10000  # resamples of users
    c.evaluate.batch_size = 64  # users a call
    c.evaluate.protocols = (
        "1+99",
        "1+99-popularity",
        "1+99-category",
        "full",
        "expected-1+99",
        "expected-1+99-popularity",
    )  # the first is shown in full; expected: in exact expectation over the draws
    c.evaluate.ease_l2 = 100.0  # regularisation of EASE, the collaborative yardstick
    c.evaluate.ease_max_items = 10_000  # more training items: no EASE; time ~ n^3
    c.evaluate.transfer = ConfigDict()  # a second encoder, never used in training
    c.evaluate.transfer.kind = ""  # empty: none; else as encoder.kind
    c.evaluate.transfer.checkpoint = ""
    c.evaluate.cold_start = ()  # history lengths of the cold-start curve; empty: none
    c.evaluate.cold_start_users = 0  # of the test users, for that curve; 0: all
    c.evaluate.profiles = ConfigDict()  # method name -> profiles.jsonl from elsewhere
    c.write_profiles = ConfigDict()  # stage write_profiles: profiles.jsonl
    c.write_profiles.users = ""  # file with one user id a line; empty: all of the log
    c.write_profiles.batch_size = 64  # profiles written at a time
    c.plan = ConfigDict()  # stage plan: what a run costs on TPUs, without one
    c.plan.topology = "v6e:8x8"  # generation (v5e, v5p, v6e) and shape
    c.plan.num_items = 1_000_000  # of the catalogue
    c.plan.quick = True  # least effort of the compiler; False: a run's, much longer
    c.log = ConfigDict()
    c.log.every = 1  # steps between lines of metrics.jsonl
    c.log.samples_every = 10  # steps between written sample profiles
    c.log.sample_users = 4  # the same few users every time; 0: no text is written
    c.log.tensorboard = True
    c.profile_steps = ()  # first,last step that a training stage traces; empty: none

    return with_argument(c, arg)


def with_argument(c: ConfigDict, arg: str | None) -> ConfigDict:
    """`c` as the part after the colon of --config asks: "tiny", or nothing."""
    if arg not in (None, "", "tiny"):
        raise ValueError(f"config argument {arg!r} is not known; there is only 'tiny'")
    return make_tiny(c) if arg else c


def make_tiny(c: ConfigDict) -> ConfigDict:
    """Change `c` in place to fake data, tiny models and two steps on a laptop."""
    c.platform, c.num_devices, c.num_processes = "", 0, 0
    c.distributed.coordinator, c.distributed.auto = "", False
    c.distributed.num_processes, c.distributed.process_id = 0, -1
    c.data.name = "synthetic"
    c.data.synthetic.users = 120
    c.data.synthetic.items = 300
    c.data.min_interactions = 10
    c.data.window_policy = "exclude_window"
    c.data.title_template = c.data.item_template = "{title}"
    c.data.category = c.data.pseudo_item_template = c.train_encoder.profiles = ""
    c.evaluate.transfer.kind, c.evaluate.cold_start = "", ()
    c.prompts.style = "short"
    c.prompts.history_items = 8
    c.prompts.recent_items = 4
    c.prompts.instruction = ""
    c.tokenizer.vocab_size = 1024
    c.encoder.kind, c.evaluate.transfer.kind = "own", ""
    c.profiler.checkpoint = c.encoder.checkpoint = ""
    c.profiler.tokenizer = c.encoder.tokenizer = ""
    c.profiler.preset, c.encoder.preset = "tiny_gemma3", "tiny_qwen3"
    c.encoder.max_tokens, c.encoder.buckets = 64, (64,)
    c.encoder.batch_size = 32
    c.dtype.compute = "float32"
    c.remat = ""
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, -1, 1
    c.batch_size, c.microbatch_size, c.group_size = 8, 0, 4
    c.max_prompt_tokens, c.prompt_buckets = 96, (96,)
    c.max_completion_tokens = 12
    c.num_steps = 2
    c.lr = 1e-3
    c.num_negatives = 16
    c.judge.scoring = "likelihood"
    c.judge.max_prompt_tokens = 48
    c.judge.max_option_tokens = 8
    c.train_encoder.num_steps = 2
    c.train_encoder.batch_size = 16
    c.train_encoder.query_tokens, c.train_encoder.item_tokens = 64, 16
    c.warm_start.num_steps = 2
    c.warm_start.batch_size, c.warm_start.choice_batch_size = 8, 8
    c.warm_start.targets = 2
    c.warm_start.profile_items = 3
    c.checkpoint_every, c.eval_every = 1, 2
    c.evaluate.validation_users, c.evaluate.test_users = 8, 16
    c.evaluate.bootstrap, c.evaluate.batch_size = 200, 8
    c.write_profiles.batch_size = 16
    c.log.samples_every = 1
    return c
