"""The allowed values of the config's fields, by name.

`settings.check` refuses every other value before jax is loaded, so nothing here may
import jax. Other modules do not check these fields again. Words that another module
defines are imported from it.
"""

from blue.data.splits import TIES, WINDOW_POLICIES
from blue.models.tensor_names import MATRICES
from blue.text.templates import TEMPLATES

# --- numbers; each is finite, and not negative

MAY_BE_MINUS_1 = ("mesh.data", "mesh.fsdp", "mesh.tensor", "distributed.process_id")
AT_LEAST = {
    1: (
        "batch_size",
        "max_prompt_tokens",
        "max_completion_tokens",
        "num_steps",
        "num_negatives",
        "max_nonfinite",
        "checkpoint_every",
        "checkpoint_keep",
        "data.min_interactions",
        "data.rolling_targets",
        "data.max_train_targets",
        "data.validation_users",
        "data.test_users",
        "data.eval_negatives",
        "encoder.max_tokens",
        "encoder.batch_size",
        "judge.max_prompt_tokens",
        "judge.max_option_tokens",
        "train_encoder.num_steps",
        "train_encoder.query_tokens",
        "train_encoder.item_tokens",
        "warm_start.num_steps",
        "warm_start.batch_size",
        "warm_start.choice_batch_size",
        "warm_start.targets",
        "warm_start.profile_items",
        "evaluate.bootstrap",
        "evaluate.batch_size",
        "write_profiles.batch_size",
        "plan.num_items",
        "log.every",
        "log.samples_every",
        "alarms.window",
        "alarms.patience",
        "alarms.coarse",
        "distributed.heartbeat_s",
        "distributed.start_timeout_s",
    ),
    2: (  # a comparison needs two
        "group_size",
        "rewards.choice.num_options",
        "train_encoder.batch_size",
    ),
}
ABOVE_ZERO = (
    "adam_eps",
    "profiler.lora.alpha",
    "encoder.lora.alpha",
    "evaluate.ease_l2",
    "grad_clip",
    "sampling_temperature",
    "top_p",
    "evaluate.sampling_temperature",
    "rewards.embedding.similarity_temperature",
    "train_encoder.similarity_temperature",
)
AT_MOST = {
    1: ("top_p", "data.max_bad_fraction"),
    26: ("rewards.choice.num_options",),  # one letter each
    2**32 - 1: ("seed",),
}
BELOW_ONE = ("adam_b1", "adam_b2", "warm_start.adam_b2")

# --- words; for a tuple, each of its elements

DTYPES, SCHEDULES = ("float32", "bfloat16"), ("constant", "cosine")
ENCODERS = ("own", "sentence_transformers", "function")
DRAWN_PROTOCOLS = ("1+99", "1+99-popularity", "1+99-category")
CATALOGUE_PROTOCOLS = ("full", "expected-1+99", "expected-1+99-popularity")
ONE_OF = {
    "platform": ("", "tpu", "gpu", "cpu"),
    "data.window_policy": WINDOW_POLICIES,
    "data.ties": TIES,
    "prompts.style": tuple(TEMPLATES),
    "encoder.kind": ENCODERS,
    "profiler.lora.targets": MATRICES,
    "encoder.lora.targets": MATRICES,
    "evaluate.transfer.kind": ("", *ENCODERS),
    "evaluate.protocols": (*DRAWN_PROTOCOLS, *CATALOGUE_PROTOCOLS),
    "dtype.params": DTYPES,
    "dtype.compute": DTYPES,
    "lr_schedule": SCHEDULES,
    "train_encoder.lr_schedule": SCHEDULES,
    "warm_start.lr_schedule": SCHEDULES,
    "remat": ("", "attention", "layers"),
    "judge.model": ("policy", "reference"),
    "judge.scoring": ("letters", "likelihood"),
    "train_encoder.queries": ("history_profile", "history", "profile", "items"),
    "warm_start.tasks": ("profile", "choice"),
}
NOT_EMPTY = ("evaluate.protocols", "train_encoder.queries", "warm_start.tasks")
