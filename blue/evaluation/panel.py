"""The profile quality panel: statistics of profiles without a language model.

Pure functions over text measure faithfulness, degeneration, privacy, leaks and length.
They take every text: an empty one, one of punctuation alone, and scripts without
spaces, where each character is a word. A share of nothing is NaN and left out of means.
Time is linear in the number of words and titles: each title is read once.
"""

import functools
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from blue.evaluation import metrics
from blue.text.rule_profiles import profile_word_stats
from blue.text.templates import TEMPLATES
from blue.text.words import (
    EMPTY_IN_NAMES,
    INSIDE_NAMES,
    folded_words,
    ngrams,
    sentences,
)

Users = Sequence[str] | Int[np.ndarray, " n"]  # whose each row is
LABELS = {  # statistic -> what a table calls it
    "mention_hallucination": "mentions not in history",
    "mentions": "mentions",
    "speculation_rate": "sentences about the future",
    "target_leak": "leaks of the target",
    "history_leak": "target in history",
    "copied": "words in copied 4-grams",
    "in_history": "words in history",
    "boilerplate": "5-grams shared with other users",
    "repeated_3grams": "repeated 3-grams",
    "repeated_4grams": "repeated 4-grams",
    "distinct_words": "distinct words",
    "compression": "zip ratio",
    "empty": "empty",
    "words": "words",
    "words_p95": "words, 95th percentile",
}
SIMILAR = 0.6  # share of a mention's words that a supporting title has
MENTION_WORDS = 30  # a longer span is no title
LEAK_WORDS = COPY_WORDS = 4  # words of a run that counts
BOILERPLATE_WORDS, BOILERPLATE_SHARE = 5, 0.05

_QUOTED = re.compile(
    r'"([^"]+)"|“([^“”]+)”|«([^«»]+)»|「([^「」]+)」|『([^『』]+)』|《([^《》]+)》'
)
_NAME_WORD = re.compile(r"[^\W_]+(?:['’.&-][^\W_]+)*")
_NAME_GAP = re.compile(r"[ :&'’./-]{1,3}")
_PLAIN_OPENINGS = tuple(
    template.likes.partition("{things}")[0] for template in TEMPLATES.values()
)
_LIST_SEPARATOR = re.compile(r",\s|\sand\s")
_FUTURE = re.compile(
    r"\b(?:will|won't|'ll|shall|(?:is|are|be) going to|(?:un)?likely|probably"
    r"|(?:can be |is |are )?expected to"
    r"|next (?:choice|purchase|pick|item|buy|book|film|movie|read|game|visit|order)s?"
    r"|(?:may|might|could|would) (?:also |well |soon |next |even )*(?:be|buy|choose"
    r"|enjoy|like|love|try|pick|watch|read|play|want|appreciate|order|visit|take"
    r"|consider|explore|look|seek|go))\b"
)


class _Title(NamedTuple):
    """A title prepared for the functions below."""

    words: frozenset[str]
    line: str  # its words, each between two spaces
    grams: frozenset[tuple[str, ...]]  # COPY_WORDS


@functools.lru_cache(maxsize=2**14)
def _read(title: str) -> _Title:
    tokens = folded_words(title)
    return _Title(frozenset(tokens), _line(tokens), frozenset(ngrams(tokens, 4)))


def _line(tokens: Sequence[str]) -> str:
    return f" {' '.join(tokens)} "


# --- faithfulness


def mentions(profile: str) -> list[str]:
    """The spans of `profile` that name something, in no particular order.

    1. Text in double quotes or in «», 「」, 『』, 《》.
    2. Runs of capitalised words, with "of", "the" and the like and numbers inside them,
       but not "and". The first word of a sentence has its capital anyway: not counted.
    3. In a sentence of the plain form "The user likes a, b and c.": a, b and c.

    Spans of more than MENTION_WORDS words are no titles and left out.
    """
    found = []
    for sentence in sentences(profile):
        opening = next((o for o in _PLAIN_OPENINGS if sentence.startswith(o)), None)
        if opening is not None:
            found += _LIST_SEPARATOR.split(sentence.removeprefix(opening))
            continue
        quoted = _QUOTED.findall(sentence)
        found += ["".join(groups) for groups in quoted]
        found += _names(_QUOTED.sub(", ", sentence) if quoted else sentence)
    counts = [(span, len(folded_words(span))) for span in found]
    return [span for span, count in counts if 0 < count <= MENTION_WORDS]


def _names(sentence: str) -> list[str]:
    """The capitalised runs of a sentence, but for its first word."""
    found: list[str] = []
    start = end = previous = -1  # of the current run, and of the word before
    for number, match in enumerate(_NAME_WORD.finditer(sentence)):
        word = match.group()
        if start >= 0 and not _NAME_GAP.fullmatch(sentence, previous, match.start()):
            found.append(sentence[start:end])
            start = -1
        previous = match.end()
        capital = word[0].isupper() and number > 0
        if capital or (start >= 0 and word[0].isdigit()):
            start, end = (match.start() if start < 0 else start), match.end()
        elif start >= 0 and word.casefold() not in INSIDE_NAMES:
            found.append(sentence[start:end])
            start = -1
    if start >= 0:
        found.append(sentence[start:end])
    return [name for name in found if not EMPTY_IN_NAMES.issuperset(folded_words(name))]


def unsupported_mentions(profile: str, titles: Sequence[str]) -> tuple[int, int]:
    """How many mentions no title supports, and how many there are.

    A title supports a mention when it holds SIMILAR of the mention's words or more, as
    a set. Words such as "the" and single letters do not count. This is a one-sided
    token-set ratio: a mention may leave out words of the title, but not add many.
    """
    wanted = [_telling(folded_words(span)) for span in mentions(profile)]
    vocabulary = frozenset[str]().union(*wanted)
    holders = dict.fromkeys(vocabulary, 0)  # word -> its titles, one bit each
    if vocabulary:
        for i, title in enumerate(titles):
            for word in vocabulary & _read(title).words:
                holders[word] |= 1 << i
    supported = sum(
        _any_holds([holders[word] for word in span], -(-len(span) * 6 // 10))
        for span in wanted
    )
    return len(wanted) - supported, len(wanted)


def _telling(tokens: Sequence[str]) -> frozenset[str]:
    telling = {
        w for w in tokens if w not in EMPTY_IN_NAMES and (len(w) > 1 or w > "\x7f")
    }
    return frozenset(telling or tokens)


def _any_holds(holders: Sequence[int], least: int) -> bool:
    """Is there a bit that is set in at least `least` of the numbers?"""
    at_least = [-1] + [0] * least  # [j]: the bits set in j of the numbers or more
    for bits in holders:
        for j in range(least, 0, -1):
            at_least[j] |= at_least[j - 1] & bits
    return at_least[least] != 0


def mention_hallucination(profile: str, titles: Sequence[str]) -> float:
    """Share of the mentions that no history title supports.  [0, 1]; NaN without any.

    Profiles without names have few `mentions`. A capitalised genre that is in no title
    counts as made up. Use it to compare profilers on the same users.
    """
    missing, total = unsupported_mentions(profile, titles)
    return missing / total if total else np.nan


def speculation_rate(profile: str) -> float:
    """Share of the sentences that predict the future, in English.  [0, 1]; NaN: none.

    "will", "likely", "might enjoy", "next purchase", ... outside of quotes; "Will" is a
    name unless it opens the sentence.
    """
    said = [_QUOTED.sub("", s) for s in sentences(profile)]
    predicts = [bool(_FUTURE.search(s[:1].lower() + s[1:])) for s in said]
    return float(np.mean(predicts)) if predicts else np.nan


# --- leaks


def target_leak(profile: str, titles: Sequence[str], target: str) -> bool:
    """Does a run of LEAK_WORDS words of the target's title occur in the profile, and
    not in the history? Of a shorter title the whole.

    It should hardly ever occur: a profile is written before its target. A title of one
    common word may occur by chance.
    """
    tokens = folded_words(target)
    text = _line(folded_words(profile))
    runs = [_line(gram) for gram in ngrams(tokens, min(LEAK_WORDS, len(tokens)))]
    said = [run for run in runs if tokens and run in text]
    return any(all(run not in _read(t).line for t in titles) for run in said)


def history_leak(titles: Sequence[str], target: str) -> bool:
    """Does a title of the history hold the target's whole title, word for word?

    Then the answer can be read from the history. Also true where a log repeats items or
    titles, and for a short title inside another: "Heat" in "Body Heat".
    """
    run = _read(target).line
    return bool(run.strip()) and any(run in _read(t).line for t in titles)


# --- degeneration


def copy_rate(text: str, titles: Sequence[str]) -> float:
    """Share of the words inside a run of COPY_WORDS that occurs in a title.  [0, 1].

    "Extractive coverage" from so many words up: Grusky et al. 2018,
    https://arxiv.org/abs/1804.11283.
    """
    known = frozenset[tuple[str, ...]]().union(*(_read(t).grams for t in titles))
    tokens = folded_words(text)
    copied = np.zeros(len(tokens), bool)
    for i, gram in enumerate(ngrams(tokens, COPY_WORDS)):
        if gram in known:
            copied[i : i + COPY_WORDS] = True
    return float(copied.mean()) if tokens else 0.0


def repetition(text: str, *, n: int) -> float:
    """1 - distinct n-grams / n-grams of the words ("rep-n").  [0, 1); 0 if too short.

    Welleck et al. 2019, https://arxiv.org/abs/1908.04319.
    """
    grams = ngrams(folded_words(text), n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def compression(text: str) -> float:
    """Compressed over raw bytes (zlib).  In (0, 1.1) from some 60 bytes up, more for
    shorter texts; NaN for no text. Low: the text repeats itself."""
    raw = text.encode("utf-8", "replace")
    return len(zlib.compress(raw)) / len(raw) if raw else np.nan


def boilerplate(
    profiles: Sequence[str], users: Users | None = None
) -> Float[np.ndarray, " U"]:
    """Of each profile, the share of its 5-grams that over 5% of the other users have.

    `users` says whose each profile is; None: everyone has one. A shorter profile is a
    gram of its own. NaN without words, and where there is no other user.
    """
    owners = np.arange(len(profiles)) if users is None else np.asarray(users)
    tokens = [folded_words(profile) for profile in profiles]
    grams = [ngrams(t, min(BOILERPLATE_WORDS, len(t))) if t else [] for t in tokens]
    written: dict[Any, set[tuple[str, ...]]] = {}
    for owner, own in zip(owners.tolist(), grams, strict=True):
        written.setdefault(owner, set()).update(own)
    holders = Counter(gram for own in written.values() for gram in own)
    others = len(written) - 1
    common = {g for g, held in holders.items() if held - 1 > BOILERPLATE_SHARE * others}
    return np.array(
        [
            sum(gram in common for gram in own) / len(own) if own and others else np.nan
            for own in grams
        ],
        np.float64,
    )


# --- fit to the user


def shuffle_drop(
    own: Float[np.ndarray, " U"], shuffled: Float[np.ndarray, " U"]
) -> Float[np.ndarray, " U"]:
    """NDCG@10 with the own minus with another user's profile.  [-1, 1].

    At or below 0 a profile says nothing specific about its user.
    """
    return own - shuffled


def reid_at_1(
    profiles: Float[np.ndarray, "U E"],
    held_out: Float[np.ndarray, "U E"],
    users: Users | None = None,
) -> Float[np.ndarray, " U"]:
    """1 where a profile is closest to its own user's held-out vector among all users.

    How well a profile identifies its user. Chance is 1/U. A tie with another user is no
    hit, a NaN neither; other rows of the same user do not compete. Vectors of unit
    length; `users` says whose each row is; None: everyone has one.
    """
    owners = np.arange(len(profiles)) if users is None else np.asarray(users)
    hits = np.zeros(len(profiles))
    for start in range(0, len(profiles), 1024):  # bounds the matrix of cosines
        rows = np.arange(start, min(start + 1024, len(profiles)))
        cosines = profiles[rows] @ held_out.T
        own = cosines[np.arange(len(rows)), rows][:, None]
        beaten = cosines < own - 1e-6  # the precision of a float32 cosine
        hits[rows] = (beaten | (owners[rows, None] == owners)).all(axis=1)
    return hits * np.isfinite(profiles).all(axis=1)


# --- the panel


def per_user(
    profiles: Sequence[str],
    histories: Sequence[Sequence[str]],
    targets: Sequence[str],
    users: Users | None = None,
) -> dict[str, Float[np.ndarray, " U"]]:
    """Every statistic of LABELS except the percentile, one value a user; NaN:
    undefined.

    Args:
        histories: the titles from which each profile was written.
        targets: the title of the next item of each.
        users: whose each profile is, when someone has several (their mean counts).
    """
    rows = []
    for profile, titles, target in zip(profiles, histories, targets, strict=True):
        missing, total = unsupported_mentions(profile, titles)
        content = profile_word_stats(profile, titles)
        count = len(folded_words(profile))
        rows.append(
            {
                "mention_hallucination": missing / total if total else np.nan,
                "mentions": total,
                "speculation_rate": speculation_rate(profile),
                "target_leak": target_leak(profile, titles, target),
                "history_leak": history_leak(titles, target),
                "copied": copy_rate(profile, titles),
                "in_history": content["in_history"],
                "repeated_3grams": repetition(profile, n=3),
                "repeated_4grams": repetition(profile, n=4),
                "distinct_words": content["distinct"],
                "compression": compression(profile),
                "empty": count == 0,
                "words": count,
            }
        )
    values = {key: np.array([row[key] for row in rows], np.float64) for key in rows[0]}
    values["boilerplate"] = boilerplate(profiles, users)
    if users is None:
        return values
    return {key: user_means(value, users) for key, value in values.items()}


def user_means(
    values: Float[np.ndarray, " n"], users: Users
) -> Float[np.ndarray, " U"]:
    """Each user's mean over the rows where it has a value, else NaN; users sorted."""
    distinct, place = np.unique(np.asarray(users), return_inverse=True)
    defined = ~np.isnan(values)
    sums = np.bincount(place[defined], values[defined], len(distinct))
    counts = np.bincount(place[defined], minlength=len(distinct))
    return np.where(counts, sums / np.maximum(counts, 1), np.nan)


def statistics(
    profiles: Sequence[str],
    histories: Sequence[Sequence[str]],
    targets: Sequence[str],
    users: Users | None = None,
) -> dict[str, float]:
    """The panel: means of `per_user` over the users where they are defined, in the
    order of LABELS. Statistics that no user has are left out."""
    values = per_user(profiles, histories, targets, users)
    found = means(values) | {"words_p95": float(np.percentile(values["words"], 95))}
    return {key: found[key] for key in LABELS if key in found}


def means(values: Mapping[str, Float[np.ndarray, " U"]]) -> dict[str, float]:
    """Means over the users where a value is defined; left out: defined for nobody."""
    kept = {key: value[~np.isnan(value)] for key, value in values.items()}
    return {key: float(value.mean()) for key, value in kept.items() if len(value)}


def intervals(
    values: Mapping[str, Float[np.ndarray, " U"]], *, resamples: int, seed: int
) -> dict[str, metrics.Interval]:
    """`means` with their 95% bootstrap intervals over the users where defined."""
    kept = {key: value[~np.isnan(value)] for key, value in values.items()}
    return {
        key: metrics.bootstrap_interval(value, resamples=resamples, seed=seed)
        for key, value in kept.items()
        if len(value)
    }
