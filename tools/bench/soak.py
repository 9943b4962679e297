"""A long run: does memory, a file, a thread or the step time grow?

    python tools/bench/soak.py --workdir=runs/soak --out=experiments/soak [--steps=2000]

Trains the quickstart's profiler for many steps. A thread in the run counts its live
arrays; this process looks at the run from outside, through /proc, every few seconds.
`--figures` only evaluates what a workdir has, also while its run goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--config.train_encoder.num_steps=60", "--config.warm_start.num_steps=200"]
SAMPLE_S = 10.0
WARM_S = 120.0  # of the first steps, while pools and caches fill


# --- inside of the run


def inside(path: Path, argv: list[str]) -> int:
    """`blue.main` with a thread that writes what only the process itself can count."""
    from blue import main

    def watch() -> None:
        import jax

        while True:
            time.sleep(SAMPLE_S)
            arrays = jax.live_arrays()
            row = {
                "time": time.time(),
                "arrays": len(arrays),
                "array_bytes": sum(x.nbytes for x in arrays),
            }
            del arrays
            stats = jax.devices()[0].memory_stats() or {}
            row |= {k: stats[k] for k in ("bytes_in_use",) if k in stats}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    threading.Thread(target=watch, daemon=True).start()
    return main.main(["blue", *argv])


# --- outside


def look(pid: int, workdir: Path) -> dict[str, float] | None:
    """Memory, files, threads and work of a process; None when it is gone."""
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines() if metrics.exists() else []
    try:
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return {
            "time": time.time(),
            "anonymous_mb": int(fields["RssAnon"].split()[0]) / 1024,
            "resident_mb": int(fields["VmRSS"].split()[0]) / 1024,
            "threads": int(fields["Threads"]),
            "files": len(os.listdir(f"/proc/{pid}/fd")),
            # of all threads: the same on a busy machine, unlike seconds
            "cpu_s": sum(map(int, times[11:13])) / os.sysconf("SC_CLK_TCK"),
            "steps": sum(b'"stage": "profiler"' in line for line in lines),
        }
    except (OSError, KeyError):
        return None


def soak(workdir: Path, steps: int, extra: list[str]) -> int:
    """Short earlier stages, then the long one under watch; its exit code."""
    workdir.mkdir(parents=True, exist_ok=True)
    common = [f"--config={ROOT}/configs/quickstart.py", f"--workdir={workdir}"]
    common += [*SHORT, f"--config.num_steps={steps}", *extra]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for stage in ("encoder", "warm_start"):
        command = [sys.executable, "-m", "blue.main", *common]
        command += [f"--config.stage={stage}"]
        subprocess.run(command, env=environment, check=True)
    command = [sys.executable, __file__, "--inside", str(workdir / "inside.jsonl")]
    command += [*common, "--config.stage=profiler"]
    process = subprocess.Popen(command, env=environment)
    with (workdir / "outside.jsonl").open("a") as file:
        while process.poll() is None:
            row = look(process.pid, workdir)
            if row is not None:
                file.write(json.dumps(row) + "\n")
                file.flush()
            time.sleep(SAMPLE_S)
    return process.returncode


# --- figures


def rows_of(path: Path) -> list[dict]:
    """The JSON lines of a file; none where it is missing, no torn last one."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(x) for x in text.splitlines(keepends=True) if x.endswith("\n")]


def quantiles(values: list[float]) -> dict[str, float]:
    """Lowest, median and highest."""
    found = np.quantile(values, [0, 0.5, 1])
    return dict(zip(("min", "median", "max"), map(float, found), strict=True))


def trend(rows: list[dict], key: str) -> dict[str, Any]:
    """The first and the last quarter of a curve, and its slope between the two.

    The median counts: within a step memory comes and goes.
    """
    values = [(row["time"], float(row[key])) for row in rows if key in row]
    quarter = max(1, len(values) // 4)
    first, last = values[:quarter], values[-quarter:]
    middle = lambda part: float(np.median([value for _, value in part]))
    hours = (np.mean([t for t, _ in last]) - np.mean([t for t, _ in first])) / 3600
    grown = middle(last) - middle(first)
    return {
        "first_quarter": quantiles([value for _, value in first]),
        "last_quarter": quantiles([value for _, value in last]),
        "growth_per_hour": grown / hours if hours else None,
        "samples": len(values),
    }


def work_a_step(rows: list[dict]) -> dict[str, Any]:
    """CPU seconds of a step over the first and the last quarter of what was seen."""
    seen = [(row["steps"], row["cpu_s"]) for row in rows if "cpu_s" in row]
    quarter = max(1, len(seen) // 4)
    found: dict[str, Any] = {"steps_seen": seen[-1][0] - seen[0][0] if seen else 0}
    for name, part in (("first", seen[: quarter + 1]), ("last", seen[-quarter - 1 :])):
        steps = part[-1][0] - part[0][0] if part else 0
        found[f"{name}_quarter"] = (part[-1][1] - part[0][1]) / steps if steps else None
    return found


def profiler_steps(workdir: Path) -> list[dict]:
    return [r for r in rows_of(workdir / "metrics.jsonl") if r["stage"] == "profiler"]


def evaluate(workdir: Path) -> dict[str, Any]:
    """results.json: steps done, and how each curve ends compared with its start."""
    steps = profiler_steps(workdir)
    outside, inner = (
        rows_of(workdir / "outside.jsonl"),
        rows_of(workdir / "inside.jsonl"),
    )
    # from the first finished step on: what compiles before is no part of it
    begun = [row["time"] for row in inner if row["array_bytes"]]
    warm = (begun[0] if begun else 0.0) + WARM_S
    outside = [row for row in outside if row["time"] >= warm]
    inner = [row for row in inner if row["time"] >= warm]
    config = json.loads((workdir / "config.json").read_text())
    timed = steps[1:]
    quarter = max(1, len(timed) // 4)
    step_s = lambda part: quantiles([row["time/step_s"] for row in part])
    compiled = [row["speed/compiles"] for row in steps]
    return {
        "steps": len(steps),
        "steps_asked": config["config"]["num_steps"],
        "git_commit": config["git_commit"],
        "devices": config["devices"],
        "cores": os.cpu_count(),
        "hours": (outside[-1]["time"] - outside[0]["time"]) / 3600,
        "compiles_after_first_step": compiled[-1] - compiled[0],
        "step_s": {
            "first_quarter": step_s(timed[:quarter]),
            "last_quarter": step_s(timed[-quarter:]),
        },
        "cpu_s_a_step": work_a_step(outside),
        "anonymous_mb": trend(outside, "anonymous_mb"),
        "resident_mb": trend(outside, "resident_mb"),
        "files": trend(outside, "files"),
        "threads": trend(outside, "threads"),
        "live_arrays": trend(inner, "arrays"),
        "live_array_bytes": trend(inner, "array_bytes"),
        "skipped_updates": sum(row["optim/skipped"] for row in steps),
    }


def plot(workdir: Path, path: Path) -> None:
    """Memory, arrays, files and threads over time; nothing without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return
    outside, inner = (
        rows_of(workdir / "outside.jsonl"),
        rows_of(workdir / "inside.jsonl"),
    )
    steps = profiler_steps(workdir)
    minutes = lambda rows: [(row["time"] - outside[0]["time"]) / 60 for row in rows]
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 5), layout="constrained")
    panels = (
        (outside, "anonymous_mb", "anonymous memory, MB"),
        (inner, "array_bytes", "live arrays, bytes"),
        (outside, "threads", "threads"),
    )
    for axis, (rows, key, title) in zip(axes.flat, panels, strict=False):
        axis.plot(minutes(rows), [row[key] for row in rows], lw=0.8)
        axis.set(title=title, xlabel="minutes", ylim=(0, None))
    axes.flat[3].plot([row["time/step_s"] for row in steps[1:]], lw=0.8)
    axes.flat[3].set(title="seconds a step", xlabel="step", ylim=(0, None))
    figure.savefig(path, dpi=110)


def figures(workdir: Path, out: Path) -> None:
    """results.json and soak.png under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    result = evaluate(workdir)
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(workdir, out / "soak.png")
    print(json.dumps(result, indent=1))


def main() -> int:
    """The run, then its figures."""
    if sys.argv[1:2] == ["--inside"]:
        return inside(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--figures", action="store_true")
    arguments, extra = parser.parse_known_args()
    workdir = arguments.workdir.resolve()
    code = 0 if arguments.figures else soak(workdir, arguments.steps, extra)
    figures(workdir, arguments.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
