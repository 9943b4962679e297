"""Values of cells of any file: ids, times, ratings, text and lists."""

import ast
import json
import math
import re
from datetime import UTC, datetime
from typing import Any

_MAX_LIST = 10_000  # at most, characters of a cell that is read as a list


def read_id(value: Any) -> str:
    """The id as text, so that leading zeros stay; empty where there is none."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float):  # a column with gaps: 7.0 is the id 7, NaN is a gap
        value = int(value) if value.is_integer() else None
    return "" if value is None else read_text(value).strip()


def bad_id(text: str) -> str:
    """Why `text` cannot be an id; empty if it can."""
    if not text:
        return "missing field"
    return "" if text.isprintable() else "unreadable id"


def read_seconds(value: Any) -> int | None:
    """Seconds since 1970; larger numbers are divided by 1000 until they are in
    range."""
    if isinstance(value, str):
        try:
            number = int(value)
        except ValueError:
            return _seconds_of_text(value.strip())
    elif isinstance(value, datetime):
        return math.floor(value.replace(tzinfo=value.tzinfo or UTC).timestamp())
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        number = math.floor(value)
    else:
        return None
    if abs(number) > 10**20:
        return None
    while abs(number) > 100_000_000_000:  # milliseconds; or micro- or nanoseconds
        number //= 1000
    return number


_UTC = re.compile(r"\s*(UTC|GMT)$")  # as databases write them
_OFFSET = re.compile(r"\s+(?=[+-]\d\d:?\d\d$)")


def _seconds_of_text(text: str) -> int | None:
    try:
        return read_seconds(float(text))
    except ValueError:
        pass
    if text[4:5] == "/":  # 2024/05/01
        text = text.replace("/", "-", 2)
    try:
        text = _OFFSET.sub("", _UTC.sub("+00:00", text))
        return read_seconds(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def read_rating(value: Any) -> float | None:
    """The number, NaN for an empty cell, None for what is not a number."""
    if value is None or isinstance(value, str) and not value.strip():
        return math.nan
    if isinstance(value, bool) or isinstance(value, list | dict):
        return None
    try:
        rating = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return rating if abs(rating) < 1e30 else None  # NaN too; float32 ends at 3e38


def read_text(value: Any, depth: int = 3) -> str:
    """A cell as text; lists, also those written out as text, are joined by commas."""
    if isinstance(value, str) and depth and not value.startswith("["):
        return value
    missing = value is None or isinstance(value, float) and math.isnan(value)
    if missing or not depth:  # deeper lists are left out
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = _list(value)
    if isinstance(value, dict):
        value = [f"{key}: {read_text(part, depth - 1)}" for key, part in value.items()]
    if isinstance(value, list):
        return ", ".join(filter(None, (read_text(part, depth - 1) for part in value)))
    return str(value)


def _list(text: str) -> list | str:
    """The list in the text, as JSON or a Python literal, never run; else the text."""
    if len(text) > _MAX_LIST:
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            return list(parse(text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text
