"""Replays a batch whose update was skipped, to find the first number not finite.

python -m blue.training.replay RUN FILE

RUN is the workdir and FILE one of RUN/bad_batches/STAGE-STEP.npz. It rebuilds the
stage's update from RUN/config.json and the newest checkpoint at or before that step. It
runs the update on the batch and prints the loss and the gradient's norm for every
parameter. It names the first term that is not finite and its row (user, by its number
in the log). It also says whether the optimizer's step would be finite. RUN is only
read, except for caches that reading a run makes.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blue.errors import UserError
from blue.hub.model import Model
from blue.inference import scoring
from blue.inference.packing import RowShapes
from blue.models import lora
from blue.models.params import shapes_of
from blue.runtime import sharding
from blue.runtime.shapes import Shapes
from blue.sources import adapters
from blue.sources.encoder import load_encoder
from blue.sources.open_run import open_run
from blue.sources.profiler import load_profiler_base
from blue.sources.role import add_adapters, precision_of, stage_checkpoints
from blue.training import optimizers, session
from blue.training.contrastive import contrastive_gradients
from blue.training.optimizers import apply_gradients, non_finite_leaves
from blue.training.policy import Objective, UpdateBatch, grpo_gradients
from blue.training.supervised import sft_gradients
from blue.workdir import bad_batches, record


class Term(NamedTuple):
    """A quantity on the way to the loss: [rows, ...], and where it counts."""

    name: str
    values: jax.Array | np.ndarray
    counts: jax.Array | np.ndarray | bool = True


class StageReplay(NamedTuple):
    """A stage's update in pieces."""

    model: Model
    optimizer: optax.GradientTransformation
    batch: tuple  # on the devices, as `gradients` takes it
    gradients: Callable  # (trained, frozen, *batch) -> (loss, gradients)
    terms: Callable[[Any], list[Term]]  # of params, in the order of computation
    row_alone: Callable[[int], tuple] | None  # the batch with one row that counts


# --- the stages


def profiler(config: ConfigDict, model: Model, mesh: Mesh, kept: dict) -> StageReplay:
    """The GRPO update: the batch's rewards and advantages, then log-probabilities."""
    batch = UpdateBatch(*(kept[f] for f in UpdateBatch._fields))
    device = sharding.put(batch, sharding.by_batch(mesh))
    B, G, C = batch.tokens.shape
    temperature, precision = config.sampling_temperature, precision_of(config)
    gradients = grpo_gradients(
        model.cfg, mesh, precision,
        Objective(temperature, config.clip_eps, config.kl_coef),
        batch=B, microbatch=config.microbatch_size,
    )  # fmt: skip
    shapes = Shapes(B, batch.prompt.shape[1], G, C)
    logprobs = scoring.make_completion_logprobs(
        model.cfg, mesh, shapes, precision, temperature=temperature
    )

    def loss_and_gradients(trained: Any, frozen: Any, b: Any) -> tuple[Any, Any]:
        grads, sums, tokens = gradients(trained, frozen, b)
        return sums.loss / tokens, grads

    def terms(params: Any) -> list[Term]:
        counts = batch.mask & batch.teaching[:, :, None]
        args = device.prompt, device.prompt_mask, device.tokens
        current = sharding.to_host(logprobs(params, *args))
        names = sorted(n for n in kept if n.startswith("reward_"))
        names.sort(key=lambda n: n == "reward_total")  # the sum after its parts
        rewards = [Term(n.replace("_", "/", 1), kept[n]) for n in names]
        return [
            *([] if batch.teaching.any() else rewards),  # some rewards may be NaN
            Term("advantage", batch.advantages, batch.teaching),
            Term("reference log-probability", batch.ref_logprobs, counts),
            Term("log-probability", current, counts),
            Term("sampler's log-probability", batch.sampler_logprobs, batch.mask),
        ]

    def row_alone(row: int) -> tuple:
        only = batch.teaching & (np.arange(B) == row)[:, None]
        return (device._replace(teaching=sharding.put(only, device.teaching.sharding)),)

    _, optimizer = session.optimizer_of(config, config, b2=config.adam_b2)
    return StageReplay(
        model, optimizer, (device,), loss_and_gradients, terms, row_alone
    )


def warm_start(config: ConfigDict, model: Model, mesh: Mesh, kept: dict) -> StageReplay:
    """The supervised update: log-probabilities of the given completions."""
    batch = tuple(kept[f"input_{n}"] for n in range(4))
    prompt, prompt_mask, tokens, mask = sharding.put(batch, sharding.by_batch(mesh))
    gradients = sft_gradients(model.cfg, mesh, precision_of(config))
    shapes = Shapes(*prompt.shape, *tokens.shape[1:])
    logprobs = scoring.make_completion_logprobs(
        model.cfg, mesh, shapes, precision_of(config), temperature=1.0
    )

    def terms(params: Any) -> list[Term]:
        current = logprobs(params, prompt, prompt_mask, tokens)
        return [Term("log-probability", sharding.to_host(current), batch[3])]

    def row_alone(row: int) -> tuple:
        only = batch[3] & (np.arange(len(batch[3])) == row)[:, None, None]
        return prompt, prompt_mask, tokens, sharding.put(only, mask.sharding)

    section = config.warm_start
    _, optimizer = session.optimizer_of(config, section, b2=section.adam_b2)
    device = prompt, prompt_mask, tokens, mask
    return StageReplay(model, optimizer, device, gradients, terms, row_alone)


def encoder(config: ConfigDict, model: Model, mesh: Mesh, kept: dict) -> StageReplay:
    """The contrastive update: vectors of the users' texts and of their items."""
    section = config.train_encoder
    inputs = [kept[f"input_{n}"] for n in range(7)]  # packed rows, places, item ids
    device = sharding.put(tuple(inputs), sharding.by_batch(mesh))
    gradients = contrastive_gradients(
        model.cfg,
        precision_of(config),
        similarity_temperature=section.similarity_temperature,
    )

    def terms(params: Any) -> list[Term]:
        (num_rows, tokens), (_, texts) = inputs[0].shape, inputs[4].shape
        shapes = RowShapes(num_rows, tokens, texts)
        embed = scoring.make_embed(model.cfg, mesh, shapes, precision_of(config))
        vectors = sharding.to_host(embed(params, *device[:5]))
        users, items = np.split(vectors.reshape(-1, vectors.shape[-1])[inputs[5]], 2)
        found = (("vector of the user's text", users), ("vector of the item", items))
        return [Term(name, of_rows) for name, of_rows in found]

    _, optimizer = session.optimizer_of(config, section, b2=config.adam_b2)
    return StageReplay(model, optimizer, device, gradients, terms, None)


STAGES = {"profiler": profiler, "warm_start": warm_start, "encoder": encoder}


# --- the replay


def replay(run: str, file: str) -> dict[str, Any]:
    """The results that `describe` prints: stage, step, parameters_of_step, loss,
    grad_norm, grad_norms, user, left_out, skipped. first: term, row and place in it;
    None if all is finite. broken: leaves of the state that the optimizer's step would
    make non-finite."""
    name, step, kept = bad_batches.load(file)
    if name not in STAGES:
        raise UserError(f"{file}: stage {name} is none of {', '.join(STAGES)}")
    config = record.load(run)
    opened = open_run(config, run)
    mesh = opened.mesh
    role = "encoder" if name == "encoder" else "profiler"
    load = {"encoder": load_encoder, "profiler": load_profiler_base}
    base = load[role](opened, stage=name)
    model = add_adapters(config, role, base, mesh, stage=name)
    stage = STAGES[name](config, model, mesh, kept)
    frozen, trained = lora.split(model.params)
    state, saved = restore(run, name, step, config, stage, mesh, trained)

    loss, grads = jax.jit(stage.gradients)(state.params, frozen, *stage.batch)
    norms = {leaf: float(np.linalg.norm(g)) for leaf, g in _leaves(grads).items()}
    first = first_bad(stage.terms(lora.join(frozen, state.params)))
    if first is None and not all(map(np.isfinite, norms.values())) and stage.row_alone:
        first = first_bad_gradient(stage, state.params, frozen)

    def step_taken(state: Any, grads: Any) -> Any:
        updates, moments = stage.optimizer.update(grads, state.opt_state, state.params)
        new = optax.apply_updates(state.params, updates)
        taken, _ = apply_gradients(state, grads, loss, stage.optimizer)
        return {"params": new, "opt_state": moments}, taken.skipped - state.skipped

    after, skipped = jax.jit(step_taken)(state, grads)
    return {
        "stage": name,
        "step": step,
        "parameters_of_step": saved,
        "loss": float(loss),
        "grad_norm": float(np.sqrt(sum(n * n for n in norms.values()))),
        "grad_norms": norms,
        "first": first,
        "user": int(kept["user"][first[1]]) if first and "user" in kept else None,
        "left_out": int((~kept["teaching"]).sum()) if "teaching" in kept else 0,
        "broken": non_finite_leaves(after),
        "skipped": bool(skipped),
    }


def restore(
    run: str,
    name: str,
    step: int,
    config: ConfigDict,
    stage: StageReplay,
    mesh: Mesh,
    trained: Any,
) -> tuple[Any, int]:
    """The newest checkpoint of at most `step` steps."""
    shapes = shapes_of(trained)
    abstract = optimizers.abstract_state(shapes, stage.optimizer, mesh)
    folder = Path(run) / "checkpoints" / name
    steps = [int(p.name) for p in folder.glob("[0-9]*") if p.name.isdecimal()]
    usable = [s for s in steps if s <= step]
    if not usable:
        raise UserError(
            f"{folder}: no checkpoint at or before step {step}, it has {sorted(steps)}"
        )
    checkpoints = stage_checkpoints(config, run, name)
    state, meta = checkpoints.restore(abstract, max(usable))
    adapters.check(meta, stage.model, checkpoints.directory)
    return state, meta["step"]


def first_bad(terms: list[Term]) -> tuple[str, int, tuple[int, ...]] | None:
    """The first term that has a non-finite number where it counts: its name, the row
    and the place in the row."""
    for term in terms:
        counts = np.asarray(term.counts)
        bad = np.argwhere(~np.isfinite(np.asarray(term.values)) & counts)
        if len(bad):
            row, *place = bad[0].tolist()
            return term.name, row, tuple(place)
    return None


def first_bad_gradient(
    stage: StageReplay, trained: Any, frozen: Any
) -> tuple[str, int, tuple] | None:
    """The first row whose gradient, taken alone, is not finite."""
    assert stage.row_alone
    gradients = jax.jit(stage.gradients)
    for row in range(jax.tree.leaves(stage.batch)[0].shape[0]):
        _, grads = gradients(trained, frozen, *stage.row_alone(row))
        bad = non_finite_leaves(grads)
        if bad:
            return f"gradient of {bad[0]}", row, ()
    return None


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(sharding.to_host(tree))
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): np.asarray(leaf, np.float64) for path, leaf in found}


def describe(found: dict[str, Any]) -> list[str]:
    """The results of `replay`, as lines of text."""
    at = found["parameters_of_step"]
    lines = [
        f"{found['stage']}, step {found['step']}, with the parameters of step {at}",
        f"loss {found['loss']:.6g}, gradient norm {found['grad_norm']:.6g}",
        *(f"  {leaf:<24} {norm:.6g}" for leaf, norm in found["grad_norms"].items()),
    ]
    if found["left_out"]:
        lines.append(f"{found['left_out']} profiles taught nothing: no valid reward")
    if found["first"]:
        term, row, place = found["first"]
        user = "" if found["user"] is None else f", user {found['user']} of the log"
        lines.append(f"first not finite: {term}, row {row}{user}, at {list(place)}")
    elif found["broken"]:
        leaves = ", ".join(found["broken"][:5])
        lines.append(f"the optimizer's step would break {leaves}")
    elif not found["skipped"]:
        lines.append(
            "all is finite: what broke it came with the parameters of a later step, or "
            "from the machine"
        )
    return lines


def main(argv: list[str]) -> None:
    """Replays the batch that the command line names, and prints the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("file")
    given = parser.parse_args(argv)
    print("\n".join(describe(replay(given.run, given.file))))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, ValueError) as error:
        sys.exit(f"error: {error}")
