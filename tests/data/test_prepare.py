"""Examples of a log by hand, and what must hold for every log."""

import numpy as np
import pytest

from blue.data import synthetic
from blue.data.examples import Split, history, items_of_user
from tests.helpers.hand_logs import (
    assert_equal,
    base_world,
    files,
    hand_log,
    make_log,
    prepare,
)
from tests.helpers.real_logs import in_fresh_process, xwines

POLICIES = ("exclude_window", "include_window", "rolling")


@pytest.fixture(scope="module")
def log():
    world = dict(base_world(), users=200, items=300)
    return synthetic.make(1, synthetic.World(**world))[0]


def test_examples_of_a_log_by_hand(tmp_path):
    found = prepare(hand_log(), tmp_path, max_interactions=20)
    users = [set(s.user.tolist()) for s in (found.train, found.validation, found.test)]
    assert [len(u) for u in users] == [7, 1, 2]  # of ten: 10% and 20% are held out
    assert set.union(*users) == set(range(10))
    train = found.train
    assert len(train.user) == 14  # both events of the window
    for i, user in enumerate(train.user):
        items, ratings = history(train, i)
        assert items.tolist() == [10 * user, 10 * user + 1, 10 * user + 2]
        assert ratings.tolist() == [1, 2, 3]
        assert items_of_user(train, i).tolist() == list(range(10 * user, 10 * user + 5))
    by_user = train.next_item.reshape(7, 2) % 10
    assert (by_user == [4, 3]).all()  # newest first
    assert (found.test.next_item == found.test.user * 10 + 4).all()
    assert train.negatives.shape == (14, 0)
    assert found.test.negatives.shape == (2, 5)
    seen = sorted(10 * u + k for u in users[0] for k in range(5))
    assert found.pool.tolist() == seen
    assert np.flatnonzero(found.item_counts == 1).tolist() == seen
    assert found.item_counts.sum() == 35
    ids = np.concatenate([s.ids for s in (train, found.validation, found.test)])
    assert ids.tolist() == list(range(17))
    assert found.stats == dict(
        users=13,
        users_too_short=1,
        users_too_long=1,
        users_without_example=1,
        targets_without_history=4,
        users_train=7,
        examples_train=14,
        users_validation=1,
        examples_validation=1,
        users_test=2,
        examples_test=2,
    )


def test_users_whose_last_item_is_no_target_only_train(tmp_path):
    histories = [
        # the last event repeats the first in half of the users
        [(9 * u, 1), (9 * u + 1, 2), (9 * u + 2, 90_000), (9 * u + 3 * (u % 2), 90_001)]
        for u in range(20)
    ]
    log = make_log(histories, [f"item {i}" for i in range(200)])
    found = prepare(log, tmp_path)
    held_out = np.concatenate([found.validation.user, found.test.user])
    assert len(held_out) == 6 and (held_out % 2 == 1).all()
    even = found.train.user % 2 == 0
    assert even.sum() == 10 and (found.train.next_item[even] % 9 == 2).all()
    assert found.stats["targets_in_history"] == 10


def test_held_out_users_are_capped_by_share_and_by_number(tmp_path, log):
    found = prepare(log, tmp_path)
    assert [len(s.user) for s in (found.validation, found.test)] == [20, 40]
    found = prepare(log, tmp_path, validation_users=7, test_users=0)
    assert [len(s.user) for s in (found.validation, found.test)] == [7, 0]
    assert found.test.negatives.shape == (0, 5)


def test_who_is_held_out_depends_on_the_id_alone(tmp_path):
    old = hand_log()
    more = old._replace(user_ids=[*old.user_ids, "u9999"])
    extra = hand_log().item[:5]
    more = more._replace(
        user=np.concatenate([old.user, np.full(5, 13, np.int32)]),
        item=np.concatenate([old.item, extra]),
        timestamp=np.concatenate([old.timestamp, old.timestamp[:5]]),
        rating=np.concatenate([old.rating, old.rating[:5]]),
    )
    changes = dict(max_interactions=20, validation_users=0, eval_negatives=2)
    before = set(prepare(old, tmp_path, **changes).test.user.tolist())
    after = set(prepare(more, tmp_path, **changes).test.user.tolist()) - {13}
    assert after <= before and len(after) >= 1
    seeds = {
        tuple(prepare(old, tmp_path, seed=seed, **changes).test.user)
        for seed in range(5)
    }
    assert len(seeds) > 1


# --- what must hold for every log


@pytest.mark.parametrize("policy", POLICIES)
def test_no_leak_and_fair_negatives(tmp_path, log, policy):
    found = prepare(log, tmp_path, window_policy=policy, eval_negatives=50)
    bounds = np.searchsorted(log.user, np.arange(len(log.user_ids) + 1))
    splits = (found.train, found.validation, found.test)
    users = [set(split.user.tolist()) for split in splits]
    assert sum(map(len, users)) == len(set.union(*users)) == 200
    for split in splits:
        assert len(split.user) > 0
        for i, user in enumerate(split.user):
            items, ratings = history(split, i)
            target, owned = split.next_item[i], items_of_user(split, i)
            events = slice(bounds[user], bounds[user + 1])
            own_items, times = log.item[events], log.timestamp[events]
            end = len(items)
            assert end >= 1 and target not in items
            assert items.tolist() == own_items[:end].tolist()
            assert ratings.tolist() == log.rating[events][:end].tolist()
            assert owned.tolist() == sorted(own_items)
            place = own_items.tolist().index(target)
            if policy == "exclude_window":
                assert (times[:end] < times[-1] - 3600).all()
                assert (
                    times[place] >= times[-1] - 3600 and times[end] >= times[-1] - 3600
                )
            else:
                assert place >= end and times[end - 1] < times[place]
            if split is not found.train:
                assert place == len(times) - 1 or policy == "rolling"
                negatives = split.negatives[i]
                assert len(set(negatives.tolist())) == 50
                assert not set(negatives.tolist()) & set(owned.tolist())
                assert set(negatives.tolist()) <= set(found.pool.tolist())
    of_train = np.isin(log.user, sorted(users[0]))
    assert found.pool.tolist() == sorted(set(log.item[of_train].tolist()))
    assert (
        found.item_counts.tolist()
        == np.bincount(log.item[of_train], minlength=300).tolist()
    )
    assert (found.train.user[:-1] <= found.train.user[1:]).all()


def test_titles_that_look_the_same_are_one_group(tmp_path):
    titles = [f"item {i}" for i in range(100)]
    titles[5] = "Same \uff34hing"  # a full-width T
    titles[6] = "same  thing"
    titles[7] = "sa\u200bme thing"
    group = prepare(
        make_log([[(k, 9000 * k) for k in range(9)]] * 5, titles),
        tmp_path,
        eval_negatives=1,
        test_users=0,
    ).title_group
    assert group[5] == group[6] == group[7]
    assert len(set(group.tolist())) == 98


def test_negatives_never_have_the_targets_title(tmp_path):
    """Every second item shares one title; it is the target's in half of the users."""
    titles = ["same" if i % 2 else f"item {i}" for i in range(100)]
    histories = [[((u + 7 * k) % 100, 9000 * k) for k in range(6)] for u in range(60)]
    found = prepare(make_log(histories, titles), tmp_path, eval_negatives=30)
    same = found.test.next_item % 2 == 1
    assert 0 < same.sum() < len(same)
    odd = (found.test.negatives % 2 == 1).sum(axis=1)
    assert (odd[same] == 0).all() and (odd[~same] > 5).all()


# --- errors


def test_nobody_with_a_history(tmp_path):
    log = make_log([[(0, 1), (1, 2)], [(2, 1), (3, 2), (4, 3), (5, 4)]], "abcdef")
    with pytest.raises(ValueError) as error:
        prepare(log, tmp_path, min_interactions=5)
    assert "none of 2 users" in str(error.value)
    assert "2 have fewer than data.min_interactions=5" in str(error.value)
    assert "longest log has 4" in str(error.value)
    with pytest.raises(ValueError, match="1 no history .*='exclude_window'"):
        prepare(log, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        dict(window_s=-1),
        dict(min_interactions=1),
        dict(max_interactions=3),
        dict(rolling_targets=0),
        dict(max_train_targets=0),
        dict(test_users=-1),
        dict(eval_negatives=0),
    ],
)
def test_settings_out_of_range(tmp_path, log, wrong):
    with pytest.raises(ValueError, match=f"data.{next(iter(wrong))}="):
        prepare(log, tmp_path, **wrong)


@pytest.mark.parametrize("policy", POLICIES)
def test_byte_identical_from_a_seed(tmp_path, log, policy):
    one = prepare(log, tmp_path / "one", window_policy=policy)
    two = prepare(log, tmp_path / "two", window_policy=policy)
    assert_equal(one, two)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len(files(tmp_path / "one")) == 3 * len(Split._fields) + 3 + 1
    other = prepare(log, tmp_path / "two", window_policy=policy, seed=1)
    assert other.fingerprint != one.fingerprint
    assert other.test.user.tolist() != one.test.user.tolist()


# --- a real log


def test_xwines(tmp_path):
    log, _ = xwines()
    changes = dict(min_interactions=10, eval_negatives=99)
    found = in_fresh_process(prepare, log, tmp_path, **changes)
    stats = found.stats
    assert stats["users"] - stats["users_too_short"] - stats["users_too_long"] == 5933
    assert stats["users_test"] == 1000 and stats["users_validation"] == 593
    assert stats["users_train"] == 5933 - 1593
    assert stats["examples_train"] > stats["users_train"]
    assert found.test.negatives.shape == (1000, 99)
    lengths = np.diff(found.test.history_offsets)
    assert lengths.min() >= 5 and lengths.max() <= 59
