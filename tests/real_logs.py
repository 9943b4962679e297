"""Real logs for tests, read from the folder that BLUE_TEST_DATA names."""

import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from blue.data import table
from blue.data.log import Log


def xwines() -> tuple[Log, float]:
    """X-Wines and the seconds it took to read; without it, the test is skipped."""
    root = os.environ.get("BLUE_TEST_DATA")
    if not root:
        pytest.skip("BLUE_TEST_DATA is not set: no real log at hand")
    return _xwines(str(Path(root, "data", "xwines_slim")))


def in_fresh_process(function: Callable, *args, **kwargs):
    """The function's value, without a type checker that looks at every call."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *args, **kwargs).result()


@functools.cache
def _xwines(path: str) -> tuple[Log, float]:
    return in_fresh_process(_timed_read, path)


def _timed_read(path: str) -> tuple[Log, float]:
    start = time.monotonic()
    log = table.read(
        path,
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
        title_template="{WineName}, {WineryName}. {Type} wine from {RegionName}",
        item_template="{WineName}. With {Harmonize}. {Website}",
        max_bad_fraction=0.0,
    )
    return log, time.monotonic() - start
