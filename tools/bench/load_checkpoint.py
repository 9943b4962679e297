"""Time and memory of loading a checkpoint, beside transformers' own loading.

    python tools/bench/load_checkpoint.py CONFIG_JSON --workdir=DIR [--rounds=5]

Makes a random model of the config in bfloat16 with transformers, once. BLUE and
transformers load it by turns in bfloat16 and float32, each time in a fresh process.
Every time ends with one pass over all parameters, so that nothing is left to be read
lazily. Memory is the peak of the process's anonymous memory above what it was before,
less the parameters themselves. Pages of files that are merely mapped do not count.
Needs the extra `parity`; the files of the model have been read before.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

SIDES = (
    "blue bfloat16",
    "transformers bfloat16",
    "blue float32",
    "transformers float32",
)


def main() -> None:
    """Measures and prints; `--measure` is one measurement in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="config.json of the model")
    parser.add_argument("--workdir", type=Path, required=True, help="for the model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    directory = args.workdir / args.config.stem
    if args.measure:
        print(json.dumps(measure(args.measure, directory)))
        return
    if not (directory / "config.json").exists():
        make_model(args.config, directory)
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    started = time.monotonic()
    for number in range(args.rounds):
        for side in SIDES:
            command = [sys.executable, *sys.argv, f"--measure={side}"]
            out = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[side].append(json.loads(out.stdout.splitlines()[-1]))
        left = (time.monotonic() - started) / (number + 1) * (args.rounds - number - 1)
        sys.stderr.write(f"round {number + 1}/{args.rounds}, {left:.0f} s left\n")
    result = summary(runs, args.config.stem)
    print(table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


def make_model(config: Path, directory: Path) -> None:
    """A random model of the config, as transformers saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directory.mkdir(parents=True)
    (directory / "config.json").write_bytes(config.read_bytes())
    fields = AutoConfig.from_pretrained(directory)
    torch.set_default_dtype(torch.bfloat16)
    AutoModelForCausalLM.from_config(fields).save_pretrained(directory)


def measure(side: str, directory: Path) -> dict[str, float]:
    """One loading: seconds, bytes of peak memory above the parameters, and of those."""
    engine, dtype = side.split()
    load = load_with_blue if engine == "blue" else load_with_transformers
    with AnonymousMemory() as memory:
        seconds, sizes = load(directory, dtype)
    return {
        "seconds": seconds,
        "above_parameters": memory.peak - sum(sizes),
        "parameters": sum(sizes),
        "largest_tensor": max(sizes),
    }


def load_with_blue(directory: Path, dtype: str) -> tuple[float, list[int]]:
    """Seconds, and bytes of each tensor as it is in the file, in our dtype."""
    import jax
    import jax.numpy as jnp

    from blue.hub.directory import load_decoder
    from blue.runtime.sharding import make_mesh

    mesh = make_mesh(1, -1, 1)
    jax.block_until_ready(jnp.zeros(3) + 1)
    started = time.monotonic()
    _, params = load_decoder(directory, mesh, dtype=dtype)
    for leaf in jax.tree.leaves(params):
        leaf.max().block_until_ready()
    seconds = time.monotonic() - started
    sizes = [x.nbytes for x in jax.tree.leaves({**params, "layers": {}})]
    for leaf in jax.tree.leaves(params["layers"]):
        sizes += [leaf.nbytes // len(leaf)] * len(leaf)
    return seconds, sizes


def load_with_transformers(directory: Path, dtype: str) -> tuple[float, list[int]]:
    """The same of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    started = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    for parameter in model.parameters():
        parameter.max()
    seconds = time.monotonic() - started
    return seconds, [p.numel() * p.element_size() for p in model.parameters()]


class AnonymousMemory:
    """Its `peak` is the most anonymous memory of this process inside `with`, above
    that at its start (Linux: RssAnon)."""

    def __enter__(self) -> "AnonymousMemory":
        self.start, self.peak, self._done = self.now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, self.now() - self.start)

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    @staticmethod
    def now() -> int:
        """Bytes."""
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise SystemExit("needs Linux: /proc/self/status has no RssAnon")


def summary(runs: dict[str, list[dict]], name: str) -> dict:
    """Medians and ranges a side."""
    import importlib.metadata

    packages = ("jax", "transformers", "torch", "safetensors")
    out: dict = {
        "model": name,
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "sides": {},
    }
    for side, rows in runs.items():
        seconds = [row["seconds"] for row in rows]
        above = [row["above_parameters"] for row in rows]
        out["sides"][side] = {
            "rounds": len(rows),
            "seconds": statistics.median(seconds),
            "seconds_range": [min(seconds), max(seconds)],
            "parameter_gb": rows[0]["parameters"] / 1e9,
            "largest_tensor_gb": rows[0]["largest_tensor"] / 1e9,
            "peak_above_parameters_gb": statistics.median(above) / 1e9,
            "peak_above_parameters_in_largest_tensors": statistics.median(above)
            / rows[0]["largest_tensor"],
        }
    return out


def table(result: dict) -> str:
    """The results as a Markdown table."""
    lines = [
        "| | seconds (range) | parameters, GB | peak above, GB | in largest tensors |",
        "|---|--:|--:|--:|--:|",
    ]
    for side, row in result["sides"].items():
        low, high = row["seconds_range"]
        lines.append(
            f"| {side} | {row['seconds']:.1f} ({low:.1f} to {high:.1f}) "
            f"| {row['parameter_gb']:.2f} | {row['peak_above_parameters_gb']:.2f} "
            f"| {row['peak_above_parameters_in_largest_tensors']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
