"""A real log of entry sessions on a laptop: MovieLens, rolling targets, an embargo.

python -m blue.main --config=configs/profiler_movielens.py --workdir=runs/movielens \\
  --config.data.path=DIR

DIR holds ratings.csv and movies.csv of a MovieLens release (grouplens.org; its licence
forbids passing it on); several folders, separated by commas, are joined. Cite: Harper,
Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.

Half of the users rate everything within the hour, page by page. The paper's one-hour
window would drop them, and the last titles would tell the next. So targets are spread
over a user's log, and the ten events before each are withheld.
experiments/movielens/ has the recorded run.
"""

from ml_collections import ConfigDict

from configs import base, profiler_movietweetings


def get_config(arg: str | None = None) -> ConfigDict:
    """The MovieLens run, or two steps on fake data with arg "tiny"."""
    c = profiler_movietweetings.get_config()
    c.data.path = "movielens"  # given on the command line
    c.data.min_interactions = 20  # as in the paper
    c.data.max_interactions = 3000  # users with long logs are many here
    c.data.rolling_targets = 10
    c.data.embargo_items = 10
    c.data.min_history = 10
    return base.with_argument(c, arg)
