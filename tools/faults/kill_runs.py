"""Kill runs at random moments; is what they leave, once started again, the same?

    python tools/faults/kill_runs.py --workdir=runs/kills --out=runs/kills.json

One run goes to its end. Others are killed (SIGKILL, the whole process) again and again,
each time at a random moment of a random phase. Then the same command starts them again.
At the end every file is compared with the first run's.

The killer is a thread inside of the run, which this script starts around `blue.main`.
It knows the phase because functions of the library are wrapped here; the library has no
hook for it.
"""

import argparse
import functools
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

PHASES = {  # phase -> the functions of the library that it is inside of
    "tokenizer": ["blue.text.tokenizer:Tokenizer.save"],
    "prepare": ["blue.data.prepare:write_arrays"],
    "item table": ["blue.sources.encoder:_embed_items"],
    "rollout": ["blue.stages.train_profiler:write"],
    "reward": ["blue.stages.train_profiler:score"],
    "update": ["blue.training.loop:to_host"],
    "metrics": [
        "blue.workdir.writer:Writer.scalars",
        "blue.workdir.writer:Writer.samples",
    ],
    "save": ["blue.workdir.checkpoints:_write"],
    "commit": [  # all of a checkpoint is written but the file that says so
        "orbax.checkpoint._src.path.atomicity:CommitFileTemporaryPath.finalize"
    ],
    "delete": ["blue.workdir.checkpoints:_delete"],
    "restore": ["blue.workdir.checkpoints:Checkpoints.restore"],
    "cut back": ["blue.workdir.writer:_cut_back"],
    "best": ["blue.workdir.checkpoints:Checkpoints.save_best"],
    "validation": ["blue.stages.train_profiler:validation_ndcg"],
    "projector": ["blue.workdir.writer:Writer.projector"],
    "export": ["blue.hub.export:write"],
    "write_profiles": ["blue.stages.write_profiles:write_missing"],
    "profile lines": ["blue.stages.write_profiles:append"],
    "profile files": ["blue.stages.write_profiles:finish"],
    "evaluation": ["blue.stages.evaluate:run"],
    "evaluation files": [
        "blue.stages.evaluate:write_text",
        "blue.evaluation.comparison:draw_protocols",
    ],
}
FIRST = {"rollout": 3, "reward": 3, "update": 3, "save": 2, "profile lines": 4}
# what a run tells of itself and no two runs share
CLOCKS = ("time/", "speed/")


# --- inside of a run


class Phases:
    """Which phases the main thread is inside of, how often each began, how long."""

    def __init__(self) -> None:
        self.now: list[str] = []
        self.entered: dict[str, int] = {}
        self.seconds: dict[str, list[float]] = {}
        self.on_enter: Callable[[str, int], None] = lambda phase, nth: None

    def wrap(self, phase: str, target: str) -> None:
        """Have the function `module:name` or `module:Class.name` tell of itself."""
        module, _, name = target.partition(":")
        owner: Any = importlib.import_module(module)
        *classes, name = name.split(".")
        for part in classes:
            owner = getattr(owner, part)
        function = getattr(owner, name)

        @functools.wraps(function)
        def told(*arguments: Any, **options: Any) -> Any:
            self.entered[phase] = self.entered.get(phase, 0) + 1
            self.now.append(phase)
            started = time.monotonic()
            self.on_enter(phase, self.entered[phase])
            try:
                return function(*arguments, **options)
            finally:
                self.now.pop()
                took = time.monotonic() - started
                self.seconds.setdefault(phase, []).append(took)

        setattr(owner, name, told)


def die(phases: Phases, note: Path) -> None:
    """Say where the run is, and end it without another word."""
    note.write_text(json.dumps(phases.now))
    os.kill(os.getpid(), signal.SIGKILL)


def trace_steps(path: Path) -> None:
    """Hashes of each step's data and sampled tokens, one JSON line a step."""
    from blue.rewards import experience

    write = experience.write

    def traced(params: Any, batch: Any, step: int, sampler: Any) -> Any:
        written = write(params, batch, step, sampler)
        data, tokens = hashlib.sha256(), hashlib.sha256()
        data.update(json.dumps([batch.users, batch.prompts]).encode())
        for array in (batch.next_items, batch.negatives, batch.options, batch.answer):
            data.update(np.ascontiguousarray(array).tobytes())
        tokens.update(np.asarray(written.rollout.tokens).tobytes())
        row = [step, data.hexdigest()[:16], tokens.hexdigest()[:16]]
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return written

    experience.write = traced


def inside(spec: dict[str, Any], argv: list[str]) -> int:
    """`blue.main`, killed as `spec` says: `delay` seconds into `phase`'s `nth` call.

    Without a phase, `delay` counts from the start. Without both, nothing is killed.
    """
    from blue import main

    phases = Phases()
    trace_steps(Path(spec["trace"]))
    for phase, targets in PHASES.items():
        for target in targets:
            phases.wrap(phase, target)
    note = Path(spec["note"])
    end = functools.partial(die, phases, note)

    def on_enter(phase: str, nth: int) -> None:
        if (phase, nth) == (spec.get("phase"), spec.get("nth")):
            if not spec["delay"]:
                end()
            threading.Timer(spec["delay"], end).start()

    phases.on_enter = on_enter
    if "phase" not in spec and "delay" in spec:
        timer = threading.Timer(spec["delay"], end)
        timer.daemon = True
        timer.start()
    code = main.main(["blue", *argv])
    note.write_text(json.dumps(phases.seconds))
    return code


def launch(
    spec: dict[str, Any], argv: list[str], *, log: Path
) -> tuple[int, list[str] | dict[str, list[float]]]:
    """One start of the command; its exit code and what it said at its end.

    Code -9 and the phases it was inside of, innermost last; or 0 and the seconds of
    every phase.
    """
    note = Path(spec["note"])
    note.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--inside", json.dumps(spec), *argv]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}
    with log.open("a") as file:
        done = subprocess.run(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    said = json.loads(note.read_text()) if note.exists() else []
    return done.returncode, said


# --- comparison


def lines_of(path: Path) -> list[dict[str, Any]]:
    """JSON lines without wall-clock keys; a torn or unreadable line is an error."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith(CLOCKS)} for r in rows]


def tensorboard_points(folder: Path) -> dict[str, Any]:
    """Step and value of every point that TensorBoard shows, but for wall clocks.

    Read as its server does: points that a restarted run does again are purged.
    """
    from tensorboard.backend.event_processing import plugin_event_accumulator as reader

    events = reader.EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    tags: Any = events.Tags()
    return {
        tag: [(e.step, e.tensor_proto.SerializeToString()) for e in events.Tensors(tag)]
        for tag in tags["tensors"]
        if not tag.startswith((*CLOCKS, "_hparams_"))
    }


def leaves(checkpoint: Path) -> list[np.ndarray]:
    """The arrays of one checkpoint: parameters, moments, counters."""
    import jax
    from orbax.checkpoint import v1 as ocp

    state = ocp.load_checkpointables(str(checkpoint), {"state": None})["state"]
    return [np.asarray(x) for x in jax.tree.leaves(state)]


def files_of(workdir: Path) -> Iterator[tuple[str, Path]]:
    """Files compared byte for byte, by their place in the workdir."""
    for path in sorted(workdir.rglob("*")):
        place = path.relative_to(workdir).as_posix()
        events = place.startswith("tensorboard/") and ".tfevents." in path.name
        lines = place in ("metrics.jsonl", "samples.jsonl")
        clock = path.name == "heartbeat.json"
        if path.is_file() and not (events or lines or clock):
            if not place.startswith("checkpoints/"):
                yield place, path


def differences(whole: Path, killed: Path) -> list[str]:
    """What a killed run left otherwise than the one without a break; [] is equal."""
    found = []
    for name in ("metrics.jsonl", "samples.jsonl"):
        if lines_of(whole / name) != lines_of(killed / name):
            found.append(f"{name}: lines differ")
    ours, theirs = dict(files_of(killed)), dict(files_of(whole))
    for place in sorted({*ours, *theirs}):
        if place not in ours or place not in theirs:
            found.append(f"{place}: {'lost' if place in theirs else 'left over'}")
        elif ours[place].read_bytes() != theirs[place].read_bytes():
            found.append(f"{place}: bytes differ")
    for folder in sorted((whole / "tensorboard").iterdir()):
        other = killed / "tensorboard" / folder.name
        if tensorboard_points(folder) != tensorboard_points(other):
            found.append(f"tensorboard/{folder.name}: points differ")
    commits = {
        side: {
            path.parent.relative_to(side / "checkpoints").as_posix(): path.parent
            for path in (side / "checkpoints").rglob("commit_success.txt")
        }
        for side in (whole, killed)
    }
    # the number of a best says how often it was replaced, not what it is
    newest = {side: _newest(saved) for side, saved in commits.items()}
    if newest[whole].keys() != newest[killed].keys():
        found.append(f"checkpoints: {sorted(newest[killed])}")
        return found
    for place, saved in newest[whole].items():
        other = newest[killed][place]
        same = zip(leaves(saved), leaves(other), strict=True)
        if not all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in same):
            found.append(f"checkpoints/{place}: arrays differ")
    return found


def _newest(saved: dict[str, Path]) -> dict[str, Path]:
    out = {}
    for place, path in saved.items():
        head, _, number = place.rpartition("/")
        if not head.endswith("/best"):
            out[place] = path
        elif head not in out or int(number) > int(out[head].name):
            out[head] = path
    return out


def trace_differences(whole: Path, killed: Path) -> list[str]:
    """Steps of which any repetition saw other data or sampled other tokens."""
    read = lambda path: {
        tuple(json.loads(line)) for line in path.read_text().splitlines()
    }
    return [f"step {row[0]}: {row}" for row in sorted(read(killed) - read(whole))]


# --- many kills


def draw(
    rng: np.random.Generator, phase: str, seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """A moment of the phase: one of its first calls, and a share of what that takes.

    Later ones would be beyond the end of most resumed runs.
    """
    calls = seconds[phase][: FIRST.get(phase, 1)]
    nth = int(rng.integers(len(calls)))
    return {
        "phase": phase,
        "nth": nth + 1,
        "delay": round(float(rng.random()) * calls[nth], 6),
    }


def meshes(root: Path, argv: list[str]) -> dict[str, Any]:
    """One run on 8 devices, killed, on 2 x 2 x 2, killed, and on one to its end.

    Floating-point sums differ between meshes, so what is compared with the run `whole`
    is what must not: the data of each step. The restored bits are compared with the
    saved fingerprint by the library itself, which says at which step it goes on.
    """
    trace, log = root / "meshes.trace", root / "meshes.log"
    shapes = {(1, 8, 1): 3, (2, 2, 2): 3, (1, 1, 1): 0}  # -> update it is killed in
    for shape, nth in shapes.items():
        devices = f"--xla_force_host_platform_device_count={np.prod(shape)}"
        os.environ["XLA_FLAGS"] = f"{OPTIMISATION} {devices}"
        spec = {"trace": str(trace), "note": str(root / "meshes.note")}
        spec |= {"phase": "update", "nth": nth, "delay": 0} if nth else {}
        mesh = zip(("data", "fsdp", "tensor"), shape, strict=True)
        flags = [f"--config.mesh.{axis}={size}" for axis, size in mesh]
        command = [*COMMAND, *argv, *flags, "--config.stage=profiler"]
        code, _ = launch(spec, [*command, f"--workdir={root / 'meshes'}"], log=log)
        assert code == (-signal.SIGKILL if nth else 0), log.read_text()[-3000:]
    data = lambda path: {
        tuple(json.loads(line)[:2]) for line in path.read_text().splitlines()
    }
    told = log.read_text()
    metrics = lines_of(root / "meshes" / "metrics.jsonl")
    return {
        "meshes": [list(shape) for shape in shapes],
        "resumed_at": [int(x) for x in re.findall(r"resumed at step (\d+)", told)],
        "bad_checkpoints": told.count("BAD CHECKPOINT"),
        "metrics_steps": [row["step"] for row in metrics],
        "same_data_each_step": data(trace) == data(root / "whole.trace"),
    }


def main() -> int:
    """Runs, kills, comparison, figures."""
    if sys.argv[1:2] == ["--inside"]:
        return inside(json.loads(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2, help="kills of every phase")
    parser.add_argument("--kills-a-run", type=int, default=6)
    parser.add_argument("--anywhere", type=int, default=6, help="kills by time alone")
    parser.add_argument("--seed", type=int, default=0)
    arguments, argv = parser.parse_known_args()
    root = arguments.workdir.resolve()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ["XLA_FLAGS"] = OPTIMISATION
    rng = np.random.default_rng(arguments.seed)

    def start(name: str, spec: dict[str, Any]) -> tuple[int, Any]:
        spec = {**spec, "trace": str(root / f"{name}.trace")}
        spec["note"] = str(root / f"{name}.note")
        command = [*COMMAND, *argv, f"--workdir={root / name}"]
        return launch(spec, command, log=root / f"{name}.log")

    started = time.monotonic()
    code, seconds = start("whole", {})
    assert code == 0, (root / "whole.log").read_text()[-3000:]
    whole_s = time.monotonic() - started
    started = time.monotonic()
    code, seconds = start("again", {})  # without a kill, with compiled programs
    assert code == 0
    again_s = time.monotonic() - started
    again = differences(root / "whole", root / "again")
    assert not again, again  # otherwise equality would mean nothing
    print(f"a run takes {whole_s:.0f} s, with compiled programs {again_s:.0f} s")

    resumed = ("restore", "cut back")  # phases of a run that was killed before
    wanted = [
        draw(rng, phase, seconds | {name: [0.2] for name in resumed})
        for phase in PHASES
        for _ in range(arguments.rounds)
    ]
    wanted += [
        {"delay": round(float(rng.random()) * again_s, 3)}
        for _ in range(arguments.anywhere)
    ]
    order = rng.permutation(len(wanted))
    kills, run = [], 0
    queue = [wanted[i] for i in order]
    while queue:
        name = f"run{run:02d}"
        mine, queue = queue[: arguments.kills_a_run], queue[arguments.kills_a_run :]
        # in the order in which a run comes by, so that most moments are met
        mine.sort(key=lambda spec: _place(spec, again_s))
        code = -signal.SIGKILL
        while mine and code == -signal.SIGKILL:
            spec = mine.pop(0)
            code, where = start(name, spec)
            met = code == -signal.SIGKILL
            print(name, spec, where if met else code, flush=True)
            if met:
                kills.append({"run": name, **spec, "inside": where})
            elif "phase" in spec and spec["nth"] > 1:  # a resumed run has fewer calls
                mine.append({**spec, "nth": 1})
        queue = mine + queue
        if code == -signal.SIGKILL:
            code, _ = start(name, {})
        found = [f"exit code {code}"] if code else []
        found += differences(root / "whole", root / name) if not code else []
        found += trace_differences(root / "whole.trace", root / f"{name}.trace")
        for kill in kills:
            if kill["run"] == name:
                kill["lost"] = found
        print(name, "equal" if not found else found, flush=True)
        run += 1
        record(arguments.out, kills, arguments.seed, None)
    found = meshes(root, argv)
    print(found)
    record(arguments.out, kills, arguments.seed, found)
    return int(any(kill["lost"] for kill in kills))


def _place(spec: dict[str, Any], again_s: float) -> float:
    if "phase" not in spec:
        return spec["delay"] / again_s * len(PHASES)
    return list(PHASES).index(spec["phase"])


def record(
    out: Path, kills: list[dict[str, Any]], seed: int, meshes: dict[str, Any] | None
) -> None:
    """kills.json: each kill and the counts by the innermost phase it fell into."""
    counts: dict[str, dict[str, int]] = {}
    for kill in kills:
        phase = kill["inside"][-1] if kill["inside"] else "start or between"
        row = counts.setdefault(phase, {"tried": 0, "survived": 0, "lost": 0})
        row["tried"] += 1
        row["lost" if kill["lost"] else "survived"] += 1
    total = {k: sum(row[k] for row in counts.values()) for k in ("tried", "survived")}
    total["lost"] = total["tried"] - total["survived"]
    runs = len({kill["run"] for kill in kills})
    table = {
        "seed": seed,
        "command": COMMAND,
        "runs": runs,
        "total": total,
        "by_phase": dict(sorted(counts.items())),
        "meshes": meshes,
        "kills": kills,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(table, indent=1) + "\n")


OPTIMISATION = "--xla_backend_optimization_level=0"  # half the time to compile
COMMAND = [
    f"--config={ROOT}/configs/quickstart.py:tiny",
    "--config.stages=profiler,write_profiles,evaluate",
    "--config.num_steps=6",
    "--config.checkpoint_every=2",
    "--config.eval_every=3",
]


if __name__ == "__main__":
    sys.exit(main())
