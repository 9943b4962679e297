"""How cost grows: time and memory against the sizes of the work; writes a figure.

    python tools/bench/growth.py [--only=step catalogue table log]
        [--rows 100000 1000000] [--out=experiments/benchmarks]
                                                (the figure needs the extra `plots`)

step: the parts of a GRPO step (a small Gemma 3) against P prompt tokens, C completion
tokens, G completions, B users, each alone. catalogue: the negatives of a batch and the
ranks of targets among all items, against items. table: the vectors of all items (a
small encoder, a dozen tokens an item), against items. log: reading and cutting a log,
against its rows (tools/bench/prepare.py). Seconds of the processor on one core, each
point in a process of its own; compilation does not count. The exponent is the slope of
log time over log size between the last two points: 1 is linear. Writes growth.json,
growth.png.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tools.bench import measure  # noqa: E402

STEP = {"prompt": 512, "new": 64, "g": 4, "users": 2}  # what the others stay at
LETTERS = {"prompt": "P", "new": "C", "g": "G", "users": "B"}
TIMES = (1, 2, 4)
ITEMS = (1_000, 10_000, 100_000, 1_000_000)
PARTS = {"generation": "sample", "ref_logprob": "reference", "update": "update"}
KINDS = ("step", "catalogue", "table", "log")
ALONE = ("catalogue", "table")  # a point of them is a process of this script


def main() -> None:
    """Measures, and draws all that is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    rows = [100_000, 300_000, 1_000_000]
    parser.add_argument("--rows", nargs="+", type=int, default=rows, help="of the log")
    parser.add_argument("--cpus", default="0", help="cores to stay on (default 0)")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/benchmarks")
    parser.add_argument("--measure", choices=ALONE, help=argparse.SUPPRESS)
    parser.add_argument("--items", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    measure.pin(args.cpus)
    if args.measure:
        run = {"catalogue": catalogue, "table": table}[args.measure]
        print(json.dumps(run(args.items)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "growth.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "step" in args.only:
        for name, letter in LETTERS.items():
            found[letter] = summed([step(name, n, args.cpus) for n in TIMES])
            path.write_text(json.dumps(found, indent=1) + "\n")
    for kind in (kind for kind in ALONE if kind in args.only):
        points = [
            last_line(
                [__file__, f"--measure={kind}", f"--items={n}", f"--cpus={args.cpus}"]
            )
            for n in ITEMS
        ]
        found["items" if kind == "catalogue" else "items of a table"] = summed(points)
        path.write_text(json.dumps(found, indent=1) + "\n")
    if "log" in args.only:
        found["rows"] = summed([log(rows) for rows in args.rows])
    path.write_text(json.dumps(found, indent=1) + "\n")
    for letter, curves in found.items():
        slopes = {k: c["exponent"] for k, c in curves["seconds"].items()}
        sys.stdout.write(f"{letter}: {slopes}\n")
    draw(found, args.out / "growth.png")


def last_line(command: list[str]) -> dict[str, Any]:
    """The JSON that a Python program prints last."""
    command = [sys.executable, *command]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def step(name: str, times: int, cpus: str) -> dict[str, Any]:
    """Parts of a GRPO step with one size `times` as large as usual."""
    sizes = STEP | {name: STEP[name] * times}
    options = [f"--{k}={v}" for k, v in sizes.items()]
    script = f"{ROOT}/tools/bench/grpo_step.py"
    line = last_line([script, "--size=mini", "--steps=3", f"--cpus={cpus}", *options])
    seconds = {told: line[f"{part}_cpu_s"]["min"] for part, told in PARTS.items()}
    return {"size": sizes[name], "seconds": seconds, "mib": line["peak_rss_mib"]}


def catalogue(items: int) -> dict[str, Any]:
    """Negatives and ranks for 64 users in a catalogue of so many items."""
    import resource

    import numpy as np

    from blue.data.examples import Split
    from blue.data.negatives import sample_negatives
    from blue.evaluation import protocols

    rng, users = np.random.default_rng(0), 64
    own = [np.sort(rng.choice(items, 20, replace=False)) for _ in range(users)]
    targets = np.array([o[0] for o in own])
    offsets = np.arange(users + 1) * 20
    flat = np.concatenate(own).astype(np.int32)
    split = Split(
        user=np.arange(users, dtype=np.int32),
        next_item=targets.astype(np.int32),
        more_items=np.zeros((users, 0), np.int32),
        history_items=flat,
        history_ratings=np.full(len(flat), np.nan, np.float32),
        history_offsets=offsets,
        own_items=flat,
        own_offsets=offsets,
        negatives=np.zeros((users, 0), np.int32),
        ids=np.arange(users, dtype=np.int64),
    )
    pool = np.arange(items, dtype=np.int32)
    unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    table = unit(rng.normal(size=(items, 64)).astype(np.float32))
    queries = unit(rng.normal(size=(1, users, 64)))
    everyone = protocols.Targets(targets, own, [np.array([t]) for t in targets])
    seconds = {}
    with measure.Clock() as clock:
        for step in range(20):
            sample_negatives(
                split, np.arange(users), pool, pool, num=63, seed=0, step=step
            )
    seconds["negatives of 20 batches"] = clock.cpu
    ranker = protocols.by_cosine(["bench"], queries, table)
    with measure.Clock() as clock:
        protocols.rank_all(ranker, everyone, np.ones((items, 1)))
    seconds["ranks of 64 targets"] = clock.cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"size": items, "seconds": seconds, "mib": round(peak)}


def table(items: int) -> dict[str, Any]:
    """The item table of so many items, written to disk as a stage writes it."""
    import resource
    import types

    from blue.sources.encoder import load_item_table
    from tools.bench import ours

    cfg = ours.encoder("mini")
    encoder, _ = ours.text_encoder(cfg, 256)
    sizes = {"vocab": cfg.vocab_size, "median": 12, "sigma": 0.4, "least": 4}
    texts = measure.texts(items, **sizes)
    encoder.embed(measure.texts(4096, **sizes, seed=2))  # compiles
    with tempfile.TemporaryDirectory() as directory, measure.Clock() as clock:
        log: Any = types.SimpleNamespace(texts=texts)
        load_item_table(encoder, log, directory)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "size": items,
        "seconds": {"vectors of all items": clock.cpu},
        "mib": round(peak),
    }


def log(rows: int) -> dict[str, Any]:
    """Reading and cutting a generated log of so many reviews."""
    script = f"{ROOT}/tools/bench_prepare.py"
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, script, "generate", directory, f"--rows={rows}"]
        subprocess.run(command, check=True)
        out = subprocess.run(
            [sys.executable, script, "measure", directory],
            check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip
    found = json.loads(out)
    return {
        "size": rows,
        "seconds": {"read and cut": float(found["cpu_seconds"])},
        "mib": round(found["peak_rss_gib"] * 1024),
    }


def summed(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Curves over size, with the slope between the last two points."""
    points = sorted(points, key=lambda p: p["size"])
    sizes = [p["size"] for p in points]

    def slope(values: list[float]) -> float | None:
        if len(values) < 2 or min(values[-2:]) <= 0:
            return None
        rise = math.log(values[-1] / values[-2])
        return round(rise / math.log(sizes[-1] / sizes[-2]), 2)

    seconds = {}
    for part in points[0]["seconds"]:
        values = [round(p["seconds"][part], 4) for p in points]
        seconds[part] = {"values": values, "exponent": slope(values)}
    memory = [p["mib"] for p in points]
    return {"sizes": sizes, "seconds": seconds, "peak_mib": memory}


def draw(found: dict[str, Any], path: Path) -> None:
    """A panel for every size: time on the left, peak memory (dashed) on the right."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    from tools.plot_run import COLOURS, MARKERS

    figure, panels = plt.subplots(
        2, 4, figsize=(14, 6), constrained_layout=True, squeeze=False
    )
    for panel, (letter, curves) in zip(panels.flat, found.items(), strict=False):
        for n, (part, curve) in enumerate(curves["seconds"].items()):
            label = f"{part}, exponent {curve['exponent']}"
            style = {"color": COLOURS[n], "marker": MARKERS[n], "label": label}
            panel.loglog(curves["sizes"], curve["values"], **style)
        memory = panel.twinx()
        memory.plot(curves["sizes"], curves["peak_mib"], "--", color=COLOURS[-1])
        memory.set_ylim(0, 1.2 * max(curves["peak_mib"]))
        memory.set_ylabel("peak memory, MiB (dashed)")
        panel.set(xlabel=letter, ylabel="CPU seconds")
        panel.minorticks_off()
        panel.set_xticks(curves["sizes"], [f"{n:.4g}" for n in curves["sizes"]])
        panel.legend(fontsize=7)
    for panel in panels.flat[len(found) :]:
        panel.set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
