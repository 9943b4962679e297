"""config -> the log and its examples."""

import functools
import os
from pathlib import Path

from ml_collections import ConfigDict

from blue.data import synthetic
from blue.data.cutting import Cutting
from blue.data.examples import Examples
from blue.data.log import Log, join
from blue.data.prepare import prepare
from blue.data.readers import amazon_reviews_2023, google_local, movielens, table
from blue.data.readers.assemble import template_columns
from blue.data.splits import read_splits
from blue.errors import UserError
from blue.runtime import distributed, preemption
from blue.workdir import startup

READERS = {  # of public data sets with fixed file names and columns
    "movielens": movielens.read,
    "amazon_reviews_2023": amazon_reviews_2023.read,
    "google_local": google_local.read,
}


def load_log(config: ConfigDict, workdir: str) -> Log:
    """The interaction log that `config.data` names; several folders become one log.

    The items' columns that category and pseudo_item_template name are kept.
    """
    data = config.data
    if data.name == "synthetic":
        return synthetic.make(config.seed, synthetic.World(**data.synthetic))[0]
    if data.name == "table":
        layout = table.TableLayout(
            events=data.events,
            items=data["items"],  # `.items` is a method of every config section
            separator=data.separator,
            columns=dict(data.columns),
        )
        read = functools.partial(table.read, layout=layout)
    elif data.name in READERS:
        read = READERS[data.name]
    else:
        known = ", ".join(("synthetic", "table", *READERS))
        raise UserError(f"data.name is {data.name!r}; known are {known}")
    pseudo = ("data.pseudo_item_template", data.pseudo_item_template)
    columns = [data.category] * bool(data.category) + template_columns(*pseudo)
    folders = [data.path] if os.path.isdir(data.path) else data.path.split(",")
    logs = [
        read(
            folder.strip(),
            title_template=data.title_template,
            item_template=data.item_template,
            max_bad_fraction=data.max_bad_fraction,
            item_columns=tuple(dict.fromkeys(columns)),
        )
        for folder in folders
    ]
    return join(logs)


def load_examples(config: ConfigDict, log: Log, workdir: str) -> Examples:
    """The prepared examples, made once in the workdir and reused."""
    data = config.data
    splits = None
    if data.splits:
        splits = read_splits(
            Path(data.path.partition(",")[0], data.splits),
            log.user_ids,
            separator=data.separator.replace("\\t", "\t"),
            user_column=data.columns.user_id,
        )
    make = functools.partial(
        prepare,
        log,
        Cutting(*(data[field] for field in Cutting._fields)),
        directory=os.path.join(workdir, "data"),
        seed=config.seed,
        splits=splits,
    )
    prepared = distributed.process_0_first(make)
    if not len(prepared.validation.user):
        raise UserError(
            f"{log.name}: {prepared.stats['users_train']} users give an example, and "
            "at least 10 are needed to hold out some for validation and test; see "
            "data.min_interactions, data.validation_users"
        )
    startup.check_hosts_agree({"data (its fingerprint)": prepared.fingerprint})
    preemption.leave_if_requested("the data is prepared")
    return prepared
