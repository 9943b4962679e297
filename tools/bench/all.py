"""Every benchmark beside its peers, by turns; writes the tables of the results.

    python tools/bench/all.py --torch-python=PATH --tunix-python=PATH [--runs=3]
        [--only=grpo_256 ...] [--out=experiments/benchmarks]

The two paths are the Pythons of environments of their own. One has torch, transformers,
trl and sentence-transformers, the other has google-tunix;
experiments/benchmarks/README.md says how they are made. Writes results.json, every
number with its command, and table.md; what `--only` leaves out stays as it is there.
All run on the cores of --cpus, one after the other: never beside other work there.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tools.bench import pair  # noqa: E402

OURS, PEERS = "tools/bench", "tools/bench/peers"
SHOWN = {  # figure -> its name in the table
    "cpu_s": "CPU s",
    "step_cpu_s": "CPU s a step",
    "prefill_cpu_s": "prefill, CPU s",
    "decode_step_cpu_ms": "decode, CPU ms a step",
    "generation_cpu_s": "generation, CPU s",
    "ref_logprob_cpu_s": "reference pass, CPU s",
    "update_cpu_s": "update, CPU s",
    "texts_per_cpu_s": "texts a CPU s",
    "peak_rss_mib": "peak memory, MiB",
}


class Case(NamedTuple):
    """One piece of work and who does it."""

    name: str
    told: str
    script: str  # ours
    peers: tuple[tuple[str, str], ...]  # (environment, script)
    options: tuple[str, ...]
    main: str  # the figure that decides
    bar: float  # ours / the better peer's, at most; of rates, at least


GRPO_PEERS = (("tunix", "tunix_grpo_step.py"), ("torch", "trl_grpo_step.py"))
CASES = (
    Case(
        "generate", "8 users × 8 completions, prompt 512, 64 new tokens", "generate.py",
        (("tunix", "tunix_generate.py"), ("torch", "transformers_generate.py")),
        ("--reps=1",), "cpu_s", 0.30,
    ),
    Case(
        "grpo_256", "a GRPO step, 4 users × 8, prompt 256, 64 new tokens",
        "grpo_step.py", GRPO_PEERS, ("--steps=1",), "step_cpu_s", 0.35,
    ),
    Case(
        "grpo_1024", "a GRPO step, 1 user × 8, prompt 1,024, 64 new tokens",
        "grpo_step.py", GRPO_PEERS, ("--users=1", "--prompt=1024", "--steps=1"),
        "step_cpu_s", 0.20,
    ),
    Case(
        "encode", "256 texts of mixed length", "encode.py",
        (("torch", "st_encode.py"),), ("--reps=1",), "texts_per_cpu_s", 1.4,
    ),
    Case(
        "contrastive", "a contrastive step, 64 pairs of texts", "contrastive_step.py",
        (("torch", "st_contrastive_step.py"),), ("--steps=2",), "step_cpu_s", 0.6,
    ),
)  # fmt: skip


def main() -> None:
    """Runs the cases and writes what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", required=True, help="with torch and the rest")
    parser.add_argument("--tunix-python", required=True, help="with google-tunix")
    parser.add_argument("--runs", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--cpus", default="0", help="cores to stay on (default 0)")
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/benchmarks")
    args = parser.parse_args()
    pythons = {"torch": args.torch_python, "tunix": args.tunix_python}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    os.chdir(ROOT)
    for case in CASES:
        if case.name in args.only:
            sys.stderr.write(f"{case.name}: {args.runs} rounds\n")
            options = (*case.options, f"--cpus={args.cpus}")
            results[case.name] = measure(case, pythons, options, args.runs)
            path.write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "table.md").write_text(table(results))
    sys.stdout.write(table(results))


def measure(
    case: Case, pythons: dict[str, str], options: Sequence[str], runs: int
) -> dict[str, Any]:
    """What ours and each peer cost, and ours over the better peer, round by round."""
    commands = [[sys.executable, f"{OURS}/{case.script}", *options]]
    for environment, script in case.peers:
        commands.append([pythons[environment], f"{PEERS}/{script}", *options])
    rounds = pair.run_by_turns(commands, runs)
    sides = []
    for command, lines in zip(commands, rounds, strict=True):
        found = [pair.numbers(line) for line in lines]
        shared = [key for key in found[0] if all(key in line for line in found)]
        sides.append(
            {
                "peer": lines[0]["peer"],
                "command": " ".join(["python", *command[1:]]),
                "versions": lines[0]["versions"],
                "figures": {k: pair.range_of([f[k] for f in found]) for k in shared},
            }
        )
    ratios = {}
    for key in (case.main, "peak_rss_mib"):
        lower = key != "texts_per_cpu_s"
        best = min if lower else max
        of_round = []
        for lines in zip(*rounds, strict=True):
            ours, *theirs = [pair.numbers(line)[key] for line in lines]
            of_round.append(round(ours / best(theirs), 3))
        ratios[key] = pair.range_of(of_round)
    return {
        "told": case.told,
        "runs": runs,
        "cpu": cpu_name(),
        "main": case.main,
        "bar": case.bar,
        "ours_over_better_peer": ratios,
        "sides": sides,
    }


def cpu_name() -> str:
    """Of this machine."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def table(results: dict[str, Any]) -> str:
    """All results as Markdown."""
    parts = []
    for name in [case.name for case in CASES if case.name in results]:
        found = results[name]
        sides = found["sides"]
        figure, ratios = found["main"], found["ours_over_better_peer"]
        sign = "≥" if figure == "texts_per_cpu_s" else "≤"
        ratio, memory = ratios[figure], ratios["peak_rss_mib"]
        lines = [
            f"**{name}**: {found['told']}. BLUE / the better peer, {SHOWN[figure]}: "
            f"**{ratio['med']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f}; wanted "
            f"{sign} {found['bar']:.2f}); peak memory {memory['med']:.2f}; "
            f"{found['runs']} rounds.",
            "",
            "| figure | " + " | ".join(side["peer"] for side in sides) + " |",
            "|---|" + "---|" * len(sides),
        ]
        for key, label in SHOWN.items():
            cells = [cell(side["figures"].get(key)) for side in sides]
            if any(c != "–" for c in cells):
                lines.append(f"| {label} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def cell(figure: dict[str, float] | None) -> str:
    """Median (least to most)."""
    if figure is None:
        return "–"
    digits = 0 if figure["med"] >= 100 else 2
    show = lambda x: f"{x:,.{digits}f}"
    return f"{show(figure['med'])} ({show(figure['min'])} to {show(figure['max'])})"


if __name__ == "__main__":
    main()
