"""The real log behind configs/profiler_xwines.py (needs BLUE_TEST_DATA)."""

import os
from pathlib import Path

import numpy as np
import pytest

from blue.sources.data import load_examples, load_log
from configs import profiler_xwines
from tests.helpers.real_logs import in_fresh_process


def load(path, workdir):
    """Facts of the log and of its examples under the config."""
    config = profiler_xwines.get_config()
    config.data.path = path
    log = load_log(config, workdir)
    examples = load_examples(config, log, workdir)
    splits = examples.train, examples.validation, examples.test
    shortest = min(int(np.diff(s.history_offsets).min()) for s in splits)
    return log.rows_bad, examples.stats, log.titles, log.texts, shortest


def test_nearly_six_thousand_users_and_none_lost_to_the_window(tmp_path):
    root = os.environ.get("BLUE_TEST_DATA")
    if not root:
        pytest.skip("BLUE_TEST_DATA is not set: no real log at hand")
    path = str(Path(root, "data", "xwines_slim"))
    bad, stats, titles, texts, shortest = in_fresh_process(load, path, str(tmp_path))
    assert not sum(bad.values())
    users = [stats[f"users_{name}"] for name in ("train", "validation", "test")]
    assert sum(users) == stats["users"] - stats["users_too_short"] == 5933
    assert users[1:] == [500, 1000] and stats["users_without_example"] == 0
    assert shortest >= 1
    assert "Espumante Moscatel | Sparkling | Serra Gaúcha | Brazil" in titles
    assert all(" wine, " in text for text in texts)
