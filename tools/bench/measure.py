"""What every benchmark here shares: sizes, pinning, clocks, and the line it prints.

Standard library only: peers run in environments of their own. A benchmark pins itself
to its cores before jax or torch starts its threads. It does the work once to warm up or
compile, then `--reps` times, and prints one JSON line. Seconds of the processor (cpu)
are what to compare on a machine that others use; wall seconds are told beside them.
"""

import argparse
import importlib.metadata
import json
import math
import os
import random
import resource
import statistics
import time
from collections.abc import Sequence
from typing import Any

SIZES: dict[str, dict[str, int]] = {  # Gemma 3, five local layers to a global one
    "mini": {
        "layers": 2, "width": 64, "heads": 4, "kv_heads": 1, "head_size": 16,
        "mlp_width": 128, "vocab": 512, "window": 16,
    },
    "tiny": {
        "layers": 8, "width": 256, "heads": 4, "kv_heads": 1, "head_size": 64,
        "mlp_width": 1024, "vocab": 8192, "window": 128,
    },
    "small": {
        "layers": 12, "width": 512, "heads": 4, "kv_heads": 1, "head_size": 128,
        "mlp_width": 2048, "vocab": 32768, "window": 128,
    },
}  # fmt: skip
ENCODERS: dict[str, dict[str, int]] = {  # Qwen3-Embedding: last token, unit length
    "mini": {
        "layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "head_size": 16,
        "mlp_width": 128, "vocab": 512,
    },
    "tiny": {
        "layers": 8, "width": 256, "heads": 4, "kv_heads": 2, "head_size": 64,
        "mlp_width": 1024, "vocab": 8192,
    },
}  # fmt: skip
PAD, END, START, UNKNOWN = range(4)  # ids of the tokenizers; others spell themselves
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")

# The sizes of each work, with their defaults: the same for BLUE and its peers.
GENERATE = {
    "users": (8, "prompts"),
    "g": (8, "completions of each"),
    "prompt": (512, "tokens of a prompt"),
    "new": (64, "tokens of a completion"),
    "reps": (3, "measured calls; one more warms up or compiles"),
}
STEPS = (4, "measured steps; one more warms up or compiles")
GRPO_STEP = {
    "users": (4, "prompts"),
    "g": (8, "completions of each"),
    "prompt": (256, "tokens of a prompt"),
    "new": (64, "tokens of a completion"),
    "steps": STEPS,
}
ENCODE = {
    "n": (256, "texts"),
    "batch": (32, "texts a call of the encoder"),
    "median": (128, "tokens of a text, in the median"),
    "reps": GENERATE["reps"],
}
CONTRASTIVE_STEP = {
    "batch": (64, "pairs of texts"),
    "median": (64, "tokens of a text, in the median"),
    "hi": (256, "tokens of a text, at most"),
    "steps": STEPS,
}
PACKAGES = (
    "jax", "jaxlib", "flax", "torch", "transformers", "trl", "sentence-transformers",
    "google-tunix",
)  # fmt: skip


def parse(
    told: str | None, models: Sequence[str], **numbers: tuple[int, str]
) -> argparse.Namespace:
    """The command line of a benchmark whose text is `told`; pins the process.

    numbers: options of one number each, as (default, meaning).
    """
    parser = argparse.ArgumentParser(
        description=told, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=models, default="tiny", help="of the model (default tiny)"
    )
    for name, (default, meaning) in numbers.items():
        told = f"{meaning} (default {default})"
        parser.add_argument(f"--{name}", type=int, default=default, help=told)
    parser.add_argument(
        "--cpus", default="0", help="cores to stay on, such as 0 or 0,1 (default 0)"
    )
    args = parser.parse_args()
    pin(args.cpus)
    return args


def pin(cpus: str) -> None:
    """Keeps the process and the threads it will start on these cores."""
    cores = {int(core) for core in cpus.split(",")}
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    os.environ["JAX_PLATFORMS"] = "cpu"


class Clock:
    """Seconds of a `with` block, by the wall and of this process's processor time."""

    wall = cpu = 0.0

    def __enter__(self) -> "Clock":
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._began
        self.wall, self.cpu = time.perf_counter() - wall, time.process_time() - cpu


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "med": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


def seconds(name: str, clocks: Sequence[Clock], each: float = 1.0) -> dict[str, Any]:
    """The two figures `NAME_wall_s` and `NAME_cpu_s`, divided by `each`."""
    start = f"{name}_" if name else ""
    return {
        f"{start}wall_s": spread([c.wall / each for c in clocks]),
        f"{start}cpu_s": spread([c.cpu / each for c in clocks]),
    }


def emit(peer: str, bench: str, args: argparse.Namespace, **figures: Any) -> None:
    """Prints the line: what was measured, with versions and peak memory."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {"peer": peer, "bench": bench, **vars(args), **figures}
    print(json.dumps({**line, "peak_rss_mib": round(peak), "versions": versions}))


def generation_figures(
    args: argparse.Namespace,
    whole: Sequence[Clock],
    prefill: Sequence[Clock],
    decode: Sequence[Clock],
    steps: int,
) -> dict[str, Any]:
    """What a generation benchmark tells of its calls; `steps`: decode steps of one."""
    tokens = args.users * args.g * args.new
    return {
        **seconds("", whole),
        **seconds("prefill", prefill),
        "decode_step_wall_ms": spread([1e3 * c.wall / steps for c in decode]),
        "decode_step_cpu_ms": spread([1e3 * c.cpu / steps for c in decode]),
        "tok_per_s": spread([tokens / c.wall for c in whole]),
        "tok_per_cpu_s": spread([tokens / c.cpu for c in whole]),
    }


def texts(
    count: int,
    *,
    vocab: int,
    median: int = 128,
    sigma: float = 0.8,
    least: int = 8,
    most: int = 1024,
    seed: int = 1,
) -> list[str]:
    """Texts of log-normal length, one token a word: the same list for everyone."""
    draw = random.Random(seed)

    def text() -> str:
        length = round(median * math.exp(draw.gauss(0, sigma)))
        length = min(most, max(least, length))
        return " ".join(str(draw.randrange(4, vocab)) for _ in range(length))

    return [text() for _ in range(count)]


def reward(tokens: Sequence[int]) -> float:
    """A made-up reward of a completion: cheap, and different for every one."""
    return float(sum(tokens) % 97)


def word_level(vocab: int) -> Any:
    """A tokenizer in which each word is the number of its id."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*SPECIAL, *(str(i) for i in range(len(SPECIAL), vocab))]
    model = models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend
