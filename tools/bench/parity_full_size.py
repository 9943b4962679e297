"""BLUE beside transformers at full size: random models of the released configs.

    python tools/bench/parity_full_size.py CONFIG_JSON ... [--workdir=DIR] [--out=DIR]

Makes a model of each config.json in bfloat16 (Gemma 3: a profiler; Qwen3-Embedding: an
encoder), with weights under which every part of the network matters. The two are
compared by tools/compare_models.py on random tokens beyond Gemma's window of 512, one
row padded. They are compared in float32, and both in bfloat16. Each one's bfloat16 is
compared with its float32, which is what rounding costs on either side. Writes
results.json and README.md's table. Needs the extra `parity` and 16 GB of memory.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOL = Path(__file__).with_name("compare_models.py")
LENGTHS = {"profiler": "700,180", "encoder": "700,180,33"}
PAIRS = {  # name -> engine and dtype of either side
    "float32": (("blue", "float32"), ("transformers", "float32")),
    "bfloat16": (("blue", "bfloat16"), ("transformers", "bfloat16")),
    "BLUE's bfloat16 - float32": (("blue", "bfloat16"), ("transformers", "float32")),
    "transformers' bfloat16 - float32": (
        ("transformers", "bfloat16"),
        ("transformers", "float32"),
    ),
}


def make_model(config: Path, directory: Path) -> None:
    """A random model of the config, in bfloat16, as transformers saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directory.mkdir(parents=True)
    (directory / "config.json").write_bytes(config.read_bytes())
    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 1:  # norms, all alike otherwise
                parameter.add_(0.3 * noise)
            else:
                scale = parameter.shape[1] ** -0.5
                if "embed_tokens" in name:
                    # small inputs, lest every token predict itself through a tied head;
                    # Gemma multiplies them by sqrt(width)
                    gemma = model.config.model_type.startswith("gemma3")
                    scale = 0.7 * scale if gemma else 0.1
                parameter.copy_(noise * scale)
    model.save_pretrained(directory)


def compare(directory: Path, role: str, pair: str) -> dict:
    """One comparison, in a process of its own."""
    flags = []
    for side, (engine, dtype) in zip("ab", PAIRS[pair], strict=True):
        flags += [f"--engine-{side}={engine}", f"--dtype-{side}={dtype}"]
    command = [sys.executable, TOOL, directory, directory, "--json", f"--role={role}"]
    command += [f"--random-tokens={LENGTHS[role]}", *flags]
    environment = os.environ | {"TMPDIR": str(directory)}  # answers wait on its disk
    out = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return json.loads(out.stdout.splitlines()[-1])


def table(result: dict) -> str:
    """The figures in Markdown."""
    packages = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
    lines = [f"\n{result['date']}, {result['cores']} CPU cores, {packages}."]
    for name, model in result["models"].items():
        what = "log-probabilities" if model["role"] == "profiler" else "unit vectors"
        lines += [
            f"\n{name}, {what}, rows of {model['lengths']} tokens:\n",
            "| | largest difference | mean difference | same top 1 | more |",
            "|---|--:|--:|--:|---|",
        ]
        for pair, row in model["pairs"].items():
            key = "least_cosine"
            more = f"least cosine {row[key]:.6f}" if key in row else ""
            if not more:
                more = (
                    f"next token: {row['max_difference_of_next_token']:.2g} at most; "
                    f"top 1 has probability {row['mean_probability_of_top1']:.2g}"
                )
            lines.append(
                f"| {pair} | {row['max_difference']:.2g} | {row['mean_difference']:.2g}"
                f" | {row['top1_agreement']:.3f} | {more} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Makes the models, compares, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument(
        "--workdir", type=Path, help="for the models; else a temporary folder"
    )
    parser.add_argument("--out", type=Path, help="folder of results.json, README.md")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_model(args.configs[0], args.make)
        return
    packages = ("jax", "torch", "transformers")
    versions = {p: importlib.metadata.version(p) for p in packages}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    result: dict = {"date": date, "cores": os.cpu_count(), "versions": versions}
    result["models"] = {}
    count, done, started = len(args.configs) * len(PAIRS), 0, time.monotonic()
    for folder in filter(None, (args.workdir, args.out)):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.workdir) as scratch:
        for config in args.configs:
            name = config.name.removesuffix(".json").removesuffix(".config")
            role = "encoder" if "embedding" in name else "profiler"
            directory = Path(scratch) / name
            make = [sys.executable, __file__, config, f"--make={directory}"]
            subprocess.run(make, check=True)  # its memory goes with it
            pairs = {}
            for pair in PAIRS:
                pairs[pair] = compare(directory, role, pair)
                done += 1
                left = (time.monotonic() - started) / done * (count - done)
                sys.stderr.write(f"{name}, {pair}: done; {left / 60:.0f} min left\n")
            lengths = LENGTHS[role].replace(",", " and ")
            result["models"][name] = {"role": role, "lengths": lengths, "pairs": pairs}
    print(table(result))
    if args.out:
        text = json.dumps(result, indent=2) + "\n"
        (args.out / "results.json").write_text(text)
        page = args.out / "README.md"
        head, mark, _ = page.read_text().partition("<!-- table -->\n")
        page.write_text(head + mark + table(result) + "\n")


if __name__ == "__main__":
    main()
