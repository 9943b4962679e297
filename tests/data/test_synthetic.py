"""The world with a known answer: what `Truth` says is what the log shows."""

import numpy as np
import pytest

from blue.data import synthetic
from configs import base

WORLD = dict(
    users=1000,
    items=720,
    topics=24,
    noise=0.4,
    loyalty=0.7,
    drift=0.5,
    burst=0.2,
    min_history=10,
    max_history=16,
)


@pytest.fixture(scope="module")
def world():
    return synthetic.make(3, synthetic.World(**WORLD))


def ends(log):
    """Each user's first event and the one after their last."""
    bounds = np.searchsorted(log.user, np.arange(len(log.user_ids) + 1))
    return bounds[:-1], bounds[1:]


def test_every_word_has_one_meaning():
    words = [word for topic in synthetic.WORDS for word in topic]
    brands = [brand for topic in synthetic.BRANDS for brand in topic]
    shared = list(synthetic.SHARED_WORDS)
    assert (len(words), len(brands), len(shared)) == (24 * 20, 24 * 3, 40)
    assert {len(topic) for topic in synthetic.WORDS} == {20}
    everything = words + brands + shared
    assert len(set(everything)) == len(everything)
    assert all(w.isascii() and w.isalpha() and w.islower() for w in everything)


def test_titles_say_topic_and_brand(world):
    log, truth = world
    assert len(set(log.titles)) == len(log.titles) == 720
    for item, title in enumerate(log.titles):
        brand, shared, first, second = title.split()
        topic = truth.item_topics[item]
        assert brand == synthetic.BRANDS[topic][truth.item_brands[item]]
        assert shared in synthetic.SHARED_WORDS
        assert first != second and {first, second} <= set(synthetic.WORDS[topic])
    assert log.texts == log.titles


def test_frequent_words_come_first(world):
    log, truth = world
    ranks = [
        synthetic.WORDS[topic].index(word)
        for topic, title in zip(truth.item_topics, log.titles, strict=True)
        for word in title.split()[2:]
    ]
    counts = np.bincount(ranks, minlength=20)
    assert counts[:5].sum() > 1.8 * counts[-5:].sum() > 0  # about 2.6 when drawn alone


def test_events_are_sorted_and_lengths_in_range(world):
    log, _ = world
    first, last = ends(log)
    assert set(last - first) == set(range(11, 18))  # histories of 10 to 16, a target
    assert log.user_ids == sorted(log.user_ids)
    order = np.lexsort((log.timestamp, log.user))
    assert (order == np.arange(len(order))).all()
    assert (log.rows_read, log.rows_bad) == (len(log.user), {})


def test_nobody_has_an_item_twice(world):
    log, _ = world
    pairs = log.user.astype(np.int64) * 720 + log.item
    assert len(np.unique(pairs)) == len(pairs)


def test_the_last_hour_is_never_noise(world):
    log, truth = world
    _, last = ends(log)
    end = log.timestamp[last - 1][log.user]
    in_window = log.timestamp >= end - 3600
    assert in_window.sum() > 1.15 * len(log.user_ids)  # bursts at the end do occur
    assert not truth.noise[in_window].any()
    assert truth.noise[~in_window].mean() == pytest.approx(0.4, abs=0.02)


def test_what_is_not_noise_is_of_the_users_topics(world):
    log, truth = world
    topic = truth.item_topics[log.item]
    before = truth.topic_weights[log.user, topic] > 0
    after = truth.final_topic_weights[log.user, topic] > 0
    assert (before | after)[~truth.noise].all()
    _, last = ends(log)
    assert after[last - 1].all()
    share = truth.final_topic_weights[log.user, topic][last - 1]
    assert (share > 0.5).mean() == pytest.approx(0.65, abs=0.04)
    liked = before & ~truth.noise
    loyal = truth.item_brands[log.item] == truth.favourite_brands[log.user, topic]
    # .7 + .3 / 3, a little less where the favourite brand is used up
    assert 0.7 < loyal[liked].mean() < 0.81
    assert loyal[truth.noise].mean() == pytest.approx(1 / 3, abs=0.03)


def test_drift_replaces_one_topic(world):
    _, truth = world
    first, final = truth.topic_weights, truth.final_topic_weights
    for weights in (first, final):
        expected = np.tile(np.float32([0, 0.35, 0.65]), (1000, 1))
        np.testing.assert_array_equal(np.sort(weights)[:, -3:], expected)
    kept = ((first > 0) & (final > 0)).sum(axis=1)
    assert set(kept) == {1, 2}
    assert (kept == 1).mean() == pytest.approx(0.5, abs=0.04)


def test_bursts_are_minutes_and_the_rest_is_days(world):
    log, _ = world
    gaps = np.diff(log.timestamp)[log.user[1:] == log.user[:-1]]
    assert ((gaps < 900) | (gaps >= 86400)).all()
    assert (gaps < 900).mean() == pytest.approx(0.2, abs=0.02)


def test_ratings_follow_affinity(world):
    log, truth = world
    assert set(log.rating) == {1, 2, 3, 4, 5}
    assert log.rating[~truth.noise].mean() > log.rating[truth.noise].mean() + 1


def test_all_items_are_equally_popular(world):
    """Else a profile of anyone would beat chance: popularity would leak."""
    log, truth = world
    for topic_sizes in (np.bincount(truth.item_topics), np.bincount(truth.item_brands)):
        assert np.ptp(topic_sizes) <= 1
    users = np.stack([truth.topic_weights, truth.final_topic_weights])
    main = (users[0] == np.float32(0.65)).sum(axis=0)
    assert np.ptp(main) <= 1  # balanced, not just drawn
    counts = np.bincount(log.item, minlength=720)
    assert 0.5 < counts.var() / counts.mean() < 1.3  # 1 for independent uniform draws
    by_topic = np.bincount(truth.item_topics, weights=counts) / counts.sum()
    np.testing.assert_allclose(by_topic, 1 / 24, rtol=0.1)


def test_another_users_topics_are_worth_chance(world):
    log, truth = world
    _, last = ends(log)
    topic = truth.item_topics[log.item[last - 1]]
    other = np.roll(truth.final_topic_weights, 1, axis=0)
    hits = (other[np.arange(len(topic)), topic] > 0).mean()
    assert hits == pytest.approx(2 / 24, abs=0.03)


def test_a_world_is_a_function_of_its_seed(world):
    log, truth = world
    again, truth_again = synthetic.make(3, synthetic.World(**WORLD))
    for one, two in ((log, again), (truth, truth_again)):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
    other, _ = synthetic.make(4, synthetic.World(**(WORLD | dict(users=2))))
    assert other.titles != log.titles


@pytest.mark.parametrize("arg", [None, "tiny"])
def test_the_worlds_of_the_configs(arg):
    world = dict(base.get_config(arg).data.synthetic)
    log, truth = synthetic.make(0, synthetic.World(**world))
    assert len(log.user_ids) == world["users"] and len(log.titles) == world["items"]
    assert truth.item_topics.max() == world["topics"] - 1


def test_tiny_topics_may_be_used_up():
    small = dict(users=30, items=40, topics=3, min_history=18, max_history=19)
    log, truth = synthetic.make(0, synthetic.World(**(WORLD | small | dict(noise=0.0))))
    _, last = ends(log)
    topics = truth.item_topics[log.item[last - 1]]
    assert (truth.final_topic_weights[np.arange(30), topics] > 0).all()
    assert len(np.unique(log.user * 40 + log.item)) == len(log.item)


@pytest.mark.parametrize(
    "wrong, field",
    [
        (dict(topics=2), "topics=2 must be 3 to 24"),
        (dict(topics=25), "topics=25"),
        (dict(items=71), "items=71 must be 72"),
        (dict(items=10**6), "items=1000000"),
        (dict(users=0), "users=0"),
        (dict(min_history=17), "min_history=17"),
        (dict(noise=1.5), "noise=1.5"),
        (dict(burst=float("nan")), "burst=nan"),
    ],
)
def test_settings_out_of_range(wrong, field):
    with pytest.raises(ValueError, match=f"data.synthetic.{field}"):
        synthetic.make(0, synthetic.World(**(WORLD | wrong)))
