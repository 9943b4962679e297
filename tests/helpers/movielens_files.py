"""A few ratings in MovieLens's files."""

from blue.data.readers import movielens

RATINGS = ["1,0007,4.0,300", "1,0012,2.5,100", "2,0007,5,200"]

MOVIES = [
    ("0007", "Avventura, L' (Adventure, The) (1960)", "Drama|Mystery|Romance"),
    ("0012", "Amélie, 2nd cut", "(no genres listed)"),
]


def read(path, **changes):
    arguments = dict(
        title_template="{title} ({year})",
        item_template="{title} ({year}). {genres}",
        item_columns=("year", "genres"),
        max_bad_fraction=0.01,
    )
    return movielens.read(str(path), **(arguments | changes))


def write_csv(path, ratings=RATINGS, movies=MOVIES):
    lines = ["userId,movieId,rating,timestamp", *ratings]
    (path / "ratings.csv").write_text("\n".join(lines) + "\n")
    lines = ["movieId,title,genres"]
    lines += [f'{number},"{title}",{genres}' for number, title, genres in movies]
    (path / "movies.csv").write_text("\n".join(lines) + "\n", "utf-8")
