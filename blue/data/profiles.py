"""profiles.jsonl: making its rows, and reading files of ours or others."""

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from blue.errors import UserError


def profile_row(
    user_id: str,
    profile: str,
    num_tokens: int,
    finished: bool,
    *,
    step: int,
    model: str,
) -> dict[str, Any]:
    """A row: the profile, whether it has an end token, and the profiler that wrote it.

    num_tokens: of the profile, end token included. step: training steps of the model.
    """
    return {
        "user_id": user_id,
        "profile": profile,
        "num_tokens": num_tokens,
        "finished": finished,
        "step": step,
        "model": model,
    }


def read_profiles(path: str, user_ids: Sequence[str], *, field: str) -> list[str]:
    """The profiles of `user_ids`, in their order, from the file `path`.

    Each line is an object with `user_id` and `profile`; other keys and users are
    ignored. Raises ValueError, with the config field `field`, for a missing file, a
    line that is no such object, a repeated user or a missing one.
    """
    if not epath.Path(path).is_file():
        raise UserError(f"{field}={path}: there is no such file")
    found: dict[str, str] = {}
    with epath.Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{field}={path}, line {number}"
            user, profile = _user_and_profile(line, where)
            if user in found:
                raise UserError(
                    f"{where}: user_id {user!r} has a profile already; the file must "
                    "hold one line a user"
                )
            found[user] = profile
    missing = [user for user in user_ids if user not in found]
    if missing:
        raise UserError(
            f"{field}={path}: {len(missing)} of the {len(user_ids)} users needed have "
            f"no profile, the first is user_id {missing[0]!r}; all must be there"
        )
    return [found[user] for user in user_ids]


def _user_and_profile(line: bytes | str, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        row = None
    if not isinstance(row, dict) or not {"user_id", "profile"} <= row.keys():
        raise UserError(
            f"{where}: {line.strip()[:60]!r} must be a JSON object with the keys "
            "user_id and profile"
        )
    if not isinstance(row["profile"], str):
        raise UserError(f"{where}: profile={row['profile']!r} must be a text")
    return str(row["user_id"]), row["profile"]
