"""A real log in its true order on a laptop: MovieTweetings, small models.

python -m blue.main --config=configs/profiler_movietweetings.py --workdir=runs/tweets \\
  --config.data.path=DIR

DIR holds ratings.dat and movies.dat (or .dat.gz) of the public MovieTweetings
repository (github.com/sidooms/MovieTweetings, MIT). Its authors ask to cite: Dooms, De
Pessemier, Martens, "MovieTweetings: a Movie Rating Dataset Collected From Twitter",
CrowdRec at RecSys 2013. experiments/movietweetings/ has the recorded run.
"""

from ml_collections import ConfigDict

from configs import base, profiler_xwines


def get_config(arg: str | None = None) -> ConfigDict:
    """The MovieTweetings run, or two steps on fake data with arg "tiny"."""
    c = profiler_xwines.get_config()
    c.data.name = "movielens"  # the same file format
    c.data.path = "movietweetings"  # given on the command line
    c.data.title_template = "{title} | {year} | {genres}"
    c.data.item_template = "{title}. {genres} movie ({year})"
    c.data.category = "genres"
    c.data.pseudo_item_template = "{genres} movie ({year})"
    c.data.min_interactions = 10  # about 2,400 users
    c.data.window_policy = "rolling"
    c.data.rolling_targets = 5
    c.data.min_history = 5
    return base.with_argument(c, arg)
