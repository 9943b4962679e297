"""Real logs for tests, read from the folder that BLUE_TEST_DATA names."""

import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from blue.data.log import Log
from blue.data.readers import table
from blue.sources.data import load_log
from configs import base


def xwines() -> tuple[Log, float]:
    """X-Wines and the seconds it took to read; without it, the test is skipped."""
    root = os.environ.get("BLUE_TEST_DATA")
    if not root:
        pytest.skip("BLUE_TEST_DATA is not set: no real log at hand")
    return _xwines(str(Path(root, "data", "xwines_slim")))


def real_log(name: str, *folders: str, **fields) -> Log:
    """Test folders as one log through the reader `name`; `fields` of config.data."""
    root = os.environ.get("BLUE_TEST_DATA")
    if not root:
        pytest.skip("BLUE_TEST_DATA is not set: no real log at hand")
    path = ",".join(str(Path(root, "data", folder)) for folder in folders)
    return in_fresh_process(_load, fields | {"name": name, "path": path})


def _load(fields: dict) -> Log:
    config = base.get_config()
    config.data.update(fields)
    return load_log(config, "")


def in_fresh_process(function: Callable, *args, **kwargs):
    """The function's value, without a type checker that looks at every call."""
    return _pool().submit(function, *args, **kwargs).result()


@functools.cache
def _pool() -> ProcessPoolExecutor:
    """One process for all of a worker's tests: importing jax takes seconds."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


@functools.cache
def _xwines(path: str) -> tuple[Log, float]:
    return in_fresh_process(_timed_read, path)


def _timed_read(path: str) -> tuple[Log, float]:
    start = time.monotonic()
    layout = table.TableLayout(
        events="XWines_Slim_ratings.csv.gz",
        items="XWines_Slim_1K_wines.csv.gz",
        separator="",
        columns=dict(
            user_id="UserID",
            item_id="WineID",
            timestamp="Date",
            rating="Rating",
            items_item_id="WineID",
        ),
    )
    log = table.read(
        path,
        layout=layout,
        title_template="{WineName}, {WineryName}. {Type} wine from {RegionName}",
        item_template="{WineName}. With {Harmonize}. {Website}",
        max_bad_fraction=0.0,
    )
    return log, time.monotonic() - start
