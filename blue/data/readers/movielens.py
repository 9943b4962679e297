"""Reader of MovieLens: ratings.csv with movies.csv, or the older files with `::`.

Releases: https://grouplens.org/datasets/movielens/. MovieTweetings has the same files.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from blue.data.clean import clean_line
from blue.data.log import Log
from blue.data.readers.assemble import Catalogue, Events, make_log, take_rows
from blue.data.readers.rows import is_utf8, read_rows
from blue.errors import UserError

COLUMNS = ("title", "year", "genres")  # for templates

_FILES = {  # ending -> separator, columns of ratings, columns of movies
    ".csv": (
        ",",
        ["userId", "movieId", "timestamp", "rating"],
        ["movieId", "title", "genres"],
    ),
    ".dat": ("::", ["1", "2", "4", "3"], ["1", "2", "3"]),
}
_NO_GENRES = "(no genres listed)"


def read(
    path: str,
    *,
    title_template: str,
    item_template: str,
    max_bad_fraction: float,
    item_columns: Sequence[str] = (),
) -> Log:
    """The log in a folder with ratings and movies, .csv or .dat, gzipped or not.

    Ids are text: those of MovieTweetings start with zeros. Item columns are title
    ("The Matrix", without its year), year and genres ("Action, Sci-Fi").

    Args:
      title_template, item_template, max_bad_fraction, item_columns: as in
        `blue.data.table.read`.

    Raises:
      UserError: one line that names the folder or file and what is wrong with it.
    """
    folder = Path(path)
    ratings, movies, ending = _find(folder)
    separator, event_columns, movie_columns = _FILES[ending]
    catalogue = Catalogue(title_template, item_template, item_columns, COLUMNS)
    encoding = "utf-8-sig" if is_utf8(movies) else "latin-1"  # ml-1m is Latin-1
    item_file = take_rows(
        movies,
        read_rows(movies, movie_columns, separator=separator, encoding=encoding),
        lambda values: catalogue.add_titled(values[0], movie(*values[1:])),
        max_bad_fraction,
    )
    events = Events(catalogue)
    event_file = take_rows(
        ratings,
        read_rows(ratings, event_columns, separator=separator),
        lambda values: events.add(*values),
        max_bad_fraction,
    )
    return make_log(
        folder.resolve().name,
        catalogue,
        events,
        item_files=[item_file],
        event_files=[event_file],
    )


def _find(folder: Path) -> tuple[Path, Path, str]:
    """The files of ratings and of movies, and their ending."""
    for ending in _FILES:
        for gz in ("", ".gz"):
            ratings = folder / f"ratings{ending}{gz}"
            movies = [folder / f"movies{ending}{z}" for z in ("", ".gz")]
            found = [file for file in movies if file.is_file()]
            if ratings.is_file() and found:
                return ratings, found[0], ending
    raise UserError(
        f"{folder}: no ratings.csv with movies.csv and no ratings.dat with movies.dat "
        "(or .gz of them) here; data.path names the folder"
    )


# ----------------------------------------------------------------------------- titles

_MAX_TITLE = 500  # characters that are searched
_YEAR = re.compile(r"\s*\((\d{4})(?:\s*[-\u2013]\s*(?:\d{4})?)?\s*\)\s*$")
_PARTS = re.compile(r"\(([^()]*)\)")
_NAME = re.compile(r"(.*?)((?:\s*\([^()]*\))*)\s*")  # a name, (other names)
_ARTICLES = (
    "The A An Le La Les L' Un Une Des El Los Las Il Lo Gli I O Os Der Die Das Ein Eine "
    "Den Det De Het Een En Ett"
)
_ARTICLE_LAST = re.compile(rf"^(a\.k\.a\. )?(.+), ({'|'.join(_ARTICLES.split())})$")


def movie(title: str, genres: str) -> dict[str, str]:
    """title, year and genres of a movie; "" where missing.

    "Matrix, The (1999)" is "The Matrix" of "1999"; "A|B" is "A, B".
    """
    title = clean_line(title, _MAX_TITLE)
    year = _YEAR.search(title)
    name, others = _split(title[: year.start()] if year else title)
    also = "".join(f" ({_article_first(other)})" for other in _PARTS.findall(others))
    return {
        "title": _article_first(name) + also if name else others.strip(),
        "year": year[1] if year else "",
        "genres": "" if genres.strip() == _NO_GENRES else genres.replace("|", ", "),
    }


def _split(title: str) -> tuple[str, str]:
    match = _NAME.fullmatch(title)
    return (match[1].strip(), match[2]) if match else (title.strip(), "")


def _article_first(name: str) -> str:
    match = _ARTICLE_LAST.match(name.strip())
    if not match:
        return name.strip()
    prefix, rest, article = match.groups(default="")
    space = "" if article == "L'" else " "
    return f"{prefix}{article}{space}{rest}"
