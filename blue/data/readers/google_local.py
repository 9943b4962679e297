"""Reader of Google Local reviews (2021): review-*.json[.gz] with meta-*.json[.gz].

Li, Shang, McAuley 2022, https://arxiv.org/abs/2106.11925 (data of the UCSD
recommendation group). Review texts and pictures are never kept.
"""

from collections.abc import Sequence
from pathlib import Path

from blue.data.log import Log
from blue.data.readers.assemble import ANONYMOUS, Catalogue, Events, make_log, take_rows
from blue.data.readers.rows import find_files, read_rows
from blue.errors import UserError

COLUMNS: tuple[str, ...] = (
    "title",
    "address",
    "category",
    "description",
    "price",
)  # for templates

_META = ["gmap_id", "name", "address", "category", "description", "price"]
_REVIEW = ["user_id", "gmap_id", "time", "rating"]


def read(
    path: str,
    *,
    title_template: str,
    item_template: str,
    max_bad_fraction: float,
    item_columns: Sequence[str] = (),
) -> Log:
    """The log of all review and meta files in a folder; an item is a place.

    Item columns are title (the place's name), address (which starts with the name in
    the data), category, description and price. Reviews without a user are left out,
    as are places without a name, with their reviews.

    Args:
      title_template, item_template, max_bad_fraction, item_columns: as in
        `blue.data.table.read`.

    Raises:
      UserError: one line that names the folder or file and what is wrong with it.
    """
    folder = Path(path)
    metas = find_files(folder, "meta-*.json")
    reviews = find_files(folder, "review-*.json")
    if not (metas and reviews):
        missing = "review-*.json" if metas else "meta-*.json"
        raise UserError(
            f"{folder}: no {missing} (or .gz of it) here; data.path names the folder"
        )
    catalogue = Catalogue(title_template, item_template, item_columns, COLUMNS)

    def take_place(values: list) -> str:
        cells = dict(zip(COLUMNS, values[1:], strict=True))
        return catalogue.add_titled(values[0], cells)

    item_files = [
        take_rows(
            file,
            read_rows(file, _META, required=["gmap_id", "name"]),
            take_place,
            max_bad_fraction,
        )
        for file in metas
    ]
    events = Events(catalogue)

    def take_review(values: list) -> str:
        return events.add(*values) if values[0] is not None else ANONYMOUS

    event_files = [
        take_rows(file, read_rows(file, _REVIEW), take_review, max_bad_fraction)
        for file in reviews
    ]
    return make_log(
        folder.resolve().name,
        catalogue,
        events,
        item_files=item_files,
        event_files=event_files,
    )
