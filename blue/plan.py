"""Stage `plan`: what a run costs on a TPU topology, before anyone rents it.

The TPU compiler works without a TPU. Every program of a training step is compiled at
its real shapes, by the builders that the stages call; shapes come from presets and the
config, so neither weights nor data nor tokenizers are read. Memory is that of the
program as it will run. A compiler counts a loop's body once, so FLOPs, bytes and
collectives come from shallow builds without loops, from which the cost of a layer of
each kind is solved.
"""

import concurrent.futures
import dataclasses
import importlib.util
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue import (
    chips,
    flops,
    hlo,
    models,
    plan_report,
    programs,
    session,
    sources,
    train_profiler,
    watchdog,
)
from blue.errors import UserError
from blue.models import hf, lora
from blue.models.decoder import DecoderConfig
from blue.programs import Program
from blue.sharding import make_mesh

logger = logging.getLogger("blue")
GIB = 2**30
END, PAD = (1,), 0  # stand in for a tokenizer's ids: no shape depends on them


class Part(NamedTuple):
    """One program of a plan."""

    build: Callable[..., Program]  # (cfg, micro-batches) -> it; () where cfg is None
    cfg: DecoderConfig | None  # of the layers in it; None: none, or none in a loop
    formula: float  # FLOPs of one call, the whole machine's
    uses: tuple[str, ...]  # resident arrays among its arguments
    phase: str  # of the profiler's stage; empty: of another
    calls: int  # a training step
    microbatches: int = 1


class Cost(NamedTuple):
    """Of one call of a program, on one chip."""

    flops: float
    bytes: float
    collectives: dict[str, dict[str, float]]


def run(config: ConfigDict, workdir: str) -> None:
    """Writes plan.json and plan.md for `config.plan.topology`."""
    chip, devices = topology(config.plan.topology)
    mesh = make_mesh(
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=devices
    )
    train_profiler.check(config, mesh)
    # an executable for another machine is of no use in the cache of this one
    jax.config.update("jax_enable_compilation_cache", False)
    effort = -1.0 if config.plan.quick else 0.0
    jax.config.update("jax_exec_time_optimization_effort", effort)
    profiler, encoder = (read_config(config, role) for role in ("profiler", "encoder"))
    with programs.described():
        plan = make_plan(config, mesh, chip, profiler, encoder)
    plan = {"topology": config.plan.topology} | plan
    directory = epath.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    (directory / "plan.md").write_text(plan_report.render(plan))
    misfits = [name for name, p in plan["programs"].items() if not p["fits"]]
    verdict = f"does not fit: {', '.join(misfits)}" if misfits else "every program fits"
    logger.info("%s: %s; see %s", config.plan.topology, verdict, directory / "plan.md")


def topology(name: str) -> tuple[chips.Chip, Sequence[Any]]:
    """The chip and the devices of a topology such as v6e:8x8, none of them attached."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "stage plan needs the TPU compiler: install the extra `tpu` "
            "(pip install -e '.[tpu]')"
        )
    kind = name.partition(":")[0]
    known = [chip for chip in chips.BY_NAME if chip.startswith("v")]
    if kind not in known:
        raise UserError(
            f"plan.topology={name}: {kind!r} is not known; write one of "
            f"{', '.join(known)} and its shape, such as v6e:8x8"
        )
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # the compiler's own, of several types
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"plan.topology={name}: {reason}") from None
    return chips.BY_NAME[kind], found.devices


def read_config(config: ConfigDict, role: str) -> DecoderConfig:
    """The role's model: of its checkpoint if that is a directory, else the preset's."""
    section = config[role]
    if section.checkpoint and epath.Path(section.checkpoint).is_dir():
        return hf.read_config(section.checkpoint)
    if section.checkpoint:
        logger.info(
            "%s.checkpoint=%s is no directory here: planned with preset %s",
            role, section.checkpoint, section.preset,
        )  # fmt: skip
    return models.preset(section.preset)


def make_plan(
    config: ConfigDict,
    mesh: Mesh,
    chip: chips.Chip,
    profiler: DecoderConfig,
    encoder: DecoderConfig,
) -> dict[str, Any]:
    """plan.json, but for the topology's name."""
    parts = make_parts(config, mesh, profiler, encoder)
    resident = make_resident(config, mesh, profiler, encoder)
    compiled = compile_all(parts)
    plan: dict[str, Any] = {
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "hbm_gib_per_chip": chip.hbm_bytes / GIB,
        "quick": config.plan.quick,
        "resident_gib": resident | {"total": sum(resident.values())},
        "programs": {},
    }
    for name, part in parts.items():
        others = [v for key, v in resident.items() if key not in part.uses]
        beside = sum(others) if part.phase else 0.0  # another stage has none of them
        plan["programs"][name] = describe(
            name, part, compiled[name], beside, chip, chips_count=mesh.size
        )
    plan["step"] = make_step(plan["programs"], parts, config)
    plan["advice"] = advice(plan["programs"], config, mesh)
    return plan


# --- the programs of a run


def make_parts(
    config: ConfigDict, mesh: Mesh, profiler: DecoderConfig, encoder: DecoderConfig
) -> dict[str, Part]:
    """Every program of a GRPO step and of the encoder's stage, in their order.

    Ranking the whole catalogue is no program: the host does it (protocols.py).
    """
    B, G = config.batch_size, config.group_size
    P, C = max(config.prompt_buckets), config.max_completion_tokens
    dtypes = {"params_dtype": config.dtype.params, "dtype": config.dtype.compute}
    policy = dataclasses.replace(profiler, lora=sources.fresh_adapters(config.profiler))
    trained = dataclasses.replace(encoder, lora=sources.fresh_adapters(config.encoder))
    prompts = {"batch_size": B, "prompt_tokens": P}
    group = prompts | {
        "group_size": G,
        "max_tokens": C,
        "temperature": config.sampling_temperature,
    }
    micro = config.microbatch_size or B
    schedule, optimizer = session.optimizer_of(config, config, b2=config.adam_b2)
    chunk = programs.head_chunk(profiler, micro * G, mesh)

    def relayout(cfg: DecoderConfig) -> Program:
        return programs.make_relayout(cfg, mesh, **dtypes)

    def prefill(cfg: DecoderConfig) -> Program:
        return programs.make_prefill(cfg, mesh, dtype=config.dtype.compute, **prompts)

    def decode(cfg: DecoderConfig) -> Program:
        return programs.make_decode(
            cfg, mesh, top_k=config.top_k, top_p=config.top_p, end_ids=END, pad_id=PAD,
            dtype=config.dtype.compute, **group,
        )  # fmt: skip

    def reference(cfg: DecoderConfig) -> Program:
        return programs.make_completion_logprobs(cfg, mesh, **dtypes, **group)

    def update(cfg: DecoderConfig, microbatches: int = B // micro) -> Program:
        sizes = group | {"batch_size": micro * microbatches}
        return programs.make_update(
            cfg, mesh, optimizer, schedule, microbatch_size=micro,
            clip_eps=config.clip_eps, kl_coef=config.kl_coef, remat=config.remat,
            **dtypes, **sizes,
        )  # fmt: skip

    parts = {
        "relayout": Part(
            lambda: relayout(policy), None, 0.0, ("profiler",), "rollout", 1
        ),
        "prefill": Part(
            prefill, profiler, flops.prefill(profiler, B, P),
            ("decode_copy",), "rollout", 1,
        ),
        "decode_step": Part(
            lambda: decode(profiler), None, flops.decode_step(profiler, B, G, P, C),
            ("decode_copy",), "rollout", C,
        ),
        "reference": Part(
            reference, profiler, flops.reference(profiler, B, G, P, C, chunk=chunk),
            ("reference",), "reference", 1,
        ),
        "update": Part(
            update, policy,
            flops.update(policy, B, G, P, C, remat=config.remat, chunk=chunk),
            ("profiler", "optimizer"), "update", 1, B // micro,
        ),
    }  # fmt: skip
    if config.rewards.choice.scoring == "letters":
        parts["choice"] = _choice(config, mesh, profiler)
    if config.encoder.kind == "own":
        parts |= _encoder_parts(config, mesh, encoder, trained)
    return parts


def _choice(config: ConfigDict, mesh: Mesh, cfg: DecoderConfig) -> Part:
    choice = config.rewards.choice
    rows = config.batch_size * (config.group_size + 1)

    def build(cfg: DecoderConfig) -> Program:
        return programs.make_letter_logits(
            cfg, mesh, batch_size=rows, prompt_tokens=choice.max_prompt_tokens,
            letter_ids=tuple(range(choice.num_options)),
            params_dtype=config.dtype.params, dtype=config.dtype.compute,
        )  # fmt: skip

    work = flops.choice(cfg, rows, choice.max_prompt_tokens, choice.num_options)
    reads = "profiler" if choice.reader == "policy" else "reference"
    return Part(build, cfg, work, (reads,), "choice", 1)


def _encoder_parts(
    config: ConfigDict, mesh: Mesh, cfg: DecoderConfig, trained: DecoderConfig
) -> dict[str, Part]:
    size, buckets = config.encoder.batch_size, sources.encoder_buckets(config)
    stage = config.train_encoder
    profiles = 2 * config.batch_size * config.group_size  # both views
    schedule, optimizer = session.optimizer_of(config, stage, b2=config.adam_b2)
    dtypes = {"params_dtype": config.dtype.params, "dtype": config.dtype.compute}

    def embed(tokens: int) -> Callable[[DecoderConfig], Program]:
        return lambda cfg: programs.make_embed(
            cfg, mesh, batch_size=size, tokens=tokens, **dtypes
        )

    def update(cfg: DecoderConfig) -> Program:
        return programs.make_encoder_update(
            cfg, mesh, optimizer, schedule, batch_size=stage.batch_size,
            query_tokens=stage.query_tokens, item_tokens=stage.item_tokens,
            similarity_temperature=stage.similarity_temperature, remat=config.remat,
            **dtypes,
        )  # fmt: skip

    short = min(b for b in buckets if b >= min(stage.item_tokens, buckets[-1]))
    return {
        "encode": Part(
            embed(buckets[-1]), cfg, flops.encode(cfg, size, buckets[-1]),
            ("encoder",), "encode", math.ceil(profiles / size),
        ),
        "encode_items": Part(
            embed(short), cfg, flops.encode(cfg, size, short),
            ("encoder",), "items", 0,
        ),
        "encoder_update": Part(
            update, trained,
            flops.encoder_update(
                trained, stage.batch_size, stage.query_tokens, stage.item_tokens,
                remat=config.remat,
            ),
            (), "", 0,
        ),
    }  # fmt: skip


def make_resident(
    config: ConfigDict, mesh: Mesh, profiler: DecoderConfig, encoder: DecoderConfig
) -> dict[str, float]:
    """GiB a chip of what lies there through the whole stage.

    With adapters the profiler shares its matrices with the reference. The item table is
    counted as if it were spread over the chips; today it stays in host memory.
    """
    params = programs.abstract_params(profiler, mesh, config.dtype.params)
    policy = dataclasses.replace(profiler, lora=sources.fresh_adapters(config.profiler))
    trained = lora.split(programs.abstract_params(policy, mesh, config.dtype.params))[1]
    _, optimizer = session.optimizer_of(config, config, b2=config.adam_b2)
    state = programs.abstract_state(trained, optimizer, mesh)
    copy = programs.abstract_decode_params(params, mesh, config.dtype.compute)
    texts = programs.abstract_params(encoder, mesh, config.dtype.params)
    own = config.encoder.kind == "own"
    return {
        "profiler": gib(trained),
        "optimizer": gib(state) - gib(trained),
        "reference": gib(params),
        "decode_copy": gib(copy),
        "encoder": gib(texts) if own else 0.0,
        "item_table": config.plan.num_items * encoder.width * 4 / mesh.size / GIB,
    }


def gib(tree: Any) -> float:
    """GiB that abstract arrays take on one chip."""
    part = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(part(leaf) for leaf in jax.tree.leaves(tree)) / GIB


# --- compiling


def depths(cfg: DecoderConfig) -> list[int]:
    """Numbers of layers of the shallow builds: enough to tell the kinds apart."""
    period = len(cfg.pattern)
    return [1, 2] if len(set(cfg.pattern)) == 1 else [1, 2, period]


def combine(cfg: DecoderConfig, values: Sequence[float]) -> float:
    """The value at the real depth, from those at `depths`: linear in the layers."""
    kinds = sorted(set(cfg.pattern))
    count = lambda depth: [sum(cfg.kind(n) == k for n in range(depth)) for k in kinds]
    system = np.array([[1.0, *count(depth)] for depth in depths(cfg)])
    solved = np.linalg.solve(system, np.asarray(values))
    return float(np.array([1.0, *count(cfg.num_layers)]) @ solved)


def builds(part: Part) -> dict[tuple, Callable[[], Program]]:
    """The programs to compile for a part: as it is, and the shallow ones."""
    if part.cfg is None:
        return {("real",): part.build}
    cfg = part.cfg
    found: dict[tuple, Callable[[], Program]] = {("real",): lambda: part.build(cfg)}
    for depth in depths(cfg):
        shallow = dataclasses.replace(cfg, num_layers=depth, unroll=True)
        if part.microbatches == 1:
            found[depth, 1] = lambda shallow=shallow: part.build(shallow)
            continue
        for count in (1, 2):
            found[depth, count] = lambda shallow=shallow, count=count: part.build(
                shallow, count
            )
    return found


class Compiled(NamedTuple):
    """What is known of a part when all of its builds are compiled."""

    memory: Any  # CompiledMemoryStats; None: it does not fit
    message: str  # of the compiler where it does not
    largest: list[dict[str, Any]]
    cost: Cost


def compile_all(parts: Mapping[str, Part]) -> dict[str, Compiled]:
    """Compiles side by side, tells the time left."""
    jobs = {(n, key): b for n, part in parts.items() for key, b in builds(part).items()}
    started, done, found = time.monotonic(), 0, {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        waiting = {pool.submit(_compile, build): job for job, build in jobs.items()}
        for future in concurrent.futures.as_completed(waiting):
            job = waiting[future]
            found[job], done = future.result(), done + 1
            watchdog.beat()
            seconds = time.monotonic() - started
            what = job[0] if job[1] == ("real",) else f"{job[0]}, {job[1][0]} layers"
            left = seconds / done * (len(jobs) - done)
            logger.info(
                "compiled %d/%d: %s; %.0f s left", done, len(jobs), what, left
            )
    return {name: _gather(part, name, found) for name, part in parts.items()}


class _Build(NamedTuple):
    memory: Any
    message: str
    largest: list[dict[str, Any]]
    cost: Cost | None


def _compile(build: Callable[[], Program]) -> _Build:
    try:
        compiled = build().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _Build(None, str(error), largest_of_message(str(error)), None)
    text = compiled.as_text()
    counted = compiled.cost_analysis()
    work = (counted.get(key, 0.0) for key in ("flops", "bytes accessed"))
    cost = Cost(*work, hlo.collectives(text))
    largest = [
        {"name": f"{b.name} {b.shape}".strip(), "gib": b.bytes / GIB}
        for b in hlo.biggest_buffers(text, 5)
    ]
    return _Build(compiled.memory_analysis(), "", largest, cost)


def _gather(part: Part, name: str, found: Mapping[tuple, _Build]) -> Compiled:
    real = found[name, ("real",)]
    if part.cfg is None:
        cost = real.cost or Cost(math.nan, math.nan, {})
    else:
        cost = _solve(part, lambda *key: found[name, key].cost)
    return Compiled(real.memory, real.message, real.largest, cost)


def _solve(part: Part, cost_of: Callable[..., Cost | None]) -> Cost:
    """The cost at the real depth and number of micro-batches."""
    cfg, n = part.cfg, part.microbatches
    assert cfg is not None
    table = {
        (depth, count): cost_of(depth, count)
        for depth in depths(cfg)
        for count in ((1,) if n == 1 else (1, 2))
    }
    if any(cost is None for cost in table.values()):  # even two layers do not fit
        return Cost(math.nan, math.nan, {})

    def at(read: Callable[[Any], float]) -> float:
        values = []
        for depth in depths(cfg):
            one = read(table[depth, 1])
            more = read(table[depth, 2]) - one if n > 1 else 0.0
            values.append(one + (n - 1) * more)
        return max(0.0, combine(cfg, values))

    kinds = sorted({kind for cost in table.values() if cost for kind in cost[2]})
    empty = {"count": 0, "bytes": 0}
    collectives = {
        kind: {
            field: round(at(lambda c: c[2].get(kind, empty)[field]))  # noqa: B023
            for field in ("count", "bytes")
        }
        for kind in kinds
    }
    return Cost(at(lambda c: c[0]), at(lambda c: c[1]), collectives)


def largest_of_message(message: str) -> list[dict[str, Any]]:
    """The largest arrays that the compiler names when a program does not fit."""
    units = {"B": 1 / GIB, "K": 2**-20, "M": 2**-10, "G": 1.0}
    found = []
    for block in re.split(r"\n\s*\d+\. Size: ", message)[1:6]:
        size = re.match(r"([\d.]+)([BKMG])", block)
        shape = re.search(r"Shape: (\S+)", block)
        name = re.search(r'op_name="([^"]*)"', block)
        if size:
            what = " ".join(m[1] for m in (name, shape) if m)
            found.append({"name": what, "gib": float(size[1]) * units[size[2]]})
    return found


# --- what it means


def describe(
    name: str,
    part: Part,
    compiled: Compiled,
    beside: float,
    chip: chips.Chip,
    *,
    chips_count: int,
) -> dict[str, Any]:
    """One program's entry of plan.json. `beside`: GiB of resident arrays that it does
    not use. Work is that of a training step; of a decode step, of one token for every
    row; of what no step calls, of one call."""
    calls = 1 if name == "decode_step" else max(1, part.calls)
    cost, memory = compiled.cost, compiled.memory
    moved = {
        kind: {field: value * calls for field, value in row.items()}
        for kind, row in cost.collectives.items()
    }
    work = (cost.flops * calls, cost.bytes * calls, hlo.network_bytes(moved))
    roof = chips.roofline(*work, chip)
    entry: dict[str, Any] = {
        "flops_per_chip": work[0],
        "formula_flops_per_chip": part.formula * calls / chips_count,
        "bytes_per_chip": work[1],
        "collectives": moved,
        "roofline_s": roof._asdict(),
        "bound": roof.bound,
        "times_a_step": part.calls,
        "largest": compiled.largest,
    }
    if memory is None:
        used = re.search(r"Used ([\d.]+)G of", compiled.message)
        total = float(used[1]) if used else math.inf
        return entry | {"hbm_gib": {"total": total}, "fits": False}
    hbm = {
        "arguments": memory.argument_size_in_bytes / GIB,
        "temporaries": memory.temp_size_in_bytes / GIB,
        "output": (memory.output_size_in_bytes - memory.alias_size_in_bytes) / GIB,
    }
    hbm["total"] = sum(hbm.values())
    fits = hbm["total"] + beside <= chip.hbm_bytes / GIB
    return entry | {"hbm_gib": hbm | {"beside": beside}, "fits": bool(fits)}


def make_step(
    found: Mapping[str, Any], parts: Mapping[str, Part], config: ConfigDict
) -> dict[str, Any]:
    """The roofline's seconds of each phase of a step, one after the other, with every
    profile as long as it may be."""
    phases: dict[str, float] = {}
    for name, part in parts.items():
        if not part.calls:
            continue
        calls = part.calls if name == "decode_step" else 1
        seconds = calls * max(found[name]["roofline_s"].values())
        phases[part.phase] = phases.get(part.phase, 0.0) + seconds
    seconds = sum(phases.values())
    tokens = config.batch_size * config.group_size * config.max_completion_tokens
    return {"seconds": seconds, "phases": phases, "tokens_per_s": tokens / seconds}


def advice(found: Mapping[str, Any], config: ConfigDict, mesh: Mesh) -> list[str]:
    """Settings that would help the programs that do not fit."""
    bad = [name for name, program in found.items() if not program["fits"]]
    lines = []
    if {"update", "encoder_update"} & set(bad) and not config.remat:
        lines.append("remat=True computes layers again instead of keeping them")
    if "update" in bad:
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        micro = config.microbatch_size or config.batch_size
        smaller = [n for n in range(shards, micro, shards) if config.batch_size % n == 0]
        if smaller:
            lines.append(
                f"microbatch_size={smaller[-1]} (now {micro} users at a time; "
                f"{smaller[0]} needs least)"
            )
    if bad and mesh.shape["tensor"] == 1:
        lines.append(
            "mesh.tensor=2 splits heads, mlp and the vocabulary, and the decode copy"
        )
    if {"update", "reference", "decode_step"} & set(bad):
        lines.append(
            f"max_completion_tokens below {config.max_completion_tokens}, or "
            f"group_size below {config.group_size}"
        )
    if {"encode", "encode_items"} & set(bad):
        lines.append(f"encoder.batch_size below {config.encoder.batch_size}")
    if "choice" in bad:
        now = config.rewards.choice.max_prompt_tokens
        lines.append(f"rewards.choice.max_prompt_tokens below {now}")
    if "encoder_update" in bad:
        lines.append(f"train_encoder.batch_size below {config.train_encoder.batch_size}")
    return [*lines, "more chips: a larger plan.topology"] if bad else []
