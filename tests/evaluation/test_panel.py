"""The panel by hand-worked numbers, on hostile text, and on a world with an answer."""

import zlib

import numpy as np
import pytest

from blue.data import synthetic
from blue.evaluation import panel
from blue.text.rule_profiles import profile_word_stats
from blue.text.words import folded_words

TITLES = ["Star Wars: Episode IV (1977)", "The Lord of the Rings", "fine coffee mug"]
HOSTILE = {
    "empty": "",
    "spaces": " \n\t\u3000 ",
    "punctuation": '...!!! ??? — «» "" 《》',
    "hidden": "\u200b\u202e\x00\ud800",
    "marks": "*_#|[](){}\\",
}


def mention_words(text):
    return [folded_words(span) for span in panel.mentions(text)]


# --- mentions


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The user likes jazz, red tea and Merlot.", ["jazz", "red tea", "merlot"]),
        ("The user likes jazz", ["jazz"]),  # cut off
        ("The user is new.", []),
        ("Loves Star Wars, Heat and The Matrix.", ["star wars", "heat", "the matrix"]),
        ("He saw The Lord of the Rings often.", ["the lord of the rings"]),
        ("He saw Toy Story 2 in 1999.", ["toy story 2"]),  # a number starts no name
        ("He saw Star Wars: Episode IV.", ["star wars episode iv"]),
        ("Enjoys quiet walks. The rest is silence.", []),
        ("I think I am The One.", ["the one"]),
        ('Reads "a quiet place" and «le chat».', ["a quiet place", "le chat"]),
        ("他喜欢《三体》和「君の名は」。", ["三 体", "君 の 名 は"]),
        (f"He said {'Very ' * 30}.", ["very " * 29 + "very"]),
        (f"He said {'Very ' * 31}.", []),  # no title is that long
        ('An unclosed "quote and “another.', []),
    ],
)
def test_mentions_are_named_quoted_or_listed(text, expected):
    assert sorted(" ".join(w) for w in mention_words(text)) == sorted(expected)


@pytest.mark.parametrize(
    "span, supported",
    [
        ("Star Wars", True),  # 2 of 2 words
        ("Star Trek", False),  # 1 of 2
        ("Star Wars Trek", True),  # 2 of 3: .67
        ("Star Wars Rebels Trek", False),  # 2 of 4
        ("Star Wars Coffee Mug", False),  # all words occur, in no single title
        ("The Return of the Rings", False),  # "the", "of" do not count: 1 of 2
        ("The Lord of Rings", True),
        ("Wars Star", True),  # a set has no order
        ("of the", True),  # nothing but joining words: they count
    ],
)
def test_a_title_supports_a_mention_that_shares_most_words(span, supported):
    missing, total = panel.unsupported_mentions(f'He took "{span}" home.', TITLES)
    assert (missing, total) == (int(not supported), 1)
    words = panel._telling(folded_words(span))
    by_set = max(len(words & set(folded_words(t))) / len(words) for t in TITLES)
    assert supported == (by_set >= 0.6)


def test_support_agrees_with_sets_on_random_spans():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(12)]
    for _ in range(300):
        pick = lambda n: rng.choice(vocabulary, size=n, replace=False)
        titles = [" ".join(pick(rng.integers(1, 8))) for _ in range(rng.integers(4))]
        span = pick(rng.integers(1, 9))
        shares = [len(set(span) & set(t.split())) / len(span) for t in titles]
        missing, _ = panel.unsupported_mentions(f'"{" ".join(span)}"', titles)
        assert missing == (max(shares, default=0.0) < 0.6 - 1e-9), (span, titles)


def test_hallucination_by_hand():
    text = "The user likes coffee, tents, fine mug and Star Trek."
    assert panel.mention_hallucination(text, TITLES) == 0.5
    assert panel.mention_hallucination(text, []) == 1.0
    assert np.isnan(panel.mention_hallucination("likes quiet things", TITLES))


# --- the other statistics


@pytest.mark.parametrize(
    "text, share",
    [
        ("He likes tea. He will buy tea. They might also enjoy cake! Fine.", 2 / 4),
        ("Will take tents.", 1.0),
        ("He saw Good Will Hunting.", 0.0),
        ('He saw "I will survive".', 0.0),
        ("Their next purchase is tea. It's likely green.", 1.0),
        ("They may like it, as in May.", 1.0),
        ("The last might of kings.", 0.0),
    ],
)
def test_speculation_by_hand(text, share):
    assert panel.speculation_rate(text) == share


def test_leaks_by_hand():
    target, history = "big red canvas tent deluxe", ["blue tent", "red canvas bag"]
    leak = lambda text, titles=history, t=target: panel.target_leak(text, titles, t)
    assert leak("wants a Big, Red canvas-tent now")  # four of five words in a row
    assert not leak("wants a big red canvas bag, a tent")  # three in a row
    assert not leak("a big red canvas tent", ["my big red canvas tent"])  # known
    assert leak("likes Heat", ["Alien"], "Heat") and not leak("heater", [], "Heat")
    assert leak("likes red tea.", ["red mug"], "Red Tea")  # short: the whole title
    assert not leak("likes red", [], "Red Tea") and not leak("any", [], "!!!")

    assert panel.history_leak(["x", "new Big red canvas tent: deluxe edition"], target)
    assert not panel.history_leak(["big red canvas tent"], target)
    assert not panel.history_leak(["heater"], "heat")
    assert not panel.history_leak(["x"], "") and not panel.history_leak([], "heat")


def test_copy_rate_by_hand():
    titles = ["big red canvas tent", "cup"]
    assert panel.copy_rate("a big red canvas tent and", titles) == 4 / 6
    assert panel.copy_rate("big red canvas tent", titles) == 1.0
    assert panel.copy_rate("red canvas tent, cup", titles) == 0.0
    assert panel.copy_rate("他喜欢红色帆布帐篷", ["红色帆布帐篷"]) == 6 / 9
    assert panel.copy_rate("", titles) == panel.copy_rate("a b", []) == 0.0


def test_repetition_by_hand():
    assert panel.repetition("a b c a b c", n=3) == 1 / 4  # abc bca cab abc
    assert panel.repetition("a b c, a b c A B C", n=3) == pytest.approx(1 - 3 / 7)
    assert panel.repetition("a b c a b c", n=4) == 0.0
    assert panel.repetition("a a a a a", n=4) == 1 / 2
    assert panel.repetition("a b", n=3) == 0.0


def test_compression_is_of_bytes():
    text = "likes tea and tents. " * 30
    assert panel.compression(text) == len(zlib.compress(text.encode())) / len(text)
    assert panel.compression(text) < 0.1 < 0.9 < panel.compression("likes tea, tents")
    assert 0 < panel.compression("茶" * 200) < 0.1
    assert np.isnan(panel.compression(""))


def test_boilerplate_leaves_the_own_profile_out():
    def shares(profiles):
        return panel.boilerplate(profiles).tolist()

    assert shares(["a b c d e f"] * 3) == [1.0] * 3
    assert shares(["likes tea"] * 2) == [1.0] * 2  # shorter than a gram
    # one of two grams is the other's too, whatever its own repeats
    assert shares(["a b c d e x", "a b c d e y"]) == [0.5, 0.5]
    assert shares(["a a a a a a a a", "b b b b b b"]) == [0.0, 0.0]
    # 20 others: 5% of them is one, so a gram needs two others
    rest = [f"p{i} q r s t" for i in range(19)]
    assert shares(["a b c d e", "a b c d e", *rest])[:2] == [0.0, 0.0]
    assert shares(["a b c d e"] * 3 + rest[:18])[:3] == [1.0] * 3
    # three profiles of one user are one holder, who is not another
    mine = panel.boilerplate(["a b c d e"] * 3 + ["z"], ["me", "me", "me", "you"])
    assert mine.tolist() == [0.0] * 4
    ours = panel.boilerplate(["a b c d e"] * 3, ["me", "me", "you"])
    assert ours.tolist() == [1.0] * 3
    assert np.isnan(panel.boilerplate(["a b", "a b"], ["me", "me"])).all()
    assert np.isnan(shares(["alone in the world now"])).all()
    assert np.isnan(shares(["", "a"])[0])


def test_reidentification_by_hand():
    eye = np.eye(3, dtype=np.float32)
    assert panel.reid_at_1(eye, eye).tolist() == [1, 1, 1]
    assert panel.reid_at_1(eye, eye[[0, 2, 1]]).tolist() == [1, 0, 0]
    assert panel.reid_at_1(eye, eye[[0, 0, 2]]).tolist() == [0, 0, 1]  # a tie; a loss
    # the same user's other row does not compete, with its tie or otherwise
    hits = panel.reid_at_1(eye, eye[[0, 0, 1]], ["a", "a", "b"])
    assert hits.tolist() == [1, 0, 0]
    broken = eye.copy()
    broken[1] = np.nan
    assert panel.reid_at_1(broken, eye).tolist() == [1, 0, 1]
    rng = np.random.default_rng(0)  # more users than a block
    points = rng.normal(size=(1500, 8))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    assert panel.reid_at_1(points, points).mean() == 1.0
    assert panel.reid_at_1(points, np.roll(points, 1, axis=0)).mean() == 0.0


def test_shuffle_drop_is_a_paired_difference():
    drop = panel.shuffle_drop(np.array([1.0, 0.5]), np.array([0.25, 0.5]))
    assert drop.tolist() == [0.75, 0.0]


# --- the whole panel


def test_panel_of_one_profile_by_hand():
    text = "Loves Star Wars and Alien. He will take a fine coffee mug."
    found = panel.statistics([text], [TITLES], ["Alien"])
    assert found == {
        "mention_hallucination": 0.5,
        "mentions": 2.0,
        "speculation_rate": 0.5,
        "target_leak": 1.0,
        "history_leak": 0.0,
        "copied": 0.0,
        "in_history": profile_word_stats(text, TITLES)["in_history"],
        "repeated_3grams": 0.0,
        "repeated_4grams": 0.0,
        "distinct_words": 1.0,
        "compression": len(zlib.compress(text.encode())) / len(text),
        "empty": 0.0,
        "words": 12.0,
        "words_p95": 12.0,
    }


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_profiles_of_nothing_are_defined(text):
    found = panel.statistics([text, "likes tea"], [TITLES, []], ["mug", text])
    assert found["empty"] == 0.5 and found["words"] == 1.0
    assert np.isfinite(list(found.values())).all()
    alone = panel.statistics([text], [[text]], [text])
    assert np.isfinite(list(alone.values())).all()
    assert "mention_hallucination" not in alone and alone["history_leak"] == 0.0


LONG = {
    "one quote": '"' * 90_000,
    "open quotes": "“a" * 30_000,
    "quoted names": '"Aa" ' * 20_000,
    "names": "Aa " * 30_000,
    "initials": "A.B-" * 25_000,
    "gaps": "Aa" + " :" * 40_000,
    "list": "The user likes " + "a, " * 30_000,
    "future": "may " + "also " * 20_000,
    "lines": "\n" * 90_000,
    "spaces": " " * 90_000,
    "no spaces": "好" * 90_000,
    "one word": "a" * 90_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_very_long_profiles_end(text):
    """A cost that grows with the square would take hours."""
    found = panel.statistics([text, "likes tea"], [TITLES, TITLES], ["mug", "tea"])
    assert np.isfinite(list(found.values())).all()


def test_each_title_is_read_once_whoever_has_it():
    catalogue = [f"read once {i} of many" for i in range(300)]
    profiles = [f"The user likes {title}." for title in catalogue[:50]]
    panel._read.cache_clear()
    panel.statistics(profiles, [catalogue] * 50, ["none"] * 50)
    assert panel._read.cache_info().misses == len(catalogue) + 1  # and the target


def test_intervals_leave_out_users_without_a_value():
    values = {
        "a": np.array([0.0, 1.0, np.nan, 1.0]),
        "b": np.full(4, np.nan),
    }
    found = panel.intervals(values, resamples=200, seed=0)
    assert set(found) == {"a"} == set(panel.means(values))
    assert found["a"].mean == panel.means(values)["a"] == pytest.approx(2 / 3)
    assert 0 <= found["a"].low < 2 / 3 < found["a"].high <= 1


def test_several_profiles_of_a_user_count_as_one_user():
    profiles = ["", "The user likes mug.", "The user likes tents and mug."]
    rows = (profiles, [TITLES] * 3, ["x"] * 3)
    values = panel.per_user(*rows, ["b", "a", "a"])
    assert values["words"].tolist() == [5.0, 0.0]  # users sorted: a, b
    assert values["mention_hallucination"].tolist()[:1] == [0.25]
    assert np.isnan(values["mention_hallucination"][1])
    found = panel.statistics(*rows, ["b", "a", "a"])
    assert (found["words"], found["mention_hallucination"]) == (2.5, 0.25)
    assert panel.statistics(*rows, np.array([7, 3, 3])) == found
    assert panel.statistics(*rows)["words"] == pytest.approx(10 / 3)


# --- the world with a known answer


class World:
    """200 users of the synthetic world: histories, targets, and what Truth says."""

    def __init__(self):
        world = synthetic.World(
            users=200, items=720, topics=24, noise=0.3, loyalty=0.7, drift=0.0,
            burst=0.2, min_history=20, max_history=30,
        )  # fmt: skip
        log, truth = synthetic.make(5, world)
        events = [log.item[log.user == user].tolist() for user in range(200)]
        self.histories = [[log.titles[i] for i in own[:-1]] for own in events]
        self.targets = [log.titles[own[-1]] for own in events]
        self.others = np.roll(np.arange(200), 1)
        self.true = []  # profiles of the words most frequent in the true topics
        for weights in truth.topic_weights:
            main, second = np.argsort(weights)[:-3:-1]
            liked = synthetic.WORDS[main][:4] + synthetic.WORDS[second][:2]
            self.true.append(f"The user likes {', '.join(liked[:-1])} and {liked[-1]}.")

    def panel(self, profiles, histories=None):
        return panel.statistics(profiles, histories or self.histories, self.targets)


@pytest.fixture(scope="module")
def world():
    return World()


def test_true_tastes_are_supported_and_those_of_others_are_not(world):
    own = world.panel(world.true)
    shuffled = world.panel([world.true[i] for i in world.others])
    assert own["mentions"] == shuffled["mentions"] == 6.0
    assert own["mention_hallucination"] < 0.2
    assert shuffled["mention_hallucination"] > 0.6
    assert own["in_history"] > 0.8 > 0.4 > shuffled["in_history"]
    for clean in ("target_leak", "history_leak", "copied", "speculation_rate"):
        assert own[clean] == shuffled[clean] == 0.0


@pytest.mark.parametrize("every", [200, 10, 4, 1])
def test_planted_leaks_are_found_at_their_rate(world, every):
    told = [
        f"{text} Next comes {target}." if user % every == 0 else text
        for user, (text, target) in enumerate(
            zip(world.true, world.targets, strict=True)
        )
    ]
    found = world.panel(told)
    assert found["target_leak"] == 1 / every and found["history_leak"] == 0.0

    planted = [
        [*titles, target] if user % every == 0 else titles
        for user, (titles, target) in enumerate(
            zip(world.histories, world.targets, strict=True)
        )
    ]
    found = world.panel(told, planted)
    assert found["history_leak"] == 1 / every and found["target_leak"] == 0.0
    inside = [
        [f"{titles[0]}; {target}!", *titles[1:]] if user % every == 0 else titles
        for user, (titles, target) in enumerate(
            zip(world.histories, world.targets, strict=True)
        )
    ]
    assert world.panel(world.true, inside)["history_leak"] == 1 / every


def test_copies_and_constants_show(world):
    copies = world.panel([". ".join(titles) for titles in world.histories])
    assert copies["copied"] == 1.0 and copies["in_history"] == 1.0
    assert copies["boilerplate"] == 0.0
    constant = world.panel(["The user likes many different things of all kinds."] * 200)
    assert constant["boilerplate"] == 1.0 and constant["copied"] == 0.0
    again = world.panel([text * 5 for text in world.true])
    assert again["repeated_4grams"] > 0.6 > world.panel(world.true)["repeated_4grams"]
    assert again["compression"] < 0.5 * world.panel(world.true)["compression"]
    assert again["words"] == 5 * world.panel(world.true)["words"]
