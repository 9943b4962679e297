"""A step of GRPO on one NVIDIA GPU, beside transformers on the same card.

    python tools/bench/gpu.py [--tiny] [--out=FILE.json] [--users=8 ...]

Random weights of Gemma 3 1B and Qwen3-Embedding 0.6B, made up tokens, bfloat16 over
float32 parameters. Measured, each as the median of --rounds calls after one more:

* the update, and its MFU: the model's FLOPs / time / what the card can do in bfloat16.
  Recomputed layers do not count, and the prompt of a user counts once;
* decode: one token for every row, from the difference of two lengths. Its share of the
  memory bandwidth is bytes / time / what the card can do. The bytes are the weights,
  and the keys and values that a token may see, each read once;
* encoder texts a second; the whole step: copy to the decode layout, sampling,
  reference, both views of every profile, update.

transformers (where torch is installed) does the same: its own Gemma3ForCausalLM, SDPA,
autocast, gradient checkpointing, fused AdamW. It has no shared prompts: each of the G
completions of a user brings the prompt again. Prints one JSON line. Each side runs in a
process of its own, so that it has the whole card.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
SIDES = ("blue", "transformers")
CARDS = {  # dense bfloat16 FLOP/s and bytes/s, from NVIDIA's data sheets
    "NVIDIA H200": (989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA H100 PCIe": (756e12, 2.0e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.039e12),
    "NVIDIA A100-SXM4-40GB": (312e12, 1.555e12),
    "NVIDIA L4": (121e12, 0.3e12),
}
SIZES = {  # option -> full size, --tiny
    "users": (8, 2),
    "group": (8, 2),
    "microbatch": (2, 0),  # users a forward pass of the update; 0: all
    "prompt": (1024, 16),  # tokens
    "completion": (256, 8),
    "texts": (256, 4),  # a call of the encoder
    "text_tokens": (512, 16),
    "rounds": (5, 1),
}


def main() -> None:
    """Measures every side and prints one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a CPU")
    for name, (full, tiny) in SIZES.items():
        told = f"default {full}, --tiny {tiny}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=told)
    parser.add_argument("--peak-flops", type=float, help="of a card not known here")
    parser.add_argument("--peak-bandwidth", type=float, help="likewise, bytes/s")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name, sizes in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, sizes[args.tiny])
    if args.measure:
        measure = measure_blue if args.measure == "blue" else measure_transformers
        print(json.dumps(measure(args)))
        return
    result: dict[str, Any] = {"sizes": {name: getattr(args, name) for name in SIZES}}
    for side in SIDES:
        if side == "transformers" and importlib.util.find_spec("torch") is None:
            result[side] = None
            continue
        command = [sys.executable, *sys.argv, f"--measure={side}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"error: {side} ended with {done.returncode}, see above")
        result[side] = json.loads(done.stdout.splitlines()[-1])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def models(tiny: bool) -> tuple[Any, Any]:
    """Profiler and encoder, as BLUE's configs."""
    from blue.models import gemma3, qwen3

    if tiny:
        return gemma3.tiny_gemma3(), qwen3.tiny_qwen3()
    return gemma3.gemma3_1b(), qwen3.qwen3_embedding_0_6b()


# --- what the work is


def seen(window: int, keys: int) -> int:
    """Keys that a token sees of the `keys` up to itself; window 0: all."""
    return min(keys, window) if window else keys


def update_flops(cfg: Any, users: int, group: int, prompt: int, completion: int) -> int:
    """Of one update, forward and backward, without recomputed layers."""
    D, F, N, K, H = (
        cfg.width,
        cfg.mlp_width,
        cfg.num_heads,
        cfg.num_kv_heads,
        cfg.head_size,
    )
    rows = users * group
    dense = 2 * D * N * H + 2 * D * K * H + 3 * D * F
    forward = 2 * cfg.num_layers * dense * (users * prompt + rows * completion)
    forward += 2 * cfg.vocab_size * D * rows * completion
    for layer in range(cfg.num_layers):
        window = cfg.window if cfg.kind(layer) == "local" else 0
        pairs = users * sum(seen(window, t + 1) for t in range(prompt))
        pairs += rows * sum(seen(window, prompt + t + 1) for t in range(completion))
        forward += 4 * N * H * pairs
    return 3 * forward


def decode_bytes(cfg: Any, users: int, group: int, prompt: int, step: int) -> int:
    """Of bfloat16 that the `step`th token of all rows has to read, once each."""
    from blue.models.decoder import param_count

    numbers = param_count(cfg)
    for layer in range(cfg.num_layers):
        window = cfg.window if cfg.kind(layer) == "local" else 0
        own = seen(window, step)
        shared = seen(window, prompt + step) - own
        numbers += 2 * cfg.num_kv_heads * cfg.head_size * users * (shared + group * own)
    return 2 * numbers


def summary(
    args: argparse.Namespace, device: str, seconds: dict[str, float], **more: Any
) -> dict[str, Any]:
    """Rates and shares of the seconds measured; null where the card is not known."""
    flops, bandwidth = CARDS.get(device, (None, None))
    flops, bandwidth = args.peak_flops or flops, args.peak_bandwidth or bandwidth
    cfg, _ = models(args.tiny)
    half = args.completion // 2
    step_s = (seconds["sample"] - seconds["sample_half"]) / (args.completion - half)
    work = update_flops(cfg, args.users, args.group, args.prompt, args.completion)
    read = decode_bytes(
        cfg, args.users, args.group, args.prompt, (half + args.completion) // 2
    )
    return {
        "device": device,
        **more,
        "seconds": seconds,
        "update_flops": work,
        "update_mfu": work / seconds["update"] / flops if flops else None,
        "decode_step_s": step_s,
        "decode_bytes": read,
        "decode_bandwidth_share": read / step_s / bandwidth if bandwidth else None,
        "texts_per_s": args.texts / seconds["encode"],
        "step_s": seconds["step"],
    }


def median_s(
    call: Callable[[], Any], rounds: int, ready: Callable[[Any], Any]
) -> float:
    """Of `rounds` calls, each waited for with `ready`, after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        ready(call())
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


# --- BLUE


def measure_blue(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the programs that the profiler stage runs."""
    from blue.runtime import xla_flags

    xla_flags.set_for(xla_flags.platform_of(os.environ), os.environ)
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from blue.inference import sampling, scoring
    from blue.inference.packing import RowShapes
    from blue.models import attention
    from blue.models.params import abstract_params, make_init
    from blue.runtime import programs
    from blue.runtime.shapes import Precision, Sampling, Shapes
    from blue.runtime.sharding import AXES, by_batch, put
    from blue.training import optimizers
    from blue.training.optimizers import make_optimizer, make_schedule
    from blue.training.policy import Objective, UpdateBatch, make_update

    cfg, encoder_cfg = models(args.tiny)
    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    B, G, P, C = args.users, args.group, args.prompt, args.completion
    precision, sizes = Precision("float32", "bfloat16"), Shapes(B, P, G, C)
    rate = make_schedule(1e-6, kind="constant", warmup_steps=0, num_steps=100)
    adam = make_optimizer(rate, b1=0.9, b2=0.95, eps=1e-8, grad_clip=1.0)
    relayout = sampling.make_relayout(cfg, mesh, precision)
    draws = Sampling(1.0, top_k=0, top_p=1.0, end_ids=(-1,), pad_id=0)
    sample = {
        length: sampling.make_sample(
            cfg, mesh, sizes._replace(completion=length), draws, "bfloat16"
        )
        for length in (C // 2, C)
    }
    reference = scoring.make_completion_logprobs(
        cfg, mesh, sizes, precision, temperature=1.0
    )
    update = make_update(
        cfg, mesh, adam, rate, sizes, precision._replace(remat="layers"),
        Objective(temperature=1.0, clip_eps=0.2, kl_coef=0.01), args.microbatch,
    )  # fmt: skip
    embed = scoring.make_embed(
        encoder_cfg, mesh, RowShapes(args.texts, args.text_tokens, 1),
        Precision("bfloat16", "bfloat16"),
    )  # fmt: skip
    params = make_init(cfg, mesh, "float32")(np.uint32(0))
    encoder = make_init(encoder_cfg, mesh, "bfloat16")(np.uint32(1))
    shapes = abstract_params(cfg, mesh, "float32")
    state = optimizers.make_init_state(shapes, adam, mesh)(params)

    rng = np.random.default_rng(0)
    tokens = lambda *shape: rng.integers(0, cfg.vocab_size, shape, np.int32)
    whole = lambda *shape: np.ones(shape, bool)
    rows = by_batch(mesh)
    prompt, mask = put((tokens(B, P), whole(B, P)), rows)
    ids = put(np.arange(B, dtype=np.int32), rows)
    seeds = np.array([0, 0, 0], np.uint32)
    shape = (args.texts, args.text_tokens)
    words = rng.integers(0, encoder_cfg.vocab_size, shape, np.int32)
    one, last = np.zeros(shape, np.int32), np.int32(args.text_tokens - 1)
    order = np.broadcast_to(np.arange(last + 1, dtype=np.int32), shape)
    texts = (words, one, one, order, np.full((args.texts, 1), last))  # a text a row
    texts = put(texts, rows)
    advantages = put(rng.normal(size=(B, G)).astype(np.float32), rows)
    teaching = put(whole(B, G), rows)
    programs.wait()
    calls = -(-2 * B * G // args.texts)  # of the encoder, for both views

    decode = relayout(params)
    rollout = sample[C](decode, prompt, mask, ids, seeds)
    ref = reference(params, prompt, mask, rollout.tokens)

    def learn(rollout: Any, ref: Any) -> Any:
        nonlocal state
        batch = UpdateBatch(
            prompt, mask, rollout.tokens, rollout.mask, rollout.logprobs, ref,
            advantages, teaching,
        )  # fmt: skip
        state, info = update(state, {}, batch)
        return info

    def step() -> Any:
        new = sample[C](relayout(state.params), prompt, mask, ids, seeds)
        ref = reference(params, prompt, mask, new.tokens)
        vectors = [embed(encoder, *texts) for _ in range(calls)]
        return vectors, learn(new, ref)

    timed = {
        "relayout": lambda: relayout(params),
        "sample_half": lambda: sample[C // 2](decode, prompt, mask, ids, seeds),
        "sample": lambda: sample[C](decode, prompt, mask, ids, seeds),
        "reference": lambda: reference(params, prompt, mask, rollout.tokens),
        "encode": lambda: embed(encoder, *texts),
        "update": lambda: learn(rollout, ref),
        "step": step,
    }
    seconds = {
        name: median_s(call, args.rounds, jax.block_until_ready)
        for name, call in timed.items()
    }
    kernel = attention.implementation_here(
        dtype="bfloat16", head_size=cfg.head_size, query_tokens=P, key_tokens=P
    )
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return summary(
        args,
        device.device_kind,
        seconds,
        jax=jax.__version__,
        attention=kernel or "xla",
        peak_memory_bytes=memory,
        compile_s=programs.compiles["seconds"],
    )


# --- transformers


def torch_models(args: argparse.Namespace) -> tuple[Any, Any]:
    """The same two models, of transformers."""
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        Qwen3Config,
        Qwen3Model,
    )

    def fields(cfg: Any) -> dict[str, Any]:
        return {
            "vocab_size": cfg.vocab_size,
            "hidden_size": cfg.width,
            "intermediate_size": cfg.mlp_width,
            "num_hidden_layers": cfg.num_layers,
            "num_attention_heads": cfg.num_heads,
            "num_key_value_heads": cfg.num_kv_heads,
            "head_dim": cfg.head_size,
            "attn_implementation": "sdpa",
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 0,
        }

    cfg, encoder_cfg = models(args.tiny)
    profiler = Gemma3TextConfig(
        sliding_window=cfg.window,
        query_pre_attn_scalar=round(cfg.scale() ** -2),
        **fields(cfg),
    )
    encoder = Qwen3Config(**fields(encoder_cfg))
    return Gemma3ForCausalLM(profiler), Qwen3Model(encoder)


def measure_transformers(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the same work; the group's rows repeat the prompt."""
    import torch
    import transformers

    on_card = torch.cuda.is_available()
    device = torch.device("cuda" if on_card else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    cfg, encoder_cfg = models(args.tiny)
    model, encoder = torch_models(args)
    model, encoder = model.to(device), encoder.to(device, torch.bfloat16).eval()
    frozen = torch_models(args)[0].to(device, torch.bfloat16).eval()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    adam = torch.optim.AdamW(
        model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=on_card
    )
    B, G, P, C = args.users, args.group, args.prompt, args.completion
    draw = lambda high, *shape: torch.randint(0, high, shape, device=device)
    prompt = draw(cfg.vocab_size, B, P)
    texts = draw(encoder_cfg.vocab_size, args.texts, args.text_tokens)
    advantages = torch.randn(B * G, 1, device=device)
    rows = (args.microbatch or B) * G
    sampler = torch_models(args)[0].to(device, torch.bfloat16).eval()

    def relayout() -> None:
        with torch.no_grad():
            for to, of in zip(sampler.parameters(), model.parameters(), strict=True):
                to.copy_(of)

    @torch.no_grad()
    def sample(length: int) -> Any:
        return sampler.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=True, top_k=0,
            max_new_tokens=length, min_new_tokens=length, num_return_sequences=G,
        )  # fmt: skip

    def logprobs(model: Any, tokens: Any) -> Any:
        logits = model(tokens[:, :-1], logits_to_keep=C, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), tokens[:, -C:].flatten(), reduction="none"
        )
        return -losses.view(len(tokens), C)

    @torch.no_grad()
    def reference(tokens: Any) -> Any:
        return torch.cat([logprobs(frozen, part) for part in tokens.split(rows)])

    def update(tokens: Any, ref: Any) -> Any:
        parts = zip(
            tokens.split(rows), ref.split(rows), advantages.split(rows), strict=True
        )
        for tokens_, ref_, advantages_ in parts:
            with torch.autocast(device.type, torch.bfloat16):
                new = logprobs(model, tokens_)
            ratio, gap = torch.exp(new - new.detach()), ref_ - new
            kl = torch.exp(gap) - gap - 1
            (0.01 * kl - ratio * advantages_).sum().div(B * G * C).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def encode() -> Any:
        hidden = encoder(texts, use_cache=False).last_hidden_state[:, -1]
        return torch.nn.functional.normalize(hidden.float(), dim=-1)

    calls = -(-2 * B * G // args.texts)

    def step() -> None:
        relayout()
        tokens = sample(C)
        ref = reference(tokens)
        for _ in range(calls):
            encode()
        update(tokens, ref)

    tokens = sample(C)
    ref = reference(tokens)
    timed = {
        "relayout": relayout,
        "sample_half": lambda: sample(C // 2),
        "sample": lambda: sample(C),
        "reference": lambda: reference(tokens),
        "encode": encode,
        "update": lambda: update(tokens, ref),
        "step": step,
    }
    wait = lambda _: torch.cuda.synchronize() if on_card else None
    seconds = {name: median_s(call, args.rounds, wait) for name, call in timed.items()}
    return summary(
        args,
        torch.cuda.get_device_name() if on_card else "cpu",
        seconds,
        torch=torch.__version__,
        transformers=transformers.__version__,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if on_card else None,
    )


if __name__ == "__main__":
    main()
