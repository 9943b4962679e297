"""Time and memory of preparing a large log: generates one, prepares it, measures.

python tools/bench/prepare.py generate DIR [--rows=10000000]
python tools/bench/prepare.py measure DIR

`generate` writes raw_review_Bench.jsonl.gz and raw_meta_Bench.jsonl.gz with made-up
text, in the format of Amazon Reviews 2023. It has a user for about five rows and an
item for ten, activity and popularity with heavy tails, and rows in no order. One item
in fifty has no title, one review in a hundred is a repetition. `measure` reads and cuts
them in a fresh process as configs/profiler_amazon_clothing.py has it.
"""

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
REVIEWS, META = "raw_review_Bench.jsonl.gz", "raw_meta_Bench.jsonl.gz"
_WORDS = (
    "soft warm cotton leather summer winter jacket boots dress shirt small large fits "
    "perfectly colour seam zipper washed return gift daughter husband price quality "
    "loved comfortable narrow wide sole strap pocket lining stretch thin thick bright"
).split()
_LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
_CHUNK = 200_000  # rows drawn at a time


def generate(directory: Path, rows: int, seed: int = 0) -> None:
    """Write the two files; the same arguments give the same content."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    num_users, num_items = max(rows // 4, 1), max(rows // 10, 1)
    text = " ".join(rng.choice(_WORDS, 20_000))
    with gzip.open(directory / META, "wt", compresslevel=1, encoding="utf-8") as file:
        file.writelines(_items(rng, num_items, text))
    path = directory / REVIEWS
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        file.writelines(_reviews(rng, rows, num_users, num_items, text))


def _ids(rng: np.random.Generator, num: int, length: int, start: str) -> list[str]:
    """`num` different ids: a number in base 32 hidden among random letters."""
    digits = (np.arange(num)[:, None] >> np.arange(0, 25, 5)) & 31
    noise = rng.integers(32, size=(num, length - len(start) - 5))
    letters = _LETTERS[np.concatenate([digits, noise], axis=1)]
    return [start + id_ for id_ in map("".join, letters)]


def _items(rng: np.random.Generator, num: int, text: str) -> Iterator[str]:
    places = rng.integers(len(text) - 2000, size=(num, 3))
    lengths = rng.integers(40, 120, num)
    for i, item_id in enumerate(_item_ids(num)):
        title, feature, description = (int(place) for place in places[i])
        yield (
            json.dumps(
                {
                    "main_category": "AMAZON FASHION",
                    "title": text[title : title + int(lengths[i])] if i % 50 else None,
                    "average_rating": 4.1,
                    "rating_number": 10,
                    "features": [text[feature : feature + 200]] * 2,
                    "description": [text[description : description + 400]],
                    "price": 19.99 if i % 3 else None,
                    "images": [{"hi_res": None, "large": f"https://x/{item_id}.jpg"}],
                    "videos": [],
                    "store": f"Store {i % 5000}",
                    "categories": ["Clothing", f"Kind {i % 20}", f"Part {i % 400}"],
                    "details": {"Department": "Womens"},
                    "parent_asin": item_id,
                    "bought_together": None,
                }
            )
            + "\n"
        )


def _item_ids(num: int) -> list[str]:
    return _ids(np.random.default_rng(1), num, 10, "B0")


def _reviews(
    rng: np.random.Generator, rows: int, num_users: int, num_items: int, text: str
) -> Iterator[str]:
    """Rows of users with 1 + Lomax(1.2) of them each, at most 2,000."""
    users = _ids(rng, num_users, 28, "A")
    items = _item_ids(num_items)
    activity = np.minimum(1 + rng.pareto(1.2, num_users), 2000)
    owner = rng.choice(num_users, rows, p=activity / activity.sum()).astype(np.int32)
    for first in range(0, rows, _CHUNK):
        num = min(_CHUNK, rows - first)
        item = (num_items * rng.random(num) ** 2).astype(np.int64)
        millis = rng.integers(1_400_000_000_000, 1_690_000_000_000, num)
        begins = rng.integers(len(text) - 500, size=num)
        lengths = rng.integers(200, 400, num)
        stars = rng.integers(1, 6, num)
        row = ""
        for n in range(num):
            if n % 100 or not row:
                begin, item_id = begins[n], items[item[n]]
                row = (
                    f'{{"rating": {stars[n]}.0, "title": "{text[begin : begin + 30]}", '
                    f'"text": "{text[begin : begin + lengths[n]]}", "images": [], '
                    f'"asin": "{item_id}", "parent_asin": "{item_id}", '
                    f'"user_id": "{users[owner[first + n]]}", '
                    f'"timestamp": {millis[n]}, '
                    '"helpful_vote": 0, "verified_purchase": true}\n'
                )
            yield row  # one in a hundred is the one before, again


def prepare(directory: str) -> None:
    """Read and cut the log in this process; prints one JSON line of figures."""
    sys.path.insert(0, str(ROOT))
    from blue import main
    from blue.sources.data import load_examples, load_log
    from configs import profiler_amazon_clothing

    main.set_up_logging()
    config = profiler_amazon_clothing.get_config()
    config.data.path = directory
    start = time.monotonic()
    log = load_log(config, "")
    read_s = time.monotonic() - start
    with tempfile.TemporaryDirectory() as workdir:
        stats = load_examples(config, log, workdir).stats
    figures = {
        "rows_read": log.rows_read,
        "rows_left_out": log.rows_bad,
        "users": len(log.user_ids),
        "items": len(log.item_ids),
        "interactions": len(log.item),
        "examples": {k: v for k, v in stats.items() if k.startswith("examples")},
        "read_s": round(read_s),
        "cut_s": round(time.monotonic() - start - read_s),
    }
    print(json.dumps(figures))


def measure(directory: Path) -> dict:
    """Seconds and peak memory of `prepare` in a fresh process, with its figures."""
    start = time.monotonic()
    command = [sys.executable, __file__, "prepare", str(directory)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return json.loads(out.splitlines()[-1]) | {
        "seconds": round(time.monotonic() - start),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
        "peak_rss_gib": round(usage.ru_maxrss / 2**20, 2),
        "file_gib": round(
            sum((directory / f).stat().st_size for f in (REVIEWS, META)) / 2**30, 2
        ),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["generate", "measure", "prepare"])
    parser.add_argument("directory")
    parser.add_argument("--rows", type=int, default=10_000_000)
    args = parser.parse_args()
    if args.command == "generate":
        generate(Path(args.directory), args.rows)
    elif args.command == "prepare":
        prepare(args.directory)
    else:
        print(json.dumps(measure(Path(args.directory)), indent=1))


if __name__ == "__main__":
    main()
