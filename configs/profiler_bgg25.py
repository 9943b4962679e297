"""A real log with times true to the month: BoardGameGeek, whole months held out.

python -m blue.main --config=configs/profiler_bgg25.py --workdir=runs/bgg25 \\
  --config.data.path=DIR

DIR holds ratings.tsv.gz (user_id, game_id, rating, timestamp) and games.jsonl, which
experiments/bgg25/games.py makes of the metadata files of the public BGG25 repository
(github.com/jljorro/bgg-dataset; for research use). experiments/bgg25/ has the recorded
run.
"""

from ml_collections import ConfigDict

from configs import base, profiler_xwines


def get_config(arg: str | None = None) -> ConfigDict:
    """The BGG25 run, or two steps of tiny models on fake data with arg "tiny"."""
    c = profiler_xwines.get_config()
    c.data.path = "bgg25"  # given on the command line
    c.data.events, c.data["items"] = "ratings.tsv.gz", "games.jsonl"
    c.data.columns.user_id, c.data.columns.item_id = "user_id", "game_id"
    c.data.columns.timestamp, c.data.columns.rating = "timestamp", "rating"
    c.data.columns.items_item_id = "id"
    c.data.title_template = "{name} | {year} | {categories}"
    c.data.item_template = "{name}. {categories} game ({year})"
    c.data.category = "type"
    c.data.pseudo_item_template = "{categories} game ({year})"
    c.data.min_interactions = 20  # as in the paper; about 19,000 users
    # every stamp is the first of a month: a window of no length is the last month
    c.data.window_s = 0
    c.data.min_history = 5
    return base.with_argument(c, arg)
