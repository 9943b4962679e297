"""Stage `plan`: what a run costs on a TPU topology, before anyone rents it.

The TPU compiler works without a TPU. Every program of a training step is compiled at
its real shapes, as the stages describe it (plan_programs.py). Shapes come from presets
and the config, so neither weights nor data nor tokenizers are read. Memory is what the
compiler reports. Work is counted in the compiled program's text; a loop counts as often
as it runs.
"""

import importlib.util
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.errors import UserError
from blue.hub.directory import read_config as read_model_config
from blue.models import families, flops
from blue.models.decoder import DecoderConfig
from blue.models.params import abstract_params
from blue.runtime import chips, programs
from blue.runtime.hlo.collectives import network_bytes
from blue.runtime.sharding import batch_shards, dividing_fsdp, make_mesh
from blue.sources.role import about_fsdp
from blue.stages import plan_report, step_programs
from blue.stages.plan_compile import GIB, Compiled, Part, compile_all
from blue.stages.plan_programs import make_parts, make_resident
from blue.stages.step_programs import profiler_shapes

logger = logging.getLogger("blue")


def run(config: ConfigDict, workdir: str) -> None:
    """Writes plan.json and plan.md for `config.plan.topology`. Raises `UserError`."""
    chip, devices = topology(config.plan.topology)
    mesh = make_mesh(
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=devices
    )
    step_programs.check_profiler(config, mesh)
    set_up(config)
    profiler, encoder = (read_config(config, role) for role in ("profiler", "encoder"))
    with programs.descriptions_only():
        plan = make_plan(config, mesh, chip, profiler, encoder)
    plan = {"topology": config.plan.topology} | plan
    directory = epath.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    (directory / "plan.md").write_text(plan_report.render(plan))
    misfits = [name for name, p in plan["programs"].items() if not p["fits"]]
    verdict = f"does not fit: {', '.join(misfits)}" if misfits else "every program fits"
    logger.info("%s: %s; see %s", config.plan.topology, verdict, directory / "plan.md")


def set_up(config: ConfigDict) -> None:
    """Sets how this process compiles."""
    # executables for another machine do not belong in this machine's cache
    jax.config.update("jax_enable_compilation_cache", False)
    effort = -1.0 if config.plan.quick else 0.0
    jax.config.update("jax_exec_time_optimization_effort", effort)


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
        return read_model_config(section.checkpoint)
    if section.checkpoint:
        logger.info(
            "%s.checkpoint=%s is no directory here: planned with preset %s",
            role, section.checkpoint, section.preset,
        )  # fmt: skip
    return families.preset(section.preset)


def make_plan(
    config: ConfigDict,
    mesh: Mesh,
    chip: chips.Chip,
    profiler: DecoderConfig,
    encoder: DecoderConfig,
) -> dict[str, Any]:
    """The content of plan.json, except the topology's name."""
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
        beside = sum(others) if part.phase else 0.0  # not of other stages
        plan["programs"][name] = describe(
            part, compiled[name], beside, chip, chips_count=mesh.size
        )
    plan["programs"]["decode_step"]["least_bytes_per_chip"] = least_bytes(
        config, mesh, profiler
    )
    plan["step"] = make_step(plan["programs"], parts, config)
    params = abstract_params(profiler, mesh, config.dtype.params)
    better = dividing_fsdp(params, mesh)
    plan["advice"] = advice(plan["programs"], config, mesh, dividing=better)
    return finite(plan)


def finite(tree: Any) -> Any:
    """Replaces NaN and infinity by None: JSON has neither."""
    if isinstance(tree, Mapping):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    bad = isinstance(tree, float) and not math.isfinite(tree)
    return None if bad else tree


# --- what it means


def describe(
    part: Part,
    compiled: Compiled,
    beside: float,
    chip: chips.Chip,
    *,
    chips_count: int,
) -> dict[str, Any]:
    """One program's entry of plan.json. `beside`: GiB of resident arrays that it does
    not use. Work is counted for a training step. A decode step's is for one token of
    every row. Programs that no step calls are counted for one call."""
    calls = 1 if part.a_turn else max(1, part.calls)
    memory = compiled.memory
    moved = {
        kind: {field: value * calls for field, value in row.items()}
        for kind, row in compiled.collectives.items()
    }
    work = (compiled.flops * calls, compiled.bytes * calls, network_bytes(moved))
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
        used = re.search(r"(?:Used |temporaries \()([\d.]+)G", compiled.message)
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


def least_bytes(config: ConfigDict, mesh: Mesh, cfg: DecoderConfig) -> float:
    """Bytes of a chip's weights and caches, which a decode step must read once."""
    shapes = profiler_shapes(config, max(config.prompt_buckets))
    shapes = shapes._replace(batch=shapes.batch // batch_shards(mesh))
    itemsize = jnp.dtype(config.dtype.compute).itemsize
    whole = flops.decode_bytes(cfg, shapes, itemsize=itemsize)
    return whole / mesh.shape["tensor"]


def make_step(
    found: Mapping[str, Any], parts: Mapping[str, Part], config: ConfigDict
) -> dict[str, Any]:
    """The roofline's seconds of each phase of a step. Phases do not overlap, and every
    profile has the maximum length."""
    phases: dict[str, float] = {}
    for name, part in parts.items():
        if not part.calls:
            continue
        calls = part.calls if part.a_turn else 1
        seconds = calls * max(found[name]["roofline_s"].values())
        phases[part.phase] = phases.get(part.phase, 0.0) + seconds
    seconds = sum(phases.values())
    tokens = config.batch_size * config.group_size * config.max_completion_tokens
    return {"seconds": seconds, "phases": phases, "tokens_per_s": tokens / seconds}


def advice(
    found: Mapping[str, Any], config: ConfigDict, mesh: Mesh, *, dividing: int = 0
) -> list[str]:
    """Settings that would make the programs fit. If only `dividing` devices of fsdp
    divide the profiler's matrices, the advice says so in any case."""
    always = []
    if 0 < dividing < mesh.shape["fsdp"]:
        always.append(about_fsdp(mesh, dividing))
    bad = [name for name, program in found.items() if not program["fits"]]
    lines = []
    if {"update", "encoder_update"} & set(bad) and config.remat != "layers":
        lines.append("remat=layers computes layers again instead of keeping them")
    if "update" in bad:
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        micro = config.microbatch_size or config.batch_size
        smaller = [
            n for n in range(shards, micro, shards) if config.batch_size % n == 0
        ]
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
        now = config.judge.max_prompt_tokens
        lines.append(f"judge.max_prompt_tokens below {now}")
    if "encoder_update" in bad:
        lines.append(
            f"train_encoder.batch_size below {config.train_encoder.batch_size}"
        )
    more = [*lines, "more chips: a larger plan.topology"] if bad else []
    return [*always, *more]
