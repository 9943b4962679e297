"""The table of methods: its rows, their variants, and the differences between them."""

import numpy as np
import pytest

from blue.evaluation import methods
from blue.evaluation.methods import CENTRED, METHODS, SHUFFLED
from blue.text import queries
from blue.text.templates import TEMPLATES
from tests.evaluation.test_summary import make_scores

FORMAT = queries.QueryFormat(TEMPLATES["short"], "", 4, len, 999)
ALL_VARIANTS = [
    *("random", "popular", "ease", "mean_items", "mean_recent"),
    *("empty", "all_history", "10_history", "constant"),
    *("pseudo_item", "10h+pseudo_item", "shuffled_pseudo_item"),
    *("base", "10h+base", "shuffled_base"),
    *("blue", "10h+blue", "shuffled_blue", "10h+shuffled_blue", "rlpf", "10h+rlpf"),
    *("mean_items_centred", "mean_recent_centred", "base_centred", "blue_centred"),
]


def variants():
    """Names of all variants of the methods of the table."""
    names = set()
    for method in METHODS:
        forms = method.forms if method.profile or method.profiler else ("",)
        names |= {form + method.name for form in forms}
        names |= {form + SHUFFLED + method.name for form in method.shuffled}
        names |= {method.name + CENTRED} if method.centred else set()
    return names


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_row_reads_users_in_one_way(method):
    ways = (method.query, method.vectors, method.profile, method.profiler)
    assert sum(map(bool, (*ways, method.ranker))) == 1
    assert not method.shuffled or method.profile or method.profiler
    assert set(method.shuffled) <= set(method.forms)
    assert [row.name for row in METHODS].count(method.name) == 1
    assert methods.method_of(method.name) is method


def test_pairs_are_of_variants_that_exist():
    named = {*methods.KEY_PAIRS, *methods.MORE_PAIRS, *methods.HEADLINES}
    assert {name for pair in named for name in pair} <= variants()
    assert variants() <= {*ALL_VARIANTS}


@pytest.mark.parametrize(
    "variant, name",
    [
        *(("10h+shuffled_blue", "blue"), ("blue_centred", "blue")),
        *(("10_history", "10_history"), ("shuffled_rlpf", "rlpf")),
    ],
)
def test_the_row_of_a_variant(variant, name):
    assert methods.method_of(variant).name == name
    assert methods.is_taken(variant)
    assert not methods.is_taken("rlpf")


def test_query_texts_of_every_method():
    histories = [["a", "b"], ["c"], ["d", "e", "f"]]
    profiles = {
        "base": ["b0", "b1", "b2"],
        "blue": ["p0", "p1", "p2"],
        "rlpf": ["r0", "r1", "r2"],
    }
    partners = np.array([2, 0, 1])
    texts = methods.query_texts(FORMAT, histories, profiles, partners)
    assert list(texts) == [
        *("empty", "all_history", "10_history"),
        *("base", "10h+base", "shuffled_base"),
        *("blue", "10h+blue", "shuffled_blue", "10h+shuffled_blue"),
        *("rlpf", "10h+rlpf"),
    ]
    alone = lambda profile: queries.profile_query(FORMAT, profile)
    both = lambda row, profile: queries.history_profile_query(
        FORMAT, histories[row], profile
    )
    assert texts["blue"] == [alone(p) for p in ("p0", "p1", "p2")]
    assert texts["shuffled_blue"] == [texts["blue"][w] for w in partners]
    assert texts["10h+shuffled_blue"][0] == both(0, "p2")
    assert texts["10h+rlpf"][1] == both(1, "r1")
    assert texts["empty"] == [alone("")] * 3
    only_base = methods.query_texts(
        FORMAT, histories, {"base": profiles["base"]}, partners
    )
    assert not [name for name in only_base if "blue" in name]


def test_differences_where_both_methods_exist():
    pairs = methods.pairs(list(make_scores()))
    assert set(pairs) == {
        *(("blue", "base"), ("blue", "shuffled_blue"), ("base", "shuffled_base")),
        *(("base", "empty"), ("10h+blue", "10h+base"), ("10h+blue", "10_history")),
        *(("blue", raw) for raw in ("all_history", "10_history", "popular")),
        *(("10h+blue", raw) for raw in ("all_history", "popular")),
        *(("rlpf", "base"), ("blue", "rlpf")),
    }
    untrained = methods.pairs(["base", "empty", "10h+base", "popular"])
    assert untrained == [
        ("base", "empty"),
        ("base", "popular"),
        ("10h+base", "popular"),
    ]
    controls = ["blue", "constant", "pseudo_item", "ease", "shuffled_pseudo_item"]
    assert set(methods.pairs(controls)) == {
        *(("blue", "constant"), ("blue", "pseudo_item"), ("blue", "ease")),
        ("pseudo_item", "shuffled_pseudo_item"),
    }


def test_all_differences_in_their_order():
    """As evaluation.json of a run with everything in it has them."""
    assert methods.pairs(ALL_VARIANTS) == [
        *(("blue", "base"), ("blue", "shuffled_blue"), ("base", "shuffled_base")),
        *(("base", "empty"), ("10h+blue", "10h+base"), ("10h+blue", "10_history")),
        ("10h+blue", "10h+shuffled_blue"),
        *(("blue", "all_history"), ("blue", "10_history"), ("blue", "mean_items")),
        *(("blue", "popular"), ("10h+blue", "all_history")),
        *(("10h+blue", "mean_items"), ("10h+blue", "popular"), ("blue", "constant")),
        *(("blue", "pseudo_item"), ("blue", "mean_recent")),
        *(("blue", "mean_recent_centred"), ("blue", "ease")),
        *(("blue_centred", "base_centred"), ("blue", "base_centred")),
        ("10h+blue", "10h+pseudo_item"),
        *(("pseudo_item", "shuffled_pseudo_item"), ("pseudo_item", "10_history")),
        ("10h+pseudo_item", "10_history"),
        *(("rlpf", "base"), ("10h+rlpf", "10h+base")),
        *(("blue", "rlpf"), ("10h+blue", "10h+rlpf")),
    ]


def test_a_row_that_brings_profiles_is_compared_like_those_of_others(monkeypatch):
    row = methods.Method(
        "rlaif", profiler="rlaif", shuffled=("10h+",), group=methods.RIVAL
    )
    monkeypatch.setattr(methods, "METHODS", (*METHODS, row))
    names = ["base", "blue", "rlaif", "10h+rlaif", "10h+base", "10h+shuffled_rlaif"]
    found = methods.pairs(names)
    assert found[-4:] == [
        *(("rlaif", "base"), ("10h+rlaif", "10h+base"), ("blue", "rlaif")),
        ("10h+rlaif", "10h+shuffled_rlaif"),
    ]
