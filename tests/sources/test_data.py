"""config -> a log: folders that are joined, a real log."""

import os
from pathlib import Path

import numpy as np
import pytest

from blue.sources.data import load_examples, load_log
from configs import base, profiler_xwines
from tests.helpers.movielens_files import write_csv
from tests.helpers.real_logs import in_fresh_process


def test_folders_separated_by_commas_are_joined(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name)
    config = base.get_config()
    config.data.update(name="movielens", path=f"{tmp_path}/a, {tmp_path}/b")
    config.data.update(category="genres", pseudo_item_template="{year} {genres}")
    log = load_log(config, "")
    assert log.name == "a+b" and (len(log.item), log.rows_read) == (3, 10)
    assert list(log.columns) == ["genres", "year"]
    config.data.name = "movielense"
    with pytest.raises(
        ValueError, match="'movielense'; known are synthetic, table, mo"
    ):
        load_log(config, "")


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
