"""The interaction log that every reader returns, and the cleaning of its text."""

import re
import unicodedata
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64


class Log(NamedTuple):
    """Events sorted by (user, timestamp, file order), and the catalogue's text."""

    name: str
    user_ids: list[str]  # sorted; every user has at least one event
    item_ids: list[str]  # the whole catalogue, also items without events
    titles: list[str]  # an item's line in a history: one clean line, not empty
    texts: list[str]  # what the encoder reads of an item
    user: Int32[np.ndarray, " n"]  # index into user_ids
    item: Int32[np.ndarray, " n"]  # index into item_ids
    timestamp: Int64[np.ndarray, " n"]  # seconds since 1970, UTC
    rating: Float32[np.ndarray, " n"]  # NaN: none given
    rows_read: int  # of all files, broken ones included
    rows_bad: dict[str, int]  # broken rows that were skipped, by reason
    columns: dict[str, list[str]] = {}  # more of each item by name; "" where missing


# What may hide in a title without being seen. Whitespace is collapsed instead.
_INVISIBLE = re.compile(
    "["
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # control characters
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f"  # soft hyphen, fillers
    "\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f"  # zero width, bidi
    "\ud800-\udfff"  # lone surrogates
    "\ufe00-\ufe0f\ufeff\ufff0-\ufffb\ufffe\uffff"  # variation selectors, marks
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # shorthand and music format
    "\U000e0000-\U000e0fff"  # tags and more variation selectors
    "]+"
)


def clean_line(text: str, max_chars: int = 300) -> str:
    """One line of visible text: NFKC, nothing hidden in it, at most `max_chars` long.

    Control, bidi, zero-width and tag characters are dropped, runs of whitespace (line
    breaks too) become one space. Applying it twice changes nothing.
    """
    if not (text.isascii() and text.isprintable()):  # most titles need no Unicode work
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
        text = unicodedata.normalize("NFKC", text)  # joins what was held apart
    return " ".join(text.split())[:max_chars].rstrip()
