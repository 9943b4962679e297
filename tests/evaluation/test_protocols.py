"""Candidates and ranks against brute force and numbers worked by hand."""

import hashlib

import ir_measures
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, nDCG

from blue.data.examples import items_of_user
from blue.evaluation import metrics, protocols
from tests.helpers.small_world import make_examples, make_split, random_world


def drawing_world():
    """40 items; the user owns 0 to 3, the target 3 shares its title with 4 and 5."""
    test = make_split([[0, 1], [0, 1], [6]], [3, 2, 7], [0, 0, 1], np.zeros((3, 0)))
    counts = np.array([9, 9, 9, 9, 9, 0, *np.arange(1, 35)])
    groups = [0, 1, 2, 3, 3, 3, *range(6, 40)]
    return make_examples(test, counts, groups)


def draw(examples, protocol, **changes):
    given = dict(protocol=protocol, seed=0, num=20, category=None)
    return protocols.draw_candidates(examples, examples.test, **(given | changes))


def exact(table, vector):
    return table.astype(np.float64) @ vector.astype(np.float64)


# --- drawn candidates


def test_uniform_candidates_are_the_stored_ones():
    test = make_split([[0], [1]], [2, 3], [0, 1], [[4, 5], [6, 7]])
    rows, items = draw(make_examples(test, [1] * 8), "1+99", num=2)
    assert rows.tolist() == [0, 1] and items.tolist() == [[2, 4, 5], [3, 6, 7]]


def test_popular_candidates_are_eligible_distinct_and_the_row_s_own():
    examples = drawing_world()
    rows, items = draw(examples, "1+99-popularity")
    assert rows.tolist() == [0, 1, 2] and items[:, 0].tolist() == [3, 2, 7]
    for row, candidates in enumerate(items):
        negatives = set(candidates[1:].tolist())
        assert len(negatives) == 20 and not negatives & {5}  # 5: nobody took it
        assert not negatives & set(items_of_user(examples.test, row).tolist())
    assert 4 not in items[0] and set(items[0]) != set(items[1])
    again = draw(examples, "1+99-popularity")[1]
    np.testing.assert_array_equal(items, again)
    assert (draw(examples, "1+99-popularity", seed=1)[1] != items).any()
    alone = examples.test._replace(
        user=examples.test.user[2:],
        next_item=examples.test.next_item[2:],
        own_offsets=examples.test.own_offsets[2:],
    )  # a row's draw depends neither on its place nor on the others
    picked = protocols.draw_candidates(
        examples, alone, protocol="1+99-popularity", seed=0, num=20
    )
    np.testing.assert_array_equal(picked[1][0], items[2])


def test_draws_follow_their_weights():
    """First draws in proportion to the weights; the next as if the first were gone."""
    weights = np.array([0.0, 1.0, 2.0, 5.0])
    rng = np.random.default_rng(0)
    drawn = np.stack([protocols.draw_weighted(rng, weights, 2) for _ in range(20_000)])
    first = np.bincount(drawn[:, 0], minlength=4) / len(drawn)
    np.testing.assert_allclose(first, weights / 8, atol=0.015)
    after = drawn[drawn[:, 0] == 3, 1]
    np.testing.assert_allclose((after == 2).mean(), 2 / 3, atol=0.015)
    few = protocols.draw_weighted(rng, weights, 7)
    assert sorted(few.tolist()) == [1, 2, 3]


def test_popularity_weights_by_hand():
    found = protocols.popularity_weights(np.array([0, 1, 16, 81]))
    np.testing.assert_allclose(found, [0, 1, 8, 27])


def test_category_candidates_share_it_and_short_rows_are_left_out():
    examples = drawing_world()
    category = ["a" if i % 2 else "b" for i in range(40)]
    rows, items = draw(examples, "1+99-category", num=15, category=category)
    assert rows.tolist() == [0, 1, 2]
    assert {category[i] for i in items[0]} == {"a"}
    assert {category[i] for i in items[1]} == {"b"}
    category[2] = ""  # row 1's target has none
    category[7] = "rare"
    rows, items = draw(examples, "1+99-category", num=15, category=category)
    assert rows.tolist() == [0] and items.shape == (1, 16)
    rows, items = draw(examples, "1+99-category", num=39, category=category)
    assert len(rows) == 0 and items.shape == (0, 40)


def test_candidates_are_fixed_by_their_file(tmp_path):
    path = epath.Path(tmp_path) / "candidates" / "a.npz"
    rows, items = np.arange(2), np.array([[1, 2], [3, 4]], np.int32)
    first = protocols.fixed_candidates(path, "x", lambda: (rows, items))
    assert first.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def fail():
        raise AssertionError("drawn again")

    again = protocols.fixed_candidates(path, "x", fail)
    assert again.sha256 == first.sha256
    np.testing.assert_array_equal(again.items, items)
    other = protocols.fixed_candidates(path, "y", lambda: (rows, items + 1))
    assert other.sha256 != first.sha256
    back = protocols.fixed_candidates(path, "x", lambda: (rows, items))
    assert back.sha256 == first.sha256  # the bytes depend on the content alone
    path.write_bytes(path.read_bytes()[:50])
    mended = protocols.fixed_candidates(path, "x", lambda: (rows, items))
    assert mended.sha256 == first.sha256
    path.unlink()
    unwritten = protocols.fixed_candidates(
        path, "x", lambda: (rows, items), write=False
    )
    assert unwritten.sha256 == first.sha256 and not path.exists()


def test_ranks_of_candidates_by_loop():
    examples, vectors, table = random_world(num_rows=70)
    ranker = protocols.by_cosine(("a", "b"), vectors, table)
    rng = np.random.default_rng(1)
    rows = np.sort(rng.choice(70, 66, replace=False))  # more than are scored at a time
    candidates = rng.integers(60, size=(66, 12))
    ranks, tied = protocols.rank_candidates(ranker, rows, candidates)
    for method, at in ((0, 0), (1, 63), (0, 64), (1, 65)):
        scores = exact(table[candidates[at]], vectors[method, rows[at]])
        assert ranks[method, at] == 1 + (scores[1:] >= scores[0] - 1e-6).sum()
        assert tied[method, at] == (abs(scores[1:] - scores[0]) <= 1e-6).any()


def test_a_collapsed_encoder_ranks_last_not_first():
    """Every text gets the same vector, up to the noise of its batch."""
    rng = np.random.default_rng(0)
    one = protocols.unit(rng.normal(size=64))
    table = (one + rng.normal(size=(50, 64)) * 1e-9).astype(np.float32)
    vectors = np.broadcast_to(one, (1, 20, 64))
    ranker = protocols.by_cosine(("blue",), vectors, table)
    candidates = rng.integers(50, size=(20, 30))
    ranks, tied = protocols.rank_candidates(ranker, np.arange(20), candidates)
    assert ranks.tolist() == [[30] * 20] and tied.all()


def test_centred_cosine_by_hand():
    table = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], np.float32)
    centre = np.array([0.0, 1.0], np.float32)
    query = protocols.unit(np.array([[[1.0, 1.0]]]))
    ranker = protocols.by_cosine(["a"], query, table, centre=centre)
    scores = ranker.score(np.arange(1), slice(0, 3))
    # item 1 becomes zero, item 0 (1, -1) / sqrt 2, item 2 (.6, -.2) / sqrt .4
    np.testing.assert_allclose(scores[0, 0], [0.0, 0.0, 0.4 / 0.8**0.5], atol=1e-6)


# --- the whole catalogue


def brute_force(examples, vectors, table, row):
    """Rank, tie, eligible shares and the ten best of one row, item by item."""
    split, counts = examples.test, examples.item_counts
    target, scores = split.next_item[row], exact(table, vectors[row])
    others = [i for i in range(len(table)) if i not in items_of_user(split, row)]
    above = [i for i in others if scores[i] >= scores[target] - 1e-6]
    titles = examples.title_group
    eligible = [i for i in others if counts[i] and titles[i] != titles[target]]
    shares = []
    for weight in (np.ones(len(table)), counts**0.75):
        total = sum(weight[i] for i in eligible)
        shares.append(sum(weight[i] for i in eligible if i in above) / total)
    tied = any(abs(scores[i] - scores[target]) <= 1e-6 for i in others)
    top = sorted(others, key=lambda i: (-scores[i], i))[:10]
    return 1 + len(above), tied, shares, top


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**16), block=st.sampled_from([1, 7, 16, 60, 1000]))
def test_one_pass_equals_brute_force(seed, block):
    examples, vectors, table = random_world(seed=seed)
    counts = examples.item_counts
    weights = np.stack([counts > 0, protocols.popularity_weights(counts)], axis=1)
    rows = np.array([0, 2, 3, 7, 8])
    targets = protocols.make_targets(examples.test, rows, examples.title_group)
    ranker = protocols.by_cosine(("a", "b"), vectors[:, rows], table)
    found = protocols.rank_all(ranker, targets, weights, block=block)
    for method, (at, row) in ((m, r) for m in (0, 1) for r in enumerate(rows)):
        rank, tied, shares, top = brute_force(examples, vectors[method], table, row)
        assert found.ranks[method, at] == rank and found.tied[method, at] == tied
        np.testing.assert_allclose(found.shares[method, at], shares, atol=1e-6)
        scores = table @ vectors[method, row]
        np.testing.assert_allclose(
            scores[found.top[method, at]], scores[top], atol=1e-6
        )
        assert len({*found.top[method, at].tolist()}) == 10


def test_full_metrics_equal_ir_measures():
    examples, vectors, table = random_world()
    table = protocols.unit(np.random.default_rng(3).normal(size=table.shape))  # no ties
    rows = np.arange(9)
    targets = protocols.make_targets(examples.test, rows, examples.title_group)
    ranker = protocols.by_cosine(("a",), vectors[:1], table)
    found = protocols.rank_all(ranker, targets, np.ones((60, 1)), block=16)
    ours = metrics.ranking_metrics(found.ranks[0])
    qrels, runs = {}, {}
    for row in rows:
        target = examples.test.next_item[row]
        hidden = {*items_of_user(examples.test, row).tolist()} - {target}
        qrels[str(row)] = {str(target): 1}
        scores = table @ vectors[0, row]
        kept = [i for i in range(60) if i not in hidden]
        runs[str(row)] = {str(i): float(scores[i]) for i in kept}
    measures = {nDCG @ 10: "ndcg@10", R @ 10: "recall@10", RR: "mrr"}
    for line in ir_measures.iter_calc(list(measures), qrels, runs):
        value = ours[measures[line.measure]][int(line.query_id)]
        assert line.value == pytest.approx(value, abs=1e-9)


def test_expected_protocol_is_the_mean_over_draws():
    """The share of a row is the chance that a negative drawn by weight beats it."""
    examples, vectors, table = random_world()
    counts = examples.item_counts
    weights = protocols.popularity_weights(counts)[:, None]
    targets = protocols.make_targets(examples.test, np.arange(9), examples.title_group)
    ranker = protocols.by_cosine(("a",), vectors[:1], table)
    share = protocols.rank_all(ranker, targets, weights).shares[0, :, 0]
    expected = metrics.expected_metrics(share, num=19)["ndcg@10"]
    rng, titles = np.random.default_rng(0), examples.title_group
    for row, target in enumerate(examples.test.next_item):
        eligible = weights[:, 0] * (titles != titles[target])
        eligible[items_of_user(examples.test, row)] = 0.0
        drawn = rng.choice(60, (4000, 19), p=eligible / eligible.sum())
        scores = exact(table, vectors[0, row])
        ranks = 1 + (scores[drawn] >= scores[target] - 1e-6).sum(axis=1)
        values = metrics.ndcg(ranks, k=10)
        error = values.std() / np.sqrt(4000)
        assert abs(values.mean() - expected[row]) <= 4 * error + 1e-3


def test_nan_is_last_and_not_recommended():
    examples, vectors, table = random_world()
    table[20:50] = np.nan
    vectors[0, 1] = np.nan
    rows = np.arange(2)
    targets = protocols.make_targets(examples.test, rows, examples.title_group)
    ranker = protocols.by_cosine(("a",), vectors[:1], table)
    found = protocols.rank_all(ranker, targets, np.ones((60, 1)), block=16)
    others = 60 - len(items_of_user(examples.test, 1))
    assert found.ranks[0, 1] == 1 + others and (found.top[0, 1] == -1).all()
    assert not {*range(20, 50)} & {*found.top[0, 0].tolist()}


def test_a_million_items_are_never_held_against_all_users(tmp_path):
    """Streamed from disk: no more than a block of scores at a time."""
    num, rows = 200_000, 5
    path = tmp_path / "items.npy"
    table = np.lib.format.open_memmap(path, "w+", np.float32, (num, 4))
    table[:] = protocols.unit(np.random.default_rng(0).normal(size=(num, 4)))
    sizes = []

    def score(part, items):
        table = np.load(path, mmap_mode="r")
        scores = protocols.by_cosine(["a"], vectors, table).score(part, items)
        sizes.append(scores.size)
        return scores

    vectors = np.asarray(table[None, :rows])
    targets = protocols.Targets(
        items=np.arange(rows),  # each query is its target's vector
        own=[np.array([i]) for i in range(rows)],
        same_title=[np.zeros(0, np.int64)] * rows,
    )
    found = protocols.rank_all(
        protocols.Ranker(("a",), score), targets, np.ones((num, 1))
    )
    assert max(sizes) <= rows * 4096
    assert (found.ranks < 20).all() and (found.shares < 1e-4).all()


def test_recommended_by_hand():
    top = np.array([[0, 1], [0, -1]])
    found = protocols.recommended(top, np.array([1, 0, 5, 5]))
    assert found["log_popularity"] == pytest.approx((2 * np.log(2) + 0) / 3)
    assert found["coverage"] == 0.5
    assert found["gini"] == metrics.gini(np.array([2, 1, 0, 0]))
