"""Prepared examples are reused, and made again where damaged."""

import numpy as np
import pytest

from blue.data import prepare as prepare_module
from blue.data import synthetic
from tests.helpers.hand_logs import (
    SETTINGS,
    assert_equal,
    base_world,
    files,
    hand_log,
    prepare,
)


@pytest.fixture(scope="module")
def log():
    world = dict(base_world(), users=200, items=300)
    return synthetic.make(1, synthetic.World(**world))[0]


def test_examples_are_reused_by_fingerprint(tmp_path, log, monkeypatch):
    made = prepare(log, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [made.fingerprint]
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_build", None)  # building again would fail
        assert_equal(made, prepare(log, tmp_path))
        for changed in (
            log._replace(titles=["x", *log.titles[1:]]),
            log._replace(texts=["x", *log.texts[1:]]),
            log._replace(user_ids=["x", *log.user_ids[1:]]),
            log._replace(timestamp=log.timestamp + (np.arange(len(log.user)) == 7)),
            log._replace(rating=log.rating + 1),
        ):
            with pytest.raises(TypeError):
                prepare(changed, tmp_path)
        for name, value in SETTINGS.items():
            if name != "window_policy":
                with pytest.raises(TypeError):
                    prepare(log, tmp_path, **{name: value + 1})


@pytest.mark.parametrize("damage", ["flip", "delete", "truncate", "manifest", "empty"])
def test_damaged_cache_is_made_again(tmp_path, log, damage):
    made = prepare(log, tmp_path)
    good = files(tmp_path)
    cache = tmp_path / made.fingerprint
    victim = cache / "train_history_items.npy"
    content = victim.read_bytes()
    if damage == "flip":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "delete":
        victim.unlink()
    elif damage == "truncate":
        victim.write_bytes(content[:50])
    elif damage == "manifest":
        (cache / "manifest.json").write_text("{")
    else:
        for path in cache.iterdir():
            path.unlink()
    assert_equal(made, prepare(log, tmp_path))
    assert files(tmp_path) == good


def test_examples_that_older_runs_have_prepared_are_found(tmp_path):
    """The fingerprint is that of the commits before settings came as a tuple."""
    found = prepare(hand_log(), tmp_path, max_interactions=20)
    wanted = "b2abaa21f9133a793162c7da1c782c0de4bca22d7e34564d70af0214002ce096"
    assert found.fingerprint == wanted
