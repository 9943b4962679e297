"""Untrusted text as one clean line."""

import re
import unicodedata

# Invisible characters. Whitespace is collapsed instead.
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
    """One line of visible text: NFKC, no invisible characters, at most `max_chars`.

    Control, bidi, zero-width and tag characters are dropped, runs of whitespace (line
    breaks too) become one space. Applying it twice changes nothing.
    """
    if not (text.isascii() and text.isprintable()):  # most titles need no Unicode work
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
        text = unicodedata.normalize("NFKC", text)  # now joined characters
    return " ".join(text.split())[:max_chars].rstrip()
