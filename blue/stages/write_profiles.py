"""Stage `write_profiles`: a profile of every user, in profiles.jsonl.

A user's history is all of the user's interactions in the log. Finished profiles are
appended to a part file, and a resumed run continues with the users missing there. A
profile depends on profiler, history, seed and user id. It does not depend on batches,
interruptions or the other users.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from blue.data.log import Log
from blue.data.profiles import profile_row
from blue.errors import UserError
from blue.hub.model import Model
from blue.inference.continuous import (
    Job,
    WriteProfiles,
    make_profile_writer,
    prompt_lengths,
)
from blue.inference.generate import Profile
from blue.runtime import distributed, files, preemption, programs, watchdog
from blue.runtime.progress import Progress
from blue.runtime.shapes import Shapes
from blue.runtime.sharding import batch_shards
from blue.sources.open_run import Run, open_run
from blue.sources.profiler import load_profiler
from blue.sources.role import check_divides, precision_of, stage_id
from blue.sources.text import prompt_format_of, templates_of
from blue.text import queries
from blue.workdir.checkpoints import fingerprint

logger = logging.getLogger("blue")
STAGE = "write_profiles"
WINDOW = 2048  # users whose prompts are made and sorted by length at a time


# --- users


def users_to_write(log: Log, path: str) -> tuple[Int[np.ndarray, " U"], list[str]]:
    """Users to write, as ascending indices of the log, and ids that are not in it.

    path: a file with one user id a line (a repeated one counts once); empty: all users
    of the log.
    """
    if not path:
        return np.arange(len(log.user_ids)), []
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"write_profiles.users={path}: {reason}") from None
    wanted = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not wanted:
        raise UserError(f"write_profiles.users={path}: no user id in it, one a line")
    numbers = {user_id: number for number, user_id in enumerate(log.user_ids)}
    strangers = [user_id for user_id in wanted if user_id not in numbers]
    known = sorted(numbers[user_id] for user_id in wanted if user_id in numbers)
    return np.array(known, np.int64), strangers


def sampling_id(user_id: str) -> int:
    """The number that keys a user's sampling: 31 bits of a hash of the id."""
    digest = hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=4)
    return int.from_bytes(digest.digest(), "little") >> 1


def make_jobs(
    log: Log, users: Int[np.ndarray, " U"], prompt_format: queries.PromptFormat
) -> Iterator[Job]:
    """The users' prompts, sorted by length within a window to save padding."""
    bounds = np.searchsorted(log.user, np.arange(len(log.user_ids) + 1))
    for start in range(0, len(users), WINDOW):
        window = []
        for user in users[start : start + WINDOW].tolist():
            own = slice(bounds[user], bounds[user + 1])
            prompt = queries.profile_prompt(
                prompt_format, log.item[own], log.rating[own], log.titles
            )
            window.append(Job(user, sampling_id(log.user_ids[user]), prompt))
        yield from sorted(window, key=lambda job: len(job.prompt))


# --- files


def describe(
    config: ConfigDict, log: Log, user_ids: list[str], profiler: Model
) -> dict[str, Any]:
    """What the profiles are made from. Equal `fingerprint`s mean equal profiles."""
    digest = hashlib.sha256()
    weights, wording = fingerprint(profiler.params), templates_of(config)
    settings = [
        *(str(profiler.cfg), weights, profiler.tokenizer.fingerprint, wording),
        *(config.prompts.history_items, config.max_prompt_tokens),
        *(config.max_completion_tokens, config.evaluate.sampling_temperature),
        *(config.seed, config.dtype.compute),
    ]
    for texts in (settings, user_ids, log.user_ids, log.titles):
        digest.update(json.dumps(texts).encode())
    for array in (log.user, log.item, log.rating):
        digest.update(array.tobytes())
    return {
        "fingerprint": digest.hexdigest()[:16],
        "users": len(user_ids),
        "seed": config.seed,
        "step": profiler.step,
        "model": profiler.name,
    }


def to_line(user_id: str, profile: Profile, profiler: Model) -> bytes:
    """A user's line of profiles.jsonl."""
    row = profile_row(user_id, *profile, step=profiler.step, model=profiler.name)
    # ASCII: no separator that some reader takes for a line end, no lone surrogate.
    return json.dumps(row).encode() + b"\n"


def append(path: str | os.PathLike[str], lines: Iterable[bytes]) -> None:
    """Appends lines to a private file (mode 0600) and waits until they are on disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, lines: Iterable[bytes]) -> None:
    """Replaces `path` in one step: a reader finds the former file or the new one."""
    with files.whole_file(path, private=True) as draft:
        append(draft, lines)


def read_part(path: Path, facts: dict[str, Any]) -> dict[str, int] | None:
    """Where the line of each finished user starts in the part file.

    None where no part file begins with these `facts`. The file is cut off at the first
    line that a crash left incomplete.
    """
    if not path.exists():
        return None
    places, end = {}, 0
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line) if line.endswith(b"\n") else {}
                if end:
                    places[row["user_id"]] = end
                elif row["fingerprint"] != facts["fingerprint"]:
                    return None
            except (ValueError, KeyError, TypeError):
                break
            end += len(line)
    if jax.process_index() == 0:
        os.truncate(path, end)
    return places if end else None


def is_finished(final: Path, facts: dict[str, Any]) -> bool:
    """Whether profiles.jsonl holds the profiles of these `facts` already."""
    try:
        found = json.loads(final.with_suffix(".json").read_bytes())
        return final.exists() and found["fingerprint"] == facts["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


# --- the stage


def make_write(
    run: Run,
    profiler: Model,
    prompt_format: queries.PromptFormat,
    *,
    num_users: int,
) -> WriteProfiles:
    """(params, jobs) -> profiles; compiles all programs of the stage."""
    config, mesh = run.config, run.mesh
    # fewer slots for few users: slots that are never refilled would be idle
    shards = batch_shards(mesh)
    few = max(num_users // 4 // shards, 1) * shards
    size = min(config.write_profiles.batch_size, few)
    least = len(queries.profile_prompt(prompt_format, [], [], []))
    refill_size = max(size // 8 // shards, 1) * shards
    lengths = prompt_lengths(least, config.max_prompt_tokens)
    return make_profile_writer(
        profiler.cfg,
        profiler.tokenizer,
        mesh,
        Shapes(size, max(lengths), 1, config.max_completion_tokens),
        precision_of(config),
        refills=[Shapes(refill_size, length) for length in lengths],
        temperature=config.evaluate.sampling_temperature,
        key=(config.seed, stage_id(STAGE)),
    )


def write_missing(
    run: Run,
    profiler: Model,
    part: Path,
    *,
    users: Int[np.ndarray, " U"],
    already: int,
) -> None:
    """Appends the profiles of `users` to the part file, which has `already` others."""
    log, prompt_format = run.log, prompt_format_of(run.config, profiler)
    write = make_write(run, profiler, prompt_format, num_users=len(users))
    programs.wait()
    total = already + len(users)
    progress = Progress(STAGE, first=already, total=total, unit="user")
    done, token_slots, tokens = already, 0, 0
    for written in write(profiler.params, make_jobs(log, users, prompt_format)):
        if jax.process_index() == 0:
            append(
                part,
                [
                    to_line(log.user_ids[user], profile, profiler)
                    for user, profile in written.profiles
                ],
            )
        done += len(written.profiles)
        token_slots += written.token_slots
        tokens += written.tokens
        progress.update(done - 1, {"padding": 1 - tokens / token_slots})
        preemption.leave_if_requested(f"{done} of {total} profiles are written")
    progress.end()
    waste = 100 * (1 - tokens / token_slots)
    logger.info("padding waste %.1f%% of token slots", waste)


def finish(
    final: Path,
    part: Path,
    facts: dict[str, Any],
    user_ids: list[str],
    last: list[bytes],
) -> None:
    """Sorts the lines of the part file by `user_ids`, `last` after them.

    If interrupted, the part file still exists and this is done again.
    """
    places = read_part(part, facts)
    assert places is not None and places.keys() == set(user_ids)
    with part.open("rb") as found:

        def lines() -> Iterator[bytes]:
            for user_id in user_ids:
                found.seek(places[user_id])
                yield found.readline()
            yield from last

        text = json.dumps(facts, indent=1) + "\n"
        replace(final.with_suffix(".json"), [text.encode()])
        replace(final, lines())
    part.unlink()


def run(config: ConfigDict, workdir: str) -> None:
    """Writes profiles.jsonl, one line a user in the log's order, mode 0600.

    Ids of `write_profiles.users` that the log does not know come last, with an empty
    profile. profiles.json says what the profiles are made from. A second run with the
    same profiler, log and settings keeps them; any other run replaces all of them.
    """
    run = open_run(config, workdir)
    log = run.log
    size = config.write_profiles.batch_size
    check_divides(size, "write_profiles.batch_size", run.mesh)
    users, strangers = users_to_write(log, config.write_profiles.users)
    profiler = load_profiler(run, "trained") or load_profiler(run, "base")
    assert profiler is not None
    user_ids = [log.user_ids[user] for user in users]
    facts = describe(config, log, [*user_ids, *strangers], profiler)
    final = Path(workdir) / "profiles.jsonl"
    part = Path(workdir) / "profiles.jsonl.part"
    if strangers:
        logger.warning(
            "%d users of %s are not in the log: their profile is empty",
            len(strangers),
            config.write_profiles.users,
        )

    places = read_part(part, facts)
    if places is None and is_finished(final, facts):
        logger.info("%s has all %d profiles already", final, facts["users"])
        return
    if places is None:
        old = next((path for path in (part, final) if path.exists()), None)
        if old:
            logger.warning(
                "%s is of another profiler, log, list of users or setting: all "
                "profiles are written anew",
                old,
            )
        if jax.process_index() == 0:
            part.parent.mkdir(parents=True, exist_ok=True)
            replace(part, [json.dumps(facts).encode() + b"\n"])
        places = {}
    watchdog.sign_of_life("evaluate")
    missing = users[[user_id not in places for user_id in user_ids]]
    logger.info("profiler: %s; %d profiles to write", profiler.name, len(missing))
    if len(missing):
        write_missing(run, profiler, part, users=missing, already=len(places))
    empty = Profile("", 0, True)
    last = [to_line(user_id, empty, profiler) for user_id in strangers]
    # processes wait for the first: a later stage may read the file
    distributed.on_process_0(lambda: finish(final, part, facts, user_ids, last))
    logger.info("%d profiles in %s", facts["users"], final)
