"""Downloads a public log in the form that its reader expects.

python -m blue.data.download amazon_reviews_2023 Clothing_Shoes_and_Jewelry DIR
python -m blue.data.download movielens ml-latest-small DIR
python -m blue.data.download google_local New_York DIR

Amazon Reviews 2023 is downloaded with huggingface_hub, which checks and resumes; the
others over https. MovieLens is checked by its published MD5. Google Local is checked by
its size: no checksum is published. Existing files are not downloaded again. DIR is then
data.path. Note the licences: MovieLens may not be redistributed, the others are for
research.
"""

import argparse
import difflib
import hashlib
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from etils import epath

from blue.errors import UserError
from blue.runtime import files

AMAZON = "McAuley-Lab/Amazon-Reviews-2023"  # a data set on the Hugging Face hub
MOVIELENS = "https://files.grouplens.org/datasets/movielens"
GOOGLE_LOCAL = "https://mcauleylab.ucsd.edu/public_datasets/gdrive/googlelocal"

CATEGORIES = """
All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products
Beauty_and_Personal_Care Books CDs_and_Vinyl Cell_Phones_and_Accessories
Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards Grocery_and_Gourmet_Food
Handmade_Products Health_and_Household Health_and_Personal_Care Home_and_Kitchen
Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV
Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies Software
Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement Toys_and_Games Unknown
Video_Games
""".split()
RELEASES = "ml-latest-small ml-latest ml-1m ml-10m ml-20m ml-25m ml-32m".split()
_OF_RELEASE = re.compile(r"(ratings|movies)\.(csv|dat)|README.*")
_CHUNK = 1 << 20
_TIMEOUT_S = 60


def amazon_reviews_2023(
    category: str, directory: Path, download: Callable[..., str] | None = None
) -> list[Path]:
    """Reviews and metadata of a category; `download` is huggingface_hub's."""
    _check_name(category, CATEGORIES)
    if download is None:
        from huggingface_hub import hf_hub_download as download
    names = (
        f"raw/review_categories/{category}.jsonl",
        f"raw/meta_categories/meta_{category}.jsonl",
    )
    return [
        Path(
            download(
                repo_id=AMAZON, repo_type="dataset", filename=name, local_dir=directory
            )
        )
        for name in names
    ]


def movielens(release: str, directory: Path) -> list[Path]:
    """Ratings, movies and README of a release, from its zip file."""
    _check_name(release, RELEASES)
    address = f"{MOVIELENS}/{release}.zip"
    with _open(f"{address}.md5") as reply:
        found = re.search(r"\b[0-9a-f]{32}\b", reply.read(1000).decode())
    if not found:
        raise UserError(f"{address}.md5 holds no MD5")
    archive = fetch(address, directory / f"{release}.zip")
    with archive.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if md5 != found[0]:
        archive.unlink()
        raise UserError(f"{address}: MD5 is {md5}, must be {found[0]}; try again")
    written = []
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            name = Path(member.filename).name  # without the folder in the archive
            if not member.is_dir() and _OF_RELEASE.fullmatch(name):
                written.append(directory / name)
                with files.whole_file(written[-1]) as draft:
                    with zipped.open(member) as source, draft.open("wb") as target:
                        shutil.copyfileobj(source, target)
    archive.unlink()
    return written


def google_local(state: str, directory: Path) -> list[Path]:
    """Reviews and metadata of a state, such as New_York."""
    if not re.fullmatch(r"[A-Z][A-Za-z]*(_[A-Za-z]+)*", state):
        raise UserError(f"{state!r} must be a state as in the file names: New_York")
    names = (f"review-{state}.json.gz", f"meta-{state}.json.gz")
    return [fetch(f"{GOOGLE_LOCAL}/{name}", directory / name) for name in names]


def fetch(address: str, path: Path) -> Path:
    """Downloads `address` to `path`, whole or not at all; an existing file is kept."""
    if path.exists():
        print(f"{path} is there already")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(path) as draft:
        _copy(address, draft)
    return path


def _copy(address: str, path: epath.Path) -> None:
    """Downloads `address` to `path` and logs progress every ten seconds."""
    with _open(address) as reply, path.open("wb") as file:
        size = int(reply.headers.get("Content-Length") or 0)
        done, start = 0, time.monotonic()
        logged = start
        while chunk := reply.read(_CHUNK):
            done += file.write(chunk)
            if (now := time.monotonic()) - logged > 10:
                logged, rate = now, done / (now - start)
                left = f", {(size - done) / rate:.0f} s left" if size else ""
                print(f"{path.name}: {done >> 20} MiB, {rate / 2**20:.1f} MiB/s{left}")
    if size and done != size:
        raise UserError(f"{address}: {done} of {size} bytes came; try again")


def _open(address: str):
    try:
        return urllib.request.urlopen(address, timeout=_TIMEOUT_S)
    except (urllib.error.URLError, TimeoutError) as error:
        raise UserError(f"{address}: {error}") from None


def _check_name(name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}"
        raise UserError(f"{name!r} is not there; {hint}")


SOURCES = {f.__name__: f for f in (amazon_reviews_2023, movielens, google_local)}


def main(argv: Sequence[str]) -> int:
    """The exit code: 0, or 2 with the error in one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("name", help="category, release or state")
    parser.add_argument("directory", type=Path)
    args = parser.parse_args(argv[1:])
    try:
        for path in SOURCES[args.source](args.name, args.directory):
            print(path)
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
