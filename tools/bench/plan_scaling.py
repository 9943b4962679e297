"""Plans at full size: what fits the paper's chips, and how a step scales with chips.

    python tools/bench/plan_scaling.py fits|scaling|update|head|tables [--out=DIR]

`fits`: the paper's two profilers on v6e:8x8 and v6e:2x4, at a completion limit of 2048;
Gemma 3 12B as a frozen judge on v6e:8x8, tensor-parallel. `scaling`: one user a
chip on 8, 16, 64 and 256 chips, completions of 512. `update`: reference pass and update
alone, by completion length and by what the backward pass computes again. `head`: its
log-probabilities and their gradient alone. Writes
NAME.json and, for scaling, a plot; needs the extra `tpu`, no TPU; about 10 minutes each
on two cores. `tables` prints what experiments/scaling/README.md shows of the files.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
CHIPS = {"v6e:2x4": 8, "v6e:4x4": 16, "v6e:8x8": 64, "v6e:16x16": 256}
FITS = {  # name: config, topology, changed fields
    "gemma3_1b v6e:8x8": ("profiler_amazon_clothing", "v6e:8x8", {}),
    "qwen3_1_7b v6e:8x8": ("profiler_amazon_clothing_qwen3", "v6e:8x8", {}),
    "gemma3_1b v6e:2x4": (
        "profiler_amazon_clothing", "v6e:2x4", {"microbatch_size": 8}
    ),
    "qwen3_1_7b v6e:2x4": (
        "profiler_amazon_clothing_qwen3", "v6e:2x4", {"microbatch_size": 8}
    ),
}  # fmt: skip
PASSES = (("attention", 256), ("attention", 512), ("layers", 512), ("layers", 2048))
JUDGE = {"preset": "gemma3_12b", "topology": "v6e:8x8", "mesh": (1, 8, 8)}


def planned(name: str, topology: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The plan of a config with other values."""
    import importlib

    from blue.models import families
    from blue.runtime import programs
    from blue.runtime.sharding import make_mesh
    from blue.stages import plan

    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(fields)
    plan.set_up(config)
    chip, devices = plan.topology(topology)
    mesh = make_mesh(**config.mesh, devices=devices)
    presets = (config.profiler.preset, config.encoder.preset)
    with programs.descriptions_only():
        found = plan.make_plan(config, mesh, chip, *map(families.preset, presets))
    changed = {"config": name} | fields
    return {"topology": topology, "changed": changed} | found


def passes(fields: dict[str, Any]) -> dict[str, Any]:
    """Reference pass and update of the paper's run with other values, on v6e:8x8."""
    from blue.models import families
    from blue.runtime import programs
    from blue.runtime.sharding import make_mesh
    from blue.stages import plan, plan_programs
    from blue.stages.plan_compile import compile_all
    from configs import profiler_amazon_clothing

    config = profiler_amazon_clothing.get_config()
    config.update_from_flattened_dict(fields)
    plan.set_up(config)
    chip, devices = plan.topology("v6e:8x8")
    mesh = make_mesh(1, -1, 1, devices=devices)
    presets = (config.profiler.preset, config.encoder.preset)
    with programs.descriptions_only():
        parts = plan_programs.make_parts(config, mesh, *map(families.preset, presets))
        parts = {name: parts[name] for name in ("reference", "update")}
        compiled = compile_all(parts)
    entries = {
        name: plan.describe(part, compiled[name], 0.0, chip, chips_count=mesh.size)
        for name, part in parts.items()
    }
    total = sum(entry["flops_per_chip"] for entry in entries.values())
    return {"changed": fields, "flops_per_chip": total, "programs": entries}


def head_alone(tokens: int) -> dict[str, float]:
    """GiB a chip of the chunked head and its gradient for completions so long, on
    v6e:8x8 with the whole table on each chip."""
    import functools

    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from blue.inference import scoring
    from blue.models import families
    from blue.models.logprobs import token_logprobs
    from blue.runtime.sharding import BATCH, make_mesh
    from blue.stages import plan, plan_compile
    from configs import profiler_amazon_clothing

    config = profiler_amazon_clothing.get_config()
    plan.set_up(config)
    _, devices = plan.topology("v6e:8x8")
    mesh = make_mesh(1, -1, 1, devices=devices)
    cfg = families.preset(config.profiler.preset)
    B, G, whole = config.batch_size, config.group_size, PartitionSpec()
    score = functools.partial(
        token_logprobs, chunk=scoring.head_chunk(cfg, B * G, mesh)
    )

    def loss(hidden: Any, table: Any, targets: Any) -> Any:
        by_device = jax.shard_map(
            score, in_specs=(BATCH, BATCH, whole), out_specs=BATCH, check_vma=False
        )
        scores = by_device(hidden, targets, table)
        return scores.logprobs.sum() + scores.entropy.sum()

    rows, everywhere = NamedSharding(mesh, BATCH), NamedSharding(mesh, whole)
    shape = jax.ShapeDtypeStruct
    table = shape((cfg.vocab_size, cfg.width), jnp.bfloat16, sharding=everywhere)
    hidden = shape((B, G, tokens, cfg.width), jnp.bfloat16, sharding=rows)
    targets = shape((B, G, tokens), jnp.int32, sharding=rows)
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(rows, everywhere))
        compiled = gradient.trace(hidden, table, targets).lower().compile()
    memory = compiled.memory_analysis()
    return {
        "temporaries": memory.temp_size_in_bytes / plan_compile.GIB,
        "of_them_gradient": 4 * cfg.vocab_size * cfg.width / plan_compile.GIB,
    }


def judged() -> dict[str, Any]:
    """Gemma 3 12B in bfloat16 that answers the multiple choice of a paper's step."""
    from blue.models import families
    from blue.models.params import abstract_params
    from blue.runtime import programs
    from blue.runtime.sharding import make_mesh
    from blue.stages import plan, plan_programs
    from blue.stages.plan_compile import compile_part
    from configs import profiler_amazon_clothing

    config = profiler_amazon_clothing.get_config()
    config.dtype.params = "bfloat16"
    plan.set_up(config)
    chip, devices = plan.topology(JUDGE["topology"])
    mesh = make_mesh(*JUDGE["mesh"], devices=devices)
    cfg = families.preset(JUDGE["preset"])
    with programs.descriptions_only():
        part = plan_programs.make_choice_part(config, mesh, cfg)
        compiled = compile_part(part)
        resident = plan_programs.gib(abstract_params(cfg, mesh, "bfloat16"))
    entry = plan.describe(part, compiled, 0.0, chip, chips_count=mesh.size)
    return JUDGE | {"resident_gib": resident, "choice": entry}


def plot(plans: dict[str, Any], path: Path) -> None:
    """FLOPs and collective bytes a chip over chips; nothing without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return
    from blue.runtime.hlo.collectives import network_bytes

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    sizes = [plan["chips"] for plan in plans.values()]
    for name in ("prefill", "decode_step", "reference", "update", "choice", "encode"):
        rows = [plan["programs"][name] for plan in plans.values()]
        axes[0].plot(
            sizes, [r["flops_per_chip"] / 1e12 for r in rows], "o-", label=name
        )
        moved = [network_bytes(r["collectives"]) / 1e9 for r in rows]
        axes[1].plot(sizes, moved, "o-", label=name)
    axes[0].set(title="TFLOP a chip", xlabel="chips", xscale="log", yscale="log")
    axes[1].set(title="GB over the network, a chip", xlabel="chips", xscale="log")
    for axis in axes:
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def table(head: str, rows: list[list[Any]]) -> str:
    """Markdown; all columns but the first to the right."""
    cells = [head.split(" | "), *rows]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in cells]
    return "\n".join(
        [lines[0], "|---" + "|--:" * (len(cells[0]) - 1) + "|", *lines[1:]]
    )


def tables(found: dict[str, dict[str, Any]]) -> str:
    """All tables, of {name of a file: what it holds}."""
    from blue.runtime.hlo.collectives import network_bytes

    network = lambda program: network_bytes(program["collectives"]) / 1e9
    temporaries = lambda p: f"{p['hbm_gib'].get('temporaries', float('nan')):.1f}"
    fits, scaled, passed = [], [], []
    for name, plan in found["fits"].items():
        if "programs" not in plan:
            continue
        programs, resident = plan["programs"], plan["resident_gib"]["total"]
        at_once = {
            n: (p["hbm_gib"]["total"] or math.inf) + p["hbm_gib"].get("beside", 0.0)
            for n, p in programs.items()
        }
        most = max(at_once, key=lambda n: at_once[n])
        misfits = [n for n, p in programs.items() if not p["fits"]]
        step = programs["decode_step"]
        least = step.get("least_bytes_per_chip", float("nan")) / 1e9
        fits.append([
            name, f"{resident:.1f}", temporaries(programs["update"]),
            f"{at_once[most]:.1f} ({most})",
            f"**no**: {', '.join(misfits)}" if misfits else "yes",
            f"{programs['update']['flops_per_chip'] / 1e12:,.0f}",
            f"{network(programs['update']):.0f}",
            f"{step['bytes_per_chip'] / 1e9:.2f} ({least:.2f})",
            f"{plan['step']['seconds'] or math.nan:.1f}",
        ])  # fmt: skip
    for name, plan in found["scaling"].items():
        programs = plan["programs"]
        a_step = [p for n, p in programs.items() if p["times_a_step"]]
        work = [p for n, p in programs.items() if n != "decode_step" and p in a_step]
        update = programs["update"]
        scaled.append([
            name, plan["chips"],
            f"{sum(p['flops_per_chip'] for p in work) / 1e12:.2f}",
            f"{programs['decode_step']['flops_per_chip'] / 1e9:.2f}",
            f"{update['flops_per_chip'] / 1e12:.2f}", temporaries(update),
            f"{network(update):.1f}", f"{sum(map(network, work)):.1f}",
            "yes" if all(p["fits"] for p in programs.values()) else "**no**",
        ])  # fmt: skip
    for plan in found["update"].values():
        programs = plan["programs"]
        passed.append([
            plan["changed"]["max_completion_tokens"], plan["changed"]["remat"],
            *(f"{programs[n]['flops_per_chip'] / 1e12:.1f}" for n in programs),
            f"{plan['flops_per_chip'] / 1e12:.1f}",
            *(temporaries(programs[n]) for n in programs),
        ])  # fmt: skip
    return "\n\n".join([
        table("plan | resident | update's temporaries | most at once | fits | "
              "update, TFLOP | update, network GB | decode step, GB (least possible) | "
              "a step, s", fits),
        table("topology | chips | step, TFLOP | decode step, GFLOP | update, TFLOP | "
              "its temporaries, GiB | its network, GB | network of the step, GB | fits",
              scaled),
        table("completion | remat | reference, TFLOP | update, TFLOP | together | "
              "reference's temporaries, GiB | update's", passed),
    ])  # fmt: skip


def main() -> None:
    """Compiles and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("fits", "scaling", "update", "head", "tables"))
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/scaling")
    parser.add_argument("--only", default="", help="part of a name of `fits`")
    arguments = parser.parse_args()
    if arguments.what == "tables":
        files = {n: arguments.out / f"{n}.json" for n in ("fits", "scaling", "update")}
        found = {n: json.loads(f.read_text()) for n, f in files.items() if f.exists()}
        print(tables(dict.fromkeys(files, {}) | found))
        return
    import logging

    from blue import main as blue_main

    blue_main.compiler_only()
    blue_main.set_up_logging()
    path = arguments.out / f"{arguments.what}.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text()) if path.exists() else {}

    def keep(name: str, plan: dict[str, Any]) -> None:
        found[name] = plan
        path.write_text(json.dumps(found, indent=1) + "\n")
        logging.getLogger("blue").info("%s: done", name)

    if arguments.what == "fits":
        for name, what in FITS.items():
            if arguments.only in name:
                keep(name, planned(*what))
        if arguments.only in JUDGE["preset"]:
            keep("gemma3_12b as a frozen judge", judged())
        return
    if arguments.what == "head":
        for tokens in (512, 2048):
            keep(f"C={tokens}", head_alone(tokens))
        return
    if arguments.what == "update":
        for remat, tokens in PASSES:
            fields = {"max_completion_tokens": tokens, "remat": remat}
            keep(f"C={tokens} remat={remat}", passes(fields))
        return
    for topology, chips in CHIPS.items():
        fields = {"batch_size": chips, "max_completion_tokens": 512}
        fields["encoder.batch_size"] = 4 * chips
        fields["train_encoder.batch_size"] = 8 * chips
        if chips == 256:  # does not divide Gemma 3's width of 1152
            fields |= {"mesh.data": 2, "mesh.fsdp": 128}
        keep(topology, planned("profiler_amazon_clothing", topology, fields))
    plot(found, arguments.out / "scaling.png")


if __name__ == "__main__":
    main()
