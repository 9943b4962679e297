"""Stage `prepare`: prepares the data alone and prints a report.

The examples stay in the workdir, where the other stages find them. The report lists the
rows and users left out, with the reason. It compares the size of each split with the
paper's, and shows what each window policy would keep.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from blue.data.examples import Examples, Split
from blue.data.log import Log
from blue.data.splits import WINDOW_POLICIES
from blue.errors import UserError
from blue.sources.data import load_examples, load_log

# https://arxiv.org/abs/2605.06981, table of data sets:
# part of the file's name -> split -> items, users, mean length, examples
PAPER = {
    "Clothing_Shoes_and_Jewelry": {
        "train": (983_565, 79_897, 22.10, 106_946),
        "test": (131_693, 1_209, 22.90, 1_209),
    },
    "Books": {
        "train": (746_516, 31_060, 26.66, 44_420),
        "test": (141_357, 1_252, 31.39, 1_252),
    },
    "Electronics": {
        "train": (534_876, 42_310, 25.52, 58_422),
        "test": (126_392, 1_256, 27.30, 1_256),
    },
    "Sports_and_Outdoors": {
        "train": (205_036, 14_529, 22.98, 22_673),
        "test": (98_911, 1_295, 24.06, 1_295),
    },
    "New_York": {
        "train": (420_373, 72_273, 67.19, 100_000),
        "test": (136_037, 1_338, 74.90, 1_338),
    },
}
DEFINITIONS = (
    "items: distinct ones in histories, targets and candidates; length: mean items of "
    "a history"
)


def run(config: ConfigDict, workdir: str) -> None:
    """Prepares the data and prints the report. Raises `UserError`."""
    page = report(config, workdir)
    if jax.process_index() == 0:
        print(page)


def report(config: ConfigDict, workdir: str) -> str:
    """Prepares the data and reports on it in Markdown."""
    log = load_log(config, workdir)
    examples = load_examples(config, log, workdir)
    parts = [
        f"# {log.name}",
        rows_left_out(log),
        users_left_out(examples, config.data),
        f"{split_table(examples, paper_rows(config.data))}\n\n({DEFINITIONS})",
        policy_table(config, log, examples),
    ]
    return "\n\n".join(parts)


def rows_left_out(log: Log) -> str:
    """How many rows were read, and how many were left out for which reason."""
    lines = [
        f"{log.rows_read:,} rows read: {len(log.item_ids):,} items of the catalogue, "
        f"{len(log.item):,} interactions of {len(log.user_ids):,} users with "
        f"{len(np.unique(log.item)):,} items. Left out:"
    ]
    lines += [f"* {reason}: {count:,}" for reason, count in log.rows_bad.items()]
    return "\n".join(lines if log.rows_bad else [*lines, "* nothing"])


def users_left_out(examples: Examples, data: ConfigDict) -> str:
    """How many users and targets gave no example, and why."""
    stats = examples.stats
    reasons = {
        "users_too_short": f"fewer than {data.min_interactions} interactions",
        "users_too_long": f"more than {data.max_interactions} interactions",
        "users_without_example": f"no example under {data.window_policy}",
    }
    lines = [f"{stats['users']:,} users. Left out:"]
    lines += [f"* {why}: {stats[key]:,} users" for key, why in reasons.items()]
    for key, count in sorted(stats.items()):
        if key.startswith("targets_"):
            lines.append(f"* {key.replace('_', ' ')}: {count:,}")
    return "\n".join(lines)


def paper_rows(data: ConfigDict) -> dict[str, tuple]:
    """The paper's figures for the log that `data` names; empty if it has none."""
    if data.name not in ("amazon_reviews_2023", "google_local"):
        return {}
    folders = [data.path] if Path(data.path).is_dir() else data.path.split(",")
    names = [p.name for f in folders for p in Path(f.strip()).rglob("*.json*")]
    named = {d for d in PAPER for name in names if d == _domain(name)}
    others = {_domain(name) for name in names} - named
    return PAPER[named.pop()] if len(named) == 1 and not others else {}


def _domain(name: str) -> str:
    for start in ("raw_review_", "raw_meta_", "meta_", "review-", "meta-"):
        name = name.removeprefix(start)
    return name.partition(".")[0]


def split_table(examples: Examples, paper: dict[str, tuple]) -> str:
    """A row for each split, and the paper's beneath it."""
    rows = [
        "| split | items | users | mean length | examples | examples/user |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("train", "validation", "test"):
        split: Split = getattr(examples, name)
        rows.append(_row(name, *split_figures(split)))
        if name in paper:
            rows.append(_row(f"{name}, paper", *paper[name]))
    return "\n".join(rows)


def split_figures(split: Split) -> tuple[int, int, float, int]:
    """Items, users, mean length of a history, examples."""
    parts = (split.history_items, split.next_item, split.negatives.ravel())
    items = np.unique(np.concatenate([np.unique(part) for part in parts]))
    length = len(split.history_items) / max(len(split.user), 1)
    return len(items), len(np.unique(split.user)), length, len(split.user)


def _row(name: str, items: int, users: int, length: float, examples: int) -> str:
    ratio = examples / max(users, 1)
    return (
        f"| {name} | {items:,} | {users:,} | {length:.2f} | {examples:,} "
        f"| {ratio:.2f} |"
    )


def policy_table(config: ConfigDict, log: Log, chosen: Examples) -> str:
    """Users and examples that each window policy keeps, the chosen one in bold."""
    rows = [
        "| window policy | users kept | train examples | validation | test |",
        "|---|---|---|---|---|",
    ]
    for policy in WINDOW_POLICIES:
        other = config.copy_and_resolve_references()
        other.data.window_policy = policy
        try:
            if policy == config.data.window_policy:
                stats = chosen.stats
            else:
                with tempfile.TemporaryDirectory() as scratch:
                    stats = load_examples(other, log, scratch).stats
        except UserError as error:
            rows.append(f"| {policy} | none: {error} | | | |")
            continue
        splits = ("train", "validation", "test")
        users = sum(stats[f"users_{name}"] for name in splits)
        counts = " | ".join(f"{stats[f'examples_{name}']:,}" for name in splits)
        name = f"**{policy}**" if policy == config.data.window_policy else policy
        rows.append(f"| {name} | {users:,} | {counts} |")
    return "\n".join(rows)
