"""Flips single bits of a checkpoint's files: is any of them read without notice?

    python tools/faults/flip_bits.py [--flips=200] [--seed=0] [--out=FILE.json]

Two steps of the training state of a tiny model are saved. Each flip changes one bit, of
any file of the newer one (files by turns, bits at random), and restores. Either the
step is passed over for the older one, or what is restored is the same to the bit. Not
every byte of a file is needed to read it. Anything else is a miss; exit code 1. What
was saved is compared byte for byte, not by the fingerprint that is on trial. With
--blind that fingerprint is one number for all, to see what is missed without it.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # BLUE from this clone
from blue.models import families
from blue.models.params import abstract_params, make_init
from blue.runtime.sharding import make_mesh
from blue.training import optimizers
from blue.training.optimizers import make_optimizer, make_schedule
from blue.workdir import checkpoints as files
from blue.workdir.checkpoints import Checkpoints


def flip_and_restore(folder: Path, flips: int, seed: int) -> Counter:
    """How often each (kind of file, outcome) came."""
    mesh = make_mesh(1, -1, 1)
    schedule = make_schedule(1e-3, kind="constant", warmup_steps=1, num_steps=9)
    optimizer = make_optimizer(schedule, b1=0.9, b2=0.95, eps=1e-8, grad_clip=1.0)
    cfg = families.preset("tiny_qwen3")
    shapes = abstract_params(cfg, mesh, "float32")
    checkpoints = Checkpoints(folder, keep=2, milestone_every=0)
    saved = {}
    for step in (10, 20):
        params = make_init(cfg, mesh, "float32")(np.uint32(step))
        state = optimizers.make_init_state(shapes, optimizer, mesh)(params)
        checkpoints.save(step, state, {"note": "as a stage leaves it"})
        saved[step] = contents(state)
    abstract = optimizers.abstract_state(shapes, optimizer, mesh)
    rng, outcomes = np.random.default_rng(seed), Counter()
    files = [p for p in sorted((folder / "20").rglob("*")) if p.is_file()]
    files = [p for p in files if p.stat().st_size]
    for number in range(flips):
        path = files[number % len(files)]
        good = path.read_bytes()
        bad, bit = bytearray(good), int(rng.integers(8 * len(good)))
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        found, meta = checkpoints.restore(abstract)
        same = contents(found) == saved[meta["step"]]
        outcome = {10: "passed over", 20: "the same bits"}[meta["step"]]
        kind = "array data" if path.parent.name == "d" else path.name
        outcomes[kind, outcome if same else "MISSED"] += 1
        path.write_bytes(good)
    return outcomes


def contents(state: Any) -> list[tuple[str, str, bytes]]:
    """Name, dtype and bytes of every leaf."""
    return [
        (jax.tree_util.keystr(path), str(leaf.dtype), np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def main() -> int:
    """Flips, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--blind", action="store_true", help="without a fingerprint")
    args = parser.parse_args()
    if args.blind:
        files.fingerprint = lambda tree: 0
    for name in ("blue", "asyncio"):  # each flip would be a page
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = flip_and_restore(Path(scratch) / "stage", args.flips, args.seed)
    by_outcome = Counter()
    for (_, outcome), count in outcomes.items():
        by_outcome[outcome] += count
    result = {
        "flips": args.flips,
        "seed": args.seed,
        "blind": args.blind,
        "passed over": by_outcome["passed over"],
        "the same bits": by_outcome["the same bits"],
        "missed": by_outcome["MISSED"],
        "files": {f"{kind}: {o}": n for (kind, o), n in sorted(outcomes.items())},
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
