"""Reader of Amazon Reviews 2023: raw reviews and metadata of one category or more.

Hou et al. 2024, https://arxiv.org/abs/2403.03952. Files are named as published
(Books.jsonl with meta_Books.jsonl) or as the data set's configurations
(raw_review_Books.jsonl with raw_meta_Books.jsonl), gzipped or not. Review texts are
never kept.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blue.data.clean import clean_line
from blue.data.log import Log
from blue.data.readers.assemble import Catalogue, Events, make_log, take_rows
from blue.data.readers.cells import read_id, read_text
from blue.data.readers.rows import find_files, read_rows
from blue.errors import UserError

COLUMNS: tuple[str, ...] = (  # what templates may name
    "title",
    "brand",
    "category",
    "categories",
    "description",
    "features",
    "price",
)

_META = [
    "parent_asin",
    "asin",
    "title",
    "brand",
    "store",
    "main_category",
    "categories",
    "description",
    "features",
    "price",
]
_REVIEW = ["user_id", "parent_asin", "asin", "timestamp", "rating", "category"]


def read(
    path: str,
    *,
    title_template: str,
    item_template: str,
    max_bad_fraction: float,
    item_columns: Sequence[str] = (),
) -> Log:
    """The log of all review and meta files in a folder.

    An item is a parent_asin. Of a user's reviews of an item the earliest is kept. Items
    without a title are left out, with their reviews. Item columns are title, brand (or
    store), category, categories (the path, by commas), description, features and price.
    A category is the main_category; in `Log.columns`, where that is missing, it is the
    category that a review names.

    Args:
      title_template, item_template, max_bad_fraction, item_columns: as in
        `blue.data.table.read`.

    Raises:
      UserError: one line that names the folder or file and what is wrong with it.
    """
    folder = Path(path)
    reviews, metas = _find(folder)
    catalogue = Catalogue(title_template, item_template, item_columns, COLUMNS)
    events = Events(catalogue)

    def take_item(values: list) -> str:
        parent, asin, title, brand, store, *rest = values
        cells = dict(zip(COLUMNS, (title, brand or store, *rest), strict=True))
        return catalogue.add_titled(parent or asin, cells)

    def take_review(values: list) -> str:
        user, parent, asin, when, rating, named = values
        reason = events.add(user, parent or asin, when, rating)
        if not reason and named:
            _name_category(catalogue, read_id(parent or asin), named)
        return reason

    def take(file: Path, names: list[str], required: list[str], one: Callable):
        rows = read_rows(file, names, required=required)
        return take_rows(file, rows, one, max_bad_fraction)

    needed = ["user_id", "timestamp", "rating"]
    item_files = [take(file, _META, ["title"], take_item) for file in metas]
    event_files = [take(file, _REVIEW, needed, take_review) for file in reviews]
    return make_log(
        folder.resolve().name,
        catalogue,
        events,
        item_files=item_files,
        event_files=event_files,
        once=True,
    )


def _name_category(catalogue: Catalogue, item_id: str, named: Any) -> None:
    """Gives an item without a category the one that a review names."""
    category = catalogue.columns.get("category")
    if category is not None:
        number = catalogue.numbers[item_id]
        category[number] = category[number] or clean_line(read_text(named))


def _find(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of reviews and of metadata, in the folder or as the hub's folders."""
    metas = find_files(folder, "raw_meta*.jsonl")
    reviews = find_files(folder, "raw_review*.jsonl")
    published = find_files(folder, "meta_*.jsonl")
    published += find_files(folder / "raw" / "meta_categories", "meta_*.jsonl")
    for meta in published:
        name = meta.name.removeprefix("meta_").removesuffix(".gz")
        for place in (folder, folder / "raw" / "review_categories"):
            if found := find_files(place, name):
                metas.append(meta)
                reviews += found
    if not (metas and reviews):
        raise UserError(
            f"{folder}: no NAME.jsonl with meta_NAME.jsonl and no raw_review_NAME"
            ".jsonl with raw_meta_NAME.jsonl (or .gz of them) here; data.path names "
            "the folder"
        )
    return reviews, metas
