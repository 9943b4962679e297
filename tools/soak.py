"""A long run: does memory, a file, a thread or the step time grow?

    python tools/soak.py --workdir=runs/soak --out=experiments/soak [--steps=2000]

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

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["--config.train_encoder.num_steps=60", "--config.warm_start.num_steps=200"]
SAMPLE_S = 10.0


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


def look(pid: int) -> dict[str, float] | None:
    """Anonymous memory, files and threads of a process; None when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return {
            "time": time.time(),
            "anonymous_mb": int(fields["RssAnon"].split()[0]) / 1024,
            "resident_mb": int(fields["VmRSS"].split()[0]) / 1024,
            "threads": int(fields["Threads"]),
            "files": len(os.listdir(f"/proc/{pid}/fd")),
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
            row = look(process.pid)
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


def main() -> int:
    """The run, then its figures."""
    if sys.argv[1:2] == ["--inside"]:
        return inside(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--figures", action="store_true")
    arguments, extra = parser.parse_known_args()
    return soak(arguments.workdir.resolve(), arguments.steps, extra)


if __name__ == "__main__":
    sys.exit(main())
