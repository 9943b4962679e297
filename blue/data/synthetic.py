"""A world with a known answer: users whose topics and favourite brands are known.

Items are four plain words, `brand shared word word`, the last two of the item's topic.
A user has two topics (.65, .35 of the items) and a favourite brand in each; one topic
may be replaced later. All items are equally popular in expectation, so another user's
profile helps no more than chance.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from blue.data.examples import rng_for
from blue.data.log import Log
from blue.errors import UserError

_WEIGHTS = (0.65, 0.35)  # of a user's two topics
_WINDOW_S = 3600  # items of the last hour are targets in training, so never noise
_DAY_S = 86400
_START_S = 1_577_836_800  # 2020-01-01, when the first histories start

# 24 topics: three brands | twenty words, the most frequent first
_TOPICS = """
moravo kelbin tassino | coffee espresso latte mocha roast grinder barista filter
 kettle crema beans mug arabica decaf brew press aroma drip cappuccino froth
verdano plintor hazelin | garden seed shovel rake compost tulip rose trowel mulch
 hedge lawn sprout planter orchid pruner soil fern greenhouse ivy hose
brackor lunmar wexfin | fishing rod reel lure bait trout salmon hook tackle angler
 pike sinker bobber minnow carp waders river sturgeon jig bass
dolmera crustivo pannelo | baking flour yeast dough cake muffin cookie whisk oven
 pastry bread icing sugar vanilla cupcake pie loaf batter cinnamon croissant
sonaro lyvent tembrio | guitar piano violin drum melody chord cello flute trumpet
 banjo ukulele harmonica song tempo rhythm amplifier metronome harp vinyl jazz
norvask tarnell fjordan | camping tent lantern trail hiking summit canteen hammock
 campfire compass backpack boots cabin firewood ridge thermos cooler whistle ranger
 forest
silvane loomera textaro | sewing needle thread fabric yarn knitting crochet button
 zipper thimble quilt ribbon linen stitch wool pattern bobbin velvet lace denim
optivar lumero fokalin | camera lens tripod shutter flash photo aperture zoom
 portrait selfie film darkroom panorama snapshot focus exposure album gimbal frame
 studio
artessa chromel vandrio | painting canvas brush easel palette watercolor acrylic
 sketch crayon charcoal mural pastel pigment artist gallery varnish stencil ink
 marker collage
velkor rondaro spinaro | bicycle pedal saddle helmet handlebar spoke wheel chain
 tandem cyclist brake gear bike sprocket kickstand crank fender derailleur bell rim
ludaro mindor quibbex | chess pawn knight rook bishop dice puzzle domino checkers
 poker joker token dungeon wizard jigsaw trivia riddle meeple backgammon card
cozelle tinkaro lulimo | baby crib stroller diaper pacifier rattle bottle bib nursery
 lullaby toddler blanket cradle onesie teether infant bonnet playpen booties nap
barkeno whiskaro pawlin | dog puppy leash collar kennel bone fetch paw cat kitten
 whisker litter hamster aquarium parrot biscuit grooming feather chew treat
grindal tremoro oakenby | hammer chisel drill plywood lumber saw screw lathe oak
 walnut sander clamp nail workbench plank joinery pine hinge mallet timber
wavaro sunelle driftan | beach surf snorkel towel sandal wave swimsuit goggles
 sunscreen umbrella seashell paddle kayak lagoon sand tide reef bikini flipper coral
polarin frostel skadron | ski snowboard sled mitten scarf glacier snow igloo parka
 frost skate slope chalet blizzard gloves icicle avalanche sleigh earmuffs toboggan
bellavo rosmira dermelle | lipstick mascara perfume shampoo lotion blush serum cream
 polish soap eyeliner moisturizer powder conditioner comb hairbrush makeup cologne
 toner balm
scribano papello notaro | notebook pencil stapler desk folder paper envelope eraser
 calendar planner binder ruler highlighter clipboard scissors printer stamp memo
 drawer diary
astrelo orbinax stellvar | telescope planet comet galaxy moon star orbit meteor
 nebula eclipse rocket saturn jupiter mars cosmos asteroid satellite solar lunar
 astronaut
bytaro coddex netvio | laptop keyboard monitor mouse router processor tablet headset
 charger software pixel laser server webcam microchip robot wireless screen modem
 coding
drivano torqel motraxo | car engine wiper bumper dashboard garage motor exhaust
 clutch piston diesel spark axle radiator sedan truck windshield muffler turbo
 headlight
stamino flexaro pulsen | running sprint marathon dumbbell yoga treadmill squat gym
 sneaker barbell stretch jogging workout protein pilates muscle cardio athlete
 fitness sweat
gemaro lustrelle aurivo | necklace bracelet earring diamond ruby emerald pearl
 sapphire locket pendant silver gold gem opal topaz brooch tiara anklet amethyst
 jewel
cucino potaro savelle | kitchen skillet spatula saucepan ladle knife spoon plate wok
 blender cutlery apron toaster colander grater fork bowl peeler casserole recipe
"""
_SPLIT = [topic.split("|") for topic in _TOPICS.strip().replace("\n ", " ").split("\n")]
BRANDS = tuple(tuple(brands.split()) for brands, _ in _SPLIT)  # [topics][3]
WORDS = tuple(tuple(words.split()) for _, words in _SPLIT)  # [topics][20]
SHARED_WORDS = tuple(
    """classic mini deluxe premium basic modern vintage compact portable large small
    soft sturdy bright dark plain simple elegant durable light heavy quick smart
    royal daily travel family original special super ultra pocket giant slim
    double single natural pure fresh fine""".split()
)
_NUM_BRANDS = len(BRANDS[0])


class Truth(NamedTuple):
    """The true tastes, for tests and metrics only; a `Log` does not contain them."""

    topic_weights: Float32[np.ndarray, "users topics"]  # at first
    final_topic_weights: Float32[np.ndarray, "users topics"]  # after the drift
    favourite_brands: Int32[np.ndarray, "users topics"]  # index into BRANDS[topic]
    item_topics: Int32[np.ndarray, " items"]  # index into WORDS and BRANDS
    item_brands: Int32[np.ndarray, " items"]  # index into BRANDS[topic]
    noise: Bool[np.ndarray, " n"]  # events drawn uniformly over the catalogue


class World(NamedTuple):
    """Sizes and probabilities: the settings of config.data.synthetic."""

    users: int
    items: int
    topics: int
    noise: float  # share of events that are uniform over the catalogue, in [0, 1]
    loyalty: float  # chance that an event of a topic is of the favourite brand
    drift: float  # chance that one of two topics is replaced at 20 to 70% of the events
    burst: float  # chance that an event is minutes after the one before it
    min_history: int  # events of a user, without the last
    max_history: int


def make(seed: int, world: World) -> tuple[Log, Truth]:
    """A log of `users` users, and their true tastes.

    A user has `min_history` to `max_history` events and one more, which is never noise.
    No user has an item twice. Events are 1 to 10 days apart, or with chance `burst`
    minutes. The events of the last hour are never noise.

    Raises:
      UserError: one line that names the field that is out of range.
    """
    users, items, topics, noise, loyalty, drift, burst, *history = world
    min_history, max_history = history
    lengths = (min_history, max_history)
    shares = dict(noise=noise, loyalty=loyalty, drift=drift, burst=burst)
    _check(users, items, topics, lengths, shares)
    catalogue = _make_catalogue(seed, items, topics)
    tastes = _draw_tastes(seed, users, catalogue)
    histories = [
        _draw_history(
            rng_for(seed, "synthetic user", user),
            _Taste(*(row[user] for row in tastes)),
            catalogue,
            lengths=lengths,
            **shares,
        )
        for user in range(users)
    ]
    truth = Truth(
        topic_weights=_weights([h.first_topics for h in histories], topics),
        final_topic_weights=_weights([h.last_topics for h in histories], topics),
        favourite_brands=tastes.brands,
        item_topics=catalogue.topics,
        item_brands=catalogue.brands,
        noise=np.concatenate([h.noise for h in histories]),
    )
    return _make_log(catalogue.titles, histories), truth


def _check(
    users: int,
    items: int,
    topics: int,
    lengths: tuple[int, int],
    shares: Mapping[str, float],
) -> None:
    if not 3 <= topics <= len(WORDS):
        raise UserError(f"data.synthetic.topics={topics} must be 3 to {len(WORDS)}")
    if users < 1:
        raise UserError(f"data.synthetic.users={users} must be 1 or more")
    if not 1 <= lengths[0] <= lengths[1]:
        raise UserError(
            f"data.synthetic.min_history={lengths[0]} must be 1 to "
            f"max_history={lengths[1]}"
        )
    fewest, most = max(_NUM_BRANDS * topics, 2 * lengths[1] + 2), 5000 * topics
    if not fewest <= items <= most:
        raise UserError(
            f"data.synthetic.items={items} must be {fewest} to {most} with {topics} "
            f"topics and histories of up to {lengths[1]} items"
        )
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"data.synthetic.{name}={share} must be 0 to 1")


# --------------------------------------------------------------------------- items


class _Catalogue(NamedTuple):
    titles: list[str]
    topics: Int32[np.ndarray, " I"]
    brands: Int32[np.ndarray, " I"]
    of_topic: list[Int64[np.ndarray, " k"]]  # the items of each topic
    of_brand: list[list[Int64[np.ndarray, " k"]]]  # and of each of its brands


def _make_catalogue(seed: int, items: int, topics: int) -> _Catalogue:
    """The catalogue; topics, and brands in them, have equally many items, up to one."""
    rng = rng_for(seed, "synthetic items")
    slots = rng.permutation(items)  # an item's number is independent of its topic
    topic = (slots % topics).astype(np.int32)
    brand = (slots // topics % _NUM_BRANDS).astype(np.int32)
    frequency = np.arange(1, len(WORDS[0]) + 1) ** -0.5
    frequency /= frequency.sum()
    titles: dict[str, None] = {}
    for own_topic, own_brand in zip(topic, brand, strict=True):
        before = len(titles)
        while len(titles) == before:  # an existing title is drawn again
            words = rng.choice(len(frequency), size=2, replace=False, p=frequency)
            shared = SHARED_WORDS[rng.integers(len(SHARED_WORDS))]
            spoken = " ".join(WORDS[own_topic][word] for word in words)
            titles[f"{BRANDS[own_topic][own_brand]} {shared} {spoken}"] = None
    return _Catalogue(
        titles=list(titles),
        topics=topic,
        brands=brand,
        of_topic=[np.flatnonzero(topic == t) for t in range(topics)],
        of_brand=[
            [np.flatnonzero((topic == t) & (brand == b)) for b in range(_NUM_BRANDS)]
            for t in range(topics)
        ],
    )


# --------------------------------------------------------------------------- users


class _Tastes(NamedTuple):
    """The tastes of all users; a topic's share of users equals its share of items."""

    main: Int32[np.ndarray, " users"]
    second: Int32[np.ndarray, " users"]
    later: Int32[np.ndarray, " users"]  # the topic that comes with a drift
    brands: Int32[np.ndarray, "users topics"]


class _Taste(NamedTuple):
    """One row of `_Tastes`."""

    main: int
    second: int
    later: int
    brands: Int32[np.ndarray, " topics"]


def _draw_tastes(seed: int, users: int, catalogue: _Catalogue) -> _Tastes:
    rng, topics = rng_for(seed, "synthetic tastes"), len(catalogue.of_topic)
    main = _balanced(rng, catalogue.topics, users)
    second = _avoid(rng, _balanced(rng, catalogue.topics, users), [main], topics)
    later = _balanced(rng, catalogue.topics, users)
    later = _avoid(rng, later, [main, second], topics)
    brands = [_balanced(rng, catalogue.brands[of], users) for of in catalogue.of_topic]
    return _Tastes(main, second, later, np.stack(brands, axis=1))


def _balanced(
    rng: np.random.Generator, kinds: Int32[np.ndarray, " I"], users: int
) -> Int32[np.ndarray, " users"]:
    """A kind for each user, as frequent as among the items, up to one user."""
    places = (np.arange(users) + rng.random()) * len(kinds) / users
    return rng.permutation(np.sort(kinds)[places.astype(np.int64)])


def _avoid(
    rng: np.random.Generator,
    drawn: Int32[np.ndarray, " users"],
    taken: list[Int32[np.ndarray, " users"]],
    topics: int,
) -> Int32[np.ndarray, " users"]:
    """`drawn` with users swapped until nobody has a topic twice; keeps the balance."""
    for _ in range(100):
        clashes = np.flatnonzero(np.any([drawn == other for other in taken], axis=0))
        if not len(clashes):
            return drawn
        for user in clashes:
            partner = rng.integers(len(drawn))
            both = [user, partner]
            swapped = drawn[both[::-1]]
            if all((swapped != other[both]).all() for other in taken):
                drawn[both] = swapped
    for user in clashes:  # few users or topics: without balance
        free = set(range(topics)) - {int(other[user]) for other in taken}
        drawn[user] = rng.choice(sorted(free))
    return drawn


# ----------------------------------------------------------------------- histories


class _History(NamedTuple):
    items: Int32[np.ndarray, " n"]
    times: Int64[np.ndarray, " n"]
    ratings: Float32[np.ndarray, " n"]
    noise: Bool[np.ndarray, " n"]
    first_topics: tuple[int, int]
    last_topics: tuple[int, int]


def _draw_history(
    rng: np.random.Generator,
    taste: _Taste,
    catalogue: _Catalogue,
    *,
    noise: float,
    loyalty: float,
    drift: float,
    burst: float,
    lengths: tuple[int, int],
) -> _History:
    num = int(rng.integers(lengths[0], lengths[1] + 1)) + 1
    times = _draw_times(rng, num, burst)
    is_noise = (rng.random(num) < noise) & (times < times[-1] - _WINDOW_S)
    first = last = (int(taste.main), int(taste.second))
    switch = num
    if rng.random() < drift:
        switch = int(rng.uniform(0.2, 0.7) * num)
        new = int(taste.later)
        last = (first[0], new) if rng.random() < 0.5 else (new, first[1])
    items, ratings = np.zeros(num, np.int32), np.zeros(num, np.float32)
    taken = np.zeros(len(catalogue.topics), bool)
    # The last item first: later a small topic might be used up.
    for event in [num - 1, *range(num - 1)]:
        topics = first if event < switch else last
        if is_noise[event]:
            item = _any_item(rng, taken)
        else:
            item = _liked_item(rng, topics, taste.brands, catalogue, taken, loyalty)
        items[event], taken[item] = item, True
        topic, liked = catalogue.topics[item], 0.0
        if topic in topics:
            liked = 1.0 + _WEIGHTS[topics.index(topic)]
            liked += 0.5 * (catalogue.brands[item] == taste.brands[topic])
        ratings[event] = np.clip(np.round(2.5 + liked + 0.7 * rng.normal()), 1, 5)
    return _History(items, times, ratings, is_noise, first, last)


def _draw_times(
    rng: np.random.Generator, num: int, burst: float
) -> Int64[np.ndarray, " num"]:
    days = rng.integers(_DAY_S, 10 * _DAY_S, size=num)
    minutes = rng.integers(60, 900, size=num)
    gaps = np.where(rng.random(num) < burst, minutes, days)
    gaps[0] = rng.integers(365 * _DAY_S)
    return _START_S + np.cumsum(gaps)


def _liked_item(
    rng: np.random.Generator,
    topics: tuple[int, int],
    favourites: Int32[np.ndarray, " topics"],
    catalogue: _Catalogue,
    taken: Bool[np.ndarray, " I"],
    loyalty: float,
) -> int:
    """An item of one of the topics; of any when both are used up."""
    topic, other = topics if rng.random() < _WEIGHTS[0] else topics[::-1]
    pools = [catalogue.of_topic[topic], catalogue.of_topic[other]]
    if rng.random() < loyalty:
        pools.insert(0, catalogue.of_brand[topic][favourites[topic]])
    for pool in pools:
        free = pool[~taken[pool]]
        if len(free):
            return int(free[rng.integers(len(free))])
    return _any_item(rng, taken)


def _any_item(rng: np.random.Generator, taken: Bool[np.ndarray, " I"]) -> int:
    while True:  # at least half of the items are free
        item = int(rng.integers(len(taken)))
        if not taken[item]:
            return item


def _make_log(titles: list[str], histories: list[_History]) -> Log:
    lengths = [len(history.items) for history in histories]
    return Log(
        name="synthetic",
        user_ids=[f"user{user:07d}" for user in range(len(histories))],
        item_ids=[f"item{item:07d}" for item in range(len(titles))],
        titles=titles,
        texts=list(titles),
        user=np.repeat(np.arange(len(histories), dtype=np.int32), lengths),
        item=np.concatenate([history.items for history in histories]),
        timestamp=np.concatenate([history.times for history in histories]),
        rating=np.concatenate([history.ratings for history in histories]),
        rows_read=sum(lengths),
        rows_bad={},
    )


def _weights(
    pairs: list[tuple[int, int]], topics: int
) -> Float32[np.ndarray, "U topics"]:
    weights = np.zeros((len(pairs), topics), np.float32)
    weights[np.arange(len(pairs))[:, None], np.array(pairs)] = _WEIGHTS
    return weights
