"""Examples: cuts by hand, splits, negatives, masks, batches and the cache."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blue.data import prepare as prepare_module
from blue.data import synthetic
from blue.data.batches import batch_indices, in_batch_mask, next_items
from blue.data.examples import Split, history, items_of_user, rng_for
from blue.data.log import Log
from blue.data.negatives import sample_negatives
from blue.data.splits import Cutting, break_ties, cut_log
from tests.helpers.real_logs import in_fresh_process, xwines

SETTINGS = dict(
    seed=0,
    min_interactions=4,
    max_interactions=1000,
    window_policy="exclude_window",
    window_s=3600,
    rolling_targets=3,
    embargo_items=0,
    min_history=1,
    max_train_targets=16,
    targets_per_example=1,
    ties="hash",
    validation_users=1000,
    test_users=1000,
    eval_negatives=5,
)
POLICIES = ("exclude_window", "include_window", "rolling")


def make_log(histories, titles):
    """A log from [(item, time), ...] for each user."""
    events = [(u, i, t) for u, events in enumerate(histories) for i, t in events]
    user, item, time = np.array(events).T
    return Log(
        name="hand",
        user_ids=[f"u{u:04d}" for u in range(len(histories))],
        item_ids=[str(i) for i in range(len(titles))],
        titles=list(titles),
        texts=list(titles),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        timestamp=time.astype(np.int64),
        rating=(item % 5 + 1).astype(np.float32),
        rows_read=len(events),
        rows_bad={},
    )


@pytest.fixture(scope="module")
def log():
    world = dict(base_world(), users=200, items=300)
    return synthetic.make(1, synthetic.World(**world))[0]


def base_world():
    return dict(
        users=200,
        items=300,
        topics=6,
        noise=0.4,
        loyalty=0.7,
        drift=0.5,
        burst=0.3,
        min_history=8,
        max_history=20,
    )


def prepare(log, directory, **changes):
    fields = SETTINGS | changes
    cutting = Cutting(*(fields.pop(name) for name in Cutting._fields))
    return prepare_module.prepare(log, cutting, directory=directory, **fields)


# --- where a log is cut, by hand


def cut(times, items, policy, **changes):
    stats = Counter()
    cutting = Cutting(*(SETTINGS[name] for name in Cutting._fields))
    cutting = cutting._replace(window_policy=policy, **changes)
    times, items = np.array(times, np.int64), np.array(items, np.int32)
    cuts = cut_log(times, items, stats, cutting)
    more = cutting.targets_per_example > 1
    return [tuple(c) if more else tuple(c)[:2] for c in cuts], dict(stats)


TIMES = [0, 100, 6399, 6400, 9999, 10000]  # the window starts at 6400


def test_exclude_window_has_a_target_for_each_event_of_the_window():
    assert cut(TIMES, range(6), "exclude_window") == ([(5, 3), (4, 3), (3, 3)], {})
    assert cut(TIMES, range(6), "exclude_window", max_train_targets=2) == (
        [(5, 3), (4, 3)],
        {"targets_beyond_max_train_targets": 1},
    )
    assert cut(TIMES, range(6), "exclude_window", window_s=0) == ([(5, 5)], {})


def test_exclude_window_leaves_out_repeats_and_empty_histories():
    cuts = cut(TIMES, [7, 8, 9, 4, 8, 4], "exclude_window")
    assert cuts == ([(5, 3)], {"targets_in_history": 1, "targets_repeated": 1})
    cuts = cut([10, 20, 30], [1, 2, 3], "exclude_window")
    assert cuts == ([], {"targets_without_history": 3})


def test_include_window_is_leave_one_out():
    assert cut(TIMES, range(6), "include_window") == ([(5, 5)], {})
    assert cut([5, 5, 5], [1, 2, 3], "include_window") == ([(2, 2)], {})
    assert cut([5, 6, 7], [1, 2, 1], "include_window") == (
        [],
        {"targets_in_history": 1},
    )


def test_min_history():
    cuts = cut(TIMES, range(6), "exclude_window", min_history=4)
    assert cuts == ([], {"targets_without_history": 3})
    assert cut(TIMES, range(6), "include_window", min_history=5)[0] == [(5, 5)]


def test_rolling_histories_are_strictly_earlier():
    # places 1 to 5 have a history: every fifth third of them, the last one included
    assert cut(TIMES, range(6), "rolling") == ([(5, 5), (4, 4), (2, 2)], {})
    ties = [0, 1, 1, 1, 2, 2]  # a history is earlier by time, not by place
    assert cut(ties, range(6), "rolling") == ([(5, 4), (4, 4), (2, 1)], {})
    cuts = cut([0, 0, 0, 1, 1, 1], range(6), "rolling")
    assert cuts == ([(5, 3), (4, 3), (3, 3)], {})
    cuts, _ = cut(range(101), range(101), "rolling", rolling_targets=10)
    assert cuts == [(place, place) for place in range(100, 0, -10)]
    cuts, _ = cut(range(4), range(4), "rolling", rolling_targets=50)
    assert cuts == [(3, 3), (2, 2), (1, 1)]


def test_rolling_withholds_what_stands_before_the_target():
    cuts, _ = cut(range(31), range(31), "rolling", embargo_items=10, min_history=10)
    assert cuts == [(30, 20), (27, 17), (23, 13)]  # of the places 20 to 30
    # the embargo counts events, whatever their time; the history is the shorter one
    times = [*range(20), *[50] * 11]
    cuts, _ = cut(times, range(31), "rolling", embargo_items=10, min_history=10)
    assert cuts == [(30, 20), (27, 17), (23, 13)]
    cuts, _ = cut(times, range(31), "rolling", embargo_items=2, min_history=10)
    assert cuts[0] == (30, 20)
    assert cut(range(9), range(9), "rolling", min_history=10) == (
        [],
        {"targets_without_history": 1},
    )


def test_more_targets_of_the_same_history():
    two = dict(targets_per_example=3)
    cuts = cut(TIMES, range(6), "exclude_window", **two)[0]
    # later ones first, then the rest of the window
    assert cuts == [(5, 3, (3, 4)), (4, 3, (5, 3)), (3, 3, (4, 5))]
    # neither what the history holds nor the same item twice
    cuts = cut(TIMES, [7, 8, 9, 4, 8, 4], "exclude_window", **two)[0]
    assert cuts == [(5, 3, ())]
    cuts = cut(range(8), [0, 1, 2, 3, 4, 3, 1, 5], "rolling", **two)[0]
    assert cuts == [(7, 7, ()), (3, 3, (4, 7))]
    # under rolling nothing from between the history and the target
    cuts = cut(range(6), range(6), "rolling", embargo_items=2, **two)[0]
    assert cuts == [(5, 3, ()), (4, 2, (5,)), (3, 1, (4, 5))]
    assert cut(TIMES, range(6), "include_window", **two)[0] == [(5, 5, ())]


def test_ties_are_broken_by_a_seeded_hash():
    users, items = ["a", "b"], [str(i) for i in range(50)]
    user = np.repeat([0, 1], 50).astype(np.int32)
    item = np.tile(np.arange(50), 2).astype(np.int32)
    time = np.tile(np.repeat([5, 6, 7], [20, 1, 29]), 2).astype(np.int64)
    order = break_ties(0, users, items, user, item, time)
    assert sorted(order) == list(range(100)) and order[20] == 20 and order[70] == 70
    assert (time[order] == time).all() and (user[order] == user).all()
    assert (order[:20] != np.arange(20)).any()
    assert (item[order][:20] != item[order][50:70]).any()  # each user's own order
    again = np.random.default_rng(0).permutation(20)  # file order does not matter
    shuffled = np.concatenate([again, np.arange(20, 100)])
    found = break_ties(0, users, items, user, item[shuffled], time)
    assert (item[shuffled][found] == item[order]).all()
    assert (break_ties(1, users, items, user, item, time) != order).any()
    # the place of the largest id among the last moment's 29 is no longer the last
    last = [
        int(item[break_ties(s, users, items, user, item, time)][49]) for s in range(40)
    ]
    assert len(set(last)) > 10


# --- a log by hand


def hand_log():
    """Ten users with three old events and two in the last hour, items 10u to 10u+4."""
    histories = [
        [(10 * u + k, t) for k, t in enumerate([1, 2, 3, 90_000, 90_100])]
        for u in range(10)
    ]
    histories.append([(0, 1), (1, 2), (2, 99_999)])  # too short
    histories.append([(k, 100 * k) for k in range(30)])  # too long
    histories.append([(0, 1), (1, 1), (2, 2), (3, 3)])  # all in one hour
    return make_log(histories, [f"item {i}" for i in range(100)])


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


def test_too_few_items_for_the_negatives(tmp_path):
    with pytest.raises(
        ValueError, match="eval_negatives=36: of the 35 items .* only 35"
    ):
        prepare(hand_log(), tmp_path, max_interactions=20, eval_negatives=36)


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


# --- the cache


def files(directory):
    return {p.name: p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def assert_equal(one, two):
    for a, b in zip(one, two, strict=True):
        if isinstance(a, Split):
            assert_equal(a, b)
        else:
            np.testing.assert_array_equal(a, b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


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


def test_examples_that_older_runs_have_prepared_are_found(tmp_path):
    """The fingerprint is that of the commits before settings came as a tuple."""
    found = prepare(hand_log(), tmp_path, max_interactions=20)
    wanted = "b2abaa21f9133a793162c7da1c782c0de4bca22d7e34564d70af0214002ce096"
    assert found.fingerprint == wanted


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


# --- negatives while training


@st.composite
def _worlds(draw):
    """A split of a few examples, a pool, title groups, and how many are wanted."""
    num_items = draw(st.integers(2, 60))
    items = st.integers(0, num_items - 1)
    pool = sorted(draw(st.sets(items, min_size=1)))
    groups = draw(st.lists(st.integers(0, 20), min_size=num_items, max_size=num_items))
    owned = [
        sorted(draw(st.sets(items, min_size=1, max_size=8)))
        for _ in range(draw(st.integers(1, 4)))
    ]
    targets = [draw(st.sampled_from(own)) for own in owned]
    offsets = np.cumsum([0, *map(len, owned)])
    split = Split(
        user=np.arange(len(owned), dtype=np.int32),
        next_item=np.array(targets, np.int32),
        more_items=np.zeros((len(targets), 0), np.int32),
        history_items=np.zeros(0, np.int32),
        history_ratings=np.zeros(0, np.float32),
        history_offsets=np.zeros(len(owned) + 1, np.int64),
        own_items=np.concatenate(owned).astype(np.int32),
        own_offsets=offsets.astype(np.int64),
        negatives=np.zeros((len(owned), 0), np.int32),
        ids=np.arange(len(owned), dtype=np.int64) + 5,
    )
    num = draw(st.integers(1, 20))
    return split, np.array(pool, np.int32), np.array(groups, np.int32), num


@settings(max_examples=40, deadline=None)
@given(_worlds(), st.integers(0, 2**40), st.integers(0, 2**40))
def test_sampled_negatives(world, seed, step):
    split, pool, group, num = world
    everyone = np.arange(len(split.user))
    items, mask = sample_negatives(
        split, everyone, pool, group, num=num, seed=seed, step=step
    )
    for i in everyone:
        target, owned = split.next_item[i], items_of_user(split, i).tolist()
        allowed = {int(j) for j in pool if j not in owned and group[j] != group[target]}
        drawn = items[i][mask[i]].tolist()
        assert len(set(drawn)) == len(drawn) == min(num, len(allowed))
        assert set(drawn) <= allowed
        alone = sample_negatives(
            split, np.array([i]), pool, group, num=num, seed=seed, step=step
        )
        np.testing.assert_array_equal(alone[0][0], items[i])
        np.testing.assert_array_equal(alone[1][0], mask[i])


@pytest.mark.parametrize("pool_size", [30, 300])  # listed, drawn
def test_negatives_are_uniform_and_new_each_step(tmp_path, pool_size):
    histories = [
        [((u * 3 + k) % pool_size, 9000 * k) for k in range(6)] for u in range(150)
    ]
    log = make_log(histories, [f"item {i}" for i in range(pool_size)])
    found = prepare(log, tmp_path, test_users=0, validation_users=0)
    assert len(found.pool) == pool_size
    steps = [
        sample_negatives(
            found.train,
            np.array([4]),
            found.pool,
            found.title_group,
            num=10,
            seed=0,
            step=step,
        )[0]
        for step in range(600)
    ]
    counts = np.bincount(np.ravel(steps), minlength=pool_size)
    owned = items_of_user(found.train, 4)
    assert counts[owned].sum() == 0
    free = np.delete(counts, owned)
    expected = 6_000 / len(free)
    assert ((free - expected) ** 2 / expected).sum() < 1.5 * len(free)  # chi-square


# --- other users as negatives


def test_in_batch_mask_by_hand(tmp_path):
    titles = ["a", "b", "c", "A", "e", "f"]  # items 0 and 3 have the same title
    users = np.array([0, 0, 1, 2, 3], np.int32)
    targets = np.array([0, 1, 3, 2, 4], np.int32)
    histories = [[5], [5], [1, 5], [4, 0], [5]]
    nothing = np.zeros(0, np.int32)
    split = Split(
        user=users,
        next_item=targets,
        more_items=np.array([[-1], [-1], [2], [-1], [-1]], np.int32),
        history_items=np.concatenate(histories).astype(np.int32),
        history_ratings=np.zeros(7, np.float32),
        history_offsets=np.array([0, 1, 2, 4, 6, 7]),
        own_items=nothing,
        own_offsets=np.zeros(6, np.int64),
        negatives=np.zeros((5, 0), np.int32),
        ids=np.arange(5),
    )
    log = make_log([[(k, 9000 * k) for k in range(6)]], titles)
    group = prepare(log, tmp_path, test_users=0).title_group
    expected = [
        # w: 0      1      2      3      4
        [False, False, False, False, True],  # 0: same user, same title, 3 had item 0
        [False, False, False, True, True],  # 1: same user, 2 had item 1
        [False, True, False, True, True],  # 2: same title as 0
        [True, True, True, False, True],  # 3: nobody had item 2
        [True, True, True, False, False],  # 4: 3 had item 4
    ]
    indices = np.arange(5)
    mask = in_batch_mask(split, indices, group)
    assert mask.shape == (5, 2, 5) and mask[:, 0].tolist() == expected
    # 2's second next item is item 2: 3 takes it next, nobody had it
    assert mask[2, 1].tolist() == [True, True, False, False, True]
    items, known = next_items(split, indices)
    assert known.tolist() == [[True, k == 2] for k in range(5)]
    assert items[:, 0].tolist() == targets.tolist() and items[2, 1] == 2
    turned = in_batch_mask(split, indices[::-1], group)
    assert turned[::-1, 0, ::-1].tolist() == expected
    twice = in_batch_mask(split, np.array([4, 4]), group)
    assert not twice.any()  # an example that comes twice is no negative of itself


def test_a_batch_of_one_target_has_no_other_users(tmp_path):
    """Everyone takes item 9 last; a user of a single event gives no example at all."""
    users = [[(k, 9000), (9, 90_000)] for k in range(8)] + [[(9, 90_000)]]
    log = make_log(users, [f"item {k}" for k in range(10)])
    made = prepare(log, tmp_path, min_interactions=2, test_users=0, eval_negatives=2)
    assert made.train.user.tolist() == list(range(8))
    indices = np.arange(8)
    assert (made.train.next_item == 9).all()
    assert [len(history(made.train, i)[0]) for i in indices] == [1] * 8
    assert not in_batch_mask(made.train, indices, made.title_group).any()
    _, known = sample_negatives(
        made.train, indices, made.pool, made.title_group, num=9, seed=0, step=0
    )
    assert (known.sum(axis=1) == 7).all()  # the others' items; the rest is masked


# --- batches


def test_batches_pass_over_all_examples_in_a_new_order_each_epoch():
    batches = [batch_indices(10, batch_size=4, seed=7, step=step) for step in range(10)]
    epochs = np.concatenate(batches).reshape(4, 10)
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4
    again = batch_indices(10, batch_size=4, seed=7, step=2)
    assert again.tolist() == batches[2].tolist()  # crosses from epoch 0 to 1
    again[:] = 0  # a caller may write into its batch
    assert batch_indices(10, batch_size=4, seed=7, step=2).tolist() == (
        batches[2].tolist()
    )
    other = batch_indices(10, batch_size=10, seed=8, step=0)
    assert other.tolist() != epochs[0].tolist()
    bigger = batch_indices(10, batch_size=10, seed=7, step=1)
    assert bigger.tolist() == epochs[1].tolist()  # the order knows no batches


@pytest.mark.parametrize("batch_size", [0, 11])
def test_batch_of_a_wrong_size(batch_size):
    with pytest.raises(ValueError, match=f"batch of {batch_size} .* 10"):
        batch_indices(10, batch_size=batch_size, seed=0, step=0)


def test_generators_differ_by_every_part_of_their_key():
    keys = [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a", 0),
        (0, "a", 1),
        (0, "a", 0, 1),
        (-1, "a"),
    ]
    draws = {rng_for(*key).integers(2**60) for key in keys}
    assert len(draws) == len(keys)
    assert rng_for(0, "a", np.int64(1)).integers(2**60) in draws


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
