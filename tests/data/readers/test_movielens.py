"""The MovieLens reader: both kinds of files, titles, joined folders, real logs."""

import functools
import gzip

import pytest

from blue.data.log import join
from blue.data.readers.movielens import movie
from tests.helpers.movielens_files import MOVIES, RATINGS, read, write_csv
from tests.helpers.real_logs import real_log


def write_dat(path, encoding="utf-8", gz=False):
    ratings = "".join(line.replace(",", "::") + "\n" for line in RATINGS)
    movies = "".join("::".join(movie) + "\n" for movie in MOVIES)
    for name, text in (("ratings.dat", ratings), ("movies.dat", movies)):
        content = text.encode(encoding)
        if gz:
            (path / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (path / name).write_bytes(content)


def check(log):
    assert log.user_ids == ["1", "2"] and log.item_ids == ["0007", "0012"]
    assert log.titles == ["L'Avventura (The Adventure) (1960)", "Amélie, 2nd cut"]
    assert log.texts[0].endswith("(1960). Drama, Mystery, Romance")
    assert log.texts[1] == "Amélie, 2nd cut."
    assert log.columns == {
        "year": ["1960", ""],
        "genres": ["Drama, Mystery, Romance", ""],
    }
    assert (log.user.tolist(), log.item.tolist()) == ([0, 0, 1], [1, 0, 0])
    assert log.timestamp.tolist() == [100, 300, 200]
    assert log.rating.tolist() == [2.5, 4, 5]
    assert (log.rows_read, log.rows_bad) == (5, {})


def test_csv(tmp_path):
    write_csv(tmp_path)
    check(read(tmp_path))


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_dat(tmp_path, encoding, gz):
    write_dat(tmp_path, encoding, gz)
    check(read(tmp_path))


@pytest.mark.parametrize(
    "raw, title, year",
    [
        ("Matrix, The (1999)", "The Matrix", "1999"),
        ("Toy Story (1995)", "Toy Story", "1995"),
        ("Vie en rose, La (Môme, La) (2007)", "La Vie en rose (La Môme)", "2007"),
        ("Shop, The (a.k.a. Store, A) (1940) ", "The Shop (a.k.a. A Store)", "1940"),
        ("Good, the Bad and the Ugly, The (Buono, il brutto, Il) (1966)",)
        + ("The Good, the Bad and the Ugly (Il Buono, il brutto)", "1966"),
        ("Boot, Das (Boat, The) (1981)", "Das Boot (The Boat)", "1981"),
        ("Fawlty Towers (1975-1979)", "Fawlty Towers", "1975"),
        ("Doctor Who (2005\u2013 )", "Doctor Who", "2005"),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey", "1968"),
        ("1984", "1984", ""),
        ("Cosmos, Thea (2000)", "Cosmos, Thea", "2000"),
        ("(500) Days of Summer (2009)", "(500) Days of Summer", "2009"),
        ("([REC] 3)", "([REC] 3)", ""),
        ("", "", ""),
    ],
)
def test_titles(raw, title, year):
    assert movie(raw, "")["title"] == title
    assert movie(raw, "")["year"] == year


def test_a_movie_without_a_title_is_left_out_with_its_ratings(tmp_path):
    write_csv(tmp_path, movies=[MOVIES[0], ("0012", "", "Drama")])
    log = read(tmp_path, max_bad_fraction=0.0)
    assert log.item_ids == ["0007"] and len(log.item) == 2
    assert log.rows_bad == {
        "items: item without a title": 1,
        "events: item without a title": 1,
    }


def test_unknown_template_column_lists_those_there_are(tmp_path):
    write_csv(tmp_path)
    with pytest.raises(ValueError, match="'brand'.*title, year, genres"):
        read(tmp_path, item_template="{title} {brand}")


def test_a_folder_without_the_files(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    with pytest.raises(ValueError, match="no ratings.csv with movies.csv"):
        read(tmp_path)


# --- real logs: users, events and rated items as their READMEs say


@functools.cache
def real(folder):
    return real_log("movielens", folder, item_template="{title} ({year}). {genres}")


@pytest.mark.parametrize(
    "folder, users, events, rated",
    [
        ("movielens_latest_small", 488, 80_535, 9_033),
        ("movielens_small_2015_2016", 1_434, 210_602, 11_192),
        ("movietweetings_2013", 14_757, 99_391, 10_775),
    ],
)
def test_real_logs(folder, users, events, rated):
    log = real(folder)
    assert (len(log.user_ids), len(log.item)) == (users, events)
    assert len(set(log.item.tolist())) == rated and log.rows_bad == {}
    assert log.rows_read == events + len(log.item_ids)
    assert len(set(log.titles)) > 0.9 * len(log.titles)


def test_ids_of_movietweetings_keep_their_zeros():
    log = real("movietweetings_2013")
    assert log.item_ids[0] == "0000628"
    assert log.texts[0] == "The Adventures of Dollie (1908). Action, Short"


def test_the_two_movielens_folders_joined():
    log = join([real("movielens_latest_small"), real("movielens_small_2015_2016")])
    assert (len(log.user_ids), len(log.item)) == (1_922, 80_535 + 210_602)
    assert log.rows_bad == {}
