"""The gate: HBM and FLOPs of the largest programs at full size may not creep up.

    python tools/bench/check_plan.py [--record]

Compiles programs of configs/profiler_amazon_clothing.py for v6e:8x8, with 512
completion tokens and remat=attention: the reference pass, the update, the decode loop.
Memory and FLOPs a chip are compared with experiments/scaling/recorded.json. It fails
where one of these holds:

* memory or FLOPs are more than 3% above the recorded ones;
* FLOPs differ from the formula by more than 5%;
* a decode step moves more than 1.15 times the weights and caches.

The file names the versions of jax and libtpu. With others nothing is compared and it
has to be made again (`--record`). Needs the extra `tpu`, no TPU.
"""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
RECORD = ROOT / "experiments/scaling/recorded.json"
PROGRAMS = ("reference", "update", "decode_step")
SHAPE = {"max_completion_tokens": 512, "remat": "attention"}
MARGIN = 1.03


def versions() -> dict[str, str]:
    """Of what the figures depend on beside our code."""
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def measure() -> dict[str, dict[str, float]]:
    """{program: figures of one chip}."""
    from blue.models import families
    from blue.runtime import programs
    from blue.runtime.sharding import make_mesh
    from blue.stages import plan, plan_programs
    from blue.stages.plan_compile import compile_all
    from configs import profiler_amazon_clothing

    config = profiler_amazon_clothing.get_config()
    config.update(SHAPE)
    plan.set_up(config)
    _, devices = plan.topology("v6e:8x8")
    mesh = make_mesh(1, -1, 1, devices=devices)
    profiler = families.preset(config.profiler.preset)
    encoder = families.preset(config.encoder.preset)
    with programs.descriptions_only():
        parts = plan_programs.make_parts(config, mesh, profiler, encoder)
        found = compile_all({name: parts[name] for name in PROGRAMS})
    figures = {}
    least = plan.least_bytes(config, mesh, profiler)
    for name, compiled in found.items():
        if compiled.memory is None:
            raise SystemExit(f"{name} does not fit: {compiled.message}")
        figures[name] = {
            "flops": compiled.flops,
            "formula_flops": parts[name].formula / mesh.size,
            "arguments": compiled.memory.argument_size_in_bytes,
            "temporaries": compiled.memory.temp_size_in_bytes,
            "bytes": compiled.bytes,
        }
    figures["decode_step"]["least_bytes"] = least
    return figures


def compare(found: dict, recorded: dict) -> list[str]:
    """One line for every figure that has risen, or that no formula explains."""
    lines = []
    decode = found["decode_step"]
    if decode["bytes"] > 1.15 * decode["least_bytes"]:
        lines.append(f"decode_step: {decode['bytes']:.4g} bytes a step and chip")
    for name, figures in found.items():
        for key in ("flops", "arguments", "temporaries"):
            old, new = recorded[name][key], figures[key]
            if new > MARGIN * old:
                lines.append(f"{name}: {key} {old:.4g} -> {new:.4g} a chip")
        if not 0.95 < figures["flops"] / figures["formula_flops"] < 1.05:
            wanted = figures["formula_flops"]
            lines.append(f"{name}: {figures['flops']:.4g} FLOPs, formula {wanted:.4g}")
    return lines


def main() -> int:
    """Compiles, compares; 1 where something has risen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write the file anew")
    arguments = parser.parse_args()
    from blue import main as blue_main

    blue_main.compiler_only()
    record = {"versions": versions(), "programs": measure()}
    print(json.dumps(record, indent=1))
    if arguments.record:
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        return 0
    recorded = json.loads(RECORD.read_text())
    if recorded["versions"] != record["versions"]:
        print(
            f"recorded with {recorded['versions']}: nothing compared; make it again "
            "with --record",
            file=sys.stderr,
        )
        return 0
    lines = compare(record["programs"], recorded["programs"])
    for line in lines:
        print(f"risen: {line}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
