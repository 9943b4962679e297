"""Arguments of the Python API that describe users: checked, and cleaned like logs."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from blue.data.clean import clean_line
from blue.errors import UserError

# Of one user: a number for each title, None or NaN where there is none; or None.
Ratings = Sequence[float | int | None] | np.ndarray | None


def check_length(name: str, values: Sequence[Any], users: int) -> None:
    """Raises `UserError` where `values` has not one entry for each of the users."""
    if len(values) != users:
        raise UserError(f"{name} is of {len(values)} users, must be of {users}")


def clean_histories(histories: Sequence[Sequence[str]]) -> list[list[str]]:
    """The titles of each user as readers of logs clean them.

    Raises:
        UserError: one user's titles in place of a list of users, something that is no
            text, or a title that is empty once cleaned.
    """
    if isinstance(histories, str) or any(isinstance(h, str) for h in histories):
        raise UserError(
            "histories must be a list of users, each a list of titles; one user is "
            "[[title, title]]"
        )
    return [_clean_titles(h, f"histories[{user}]") for user, h in enumerate(histories)]


def _clean_titles(history: Sequence[str], where: str) -> list[str]:
    titles = []
    for place, title in enumerate(history):
        if not isinstance(title, str):
            kind = type(title).__name__
            raise UserError(f"{where}[{place}] is {kind}, must be a title")
        titles.append(clean_line(title))
        if not titles[-1]:
            raise UserError(f"{where}[{place}] is a title without visible text")
    return titles


def clean_ratings(
    ratings: Sequence[Ratings] | None,
    histories: Sequence[Sequence[str]],
) -> list[Float32[np.ndarray, " h"]]:
    """One number for each title of each user, as in a log; NaN where there is none.

    Raises:
        UserError: another number of ratings than titles, or what is no finite number.
    """
    if ratings is None:
        ratings = [None] * len(histories)
    check_length("ratings", ratings, len(histories))
    return [
        _numbers(given, len(history), f"ratings[{user}]")
        for user, (given, history) in enumerate(zip(ratings, histories, strict=True))
    ]


def _numbers(ratings: Ratings, count: int, where: str) -> Float32[np.ndarray, " h"]:
    if ratings is None:
        return np.full(count, np.nan, np.float32)
    if len(ratings) != count:
        raise UserError(f"{where} has {len(ratings)} ratings, must have {count}")
    found = []
    for place, rating in enumerate(ratings):
        number = math.nan if rating is None else rating
        if not isinstance(number, numbers.Real) or math.isinf(number):
            raise UserError(f"{where}[{place}] is {rating!r}, must be a finite number")
        found.append(float(number))
    return np.array(found, np.float32)
