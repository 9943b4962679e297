"""With a fake hub client and a server on this machine.

The real sources were not reached: their addresses and names are not tested here.
"""

import functools
import hashlib
import http.server
import io
import threading
import zipfile
from pathlib import Path

import pytest

from blue.data import download
from blue.data.readers import amazon_reviews_2023, movielens
from blue.errors import UserError


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that a server shows in the place of both https sources."""
    root = tmp_path / "site"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(download, "MOVIELENS", address)
    monkeypatch.setattr(download, "GOOGLE_LOCAL", address)
    yield root
    server.shutdown()
    server.server_close()


def write_release(site, md5=None):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as files:
        ratings = "userId,movieId,rating,timestamp\n1,2,3.5,100\n"
        files.writestr("ml-latest-small/ratings.csv", ratings)
        files.writestr("ml-latest-small/movies.csv", "movieId,title,genres\n2,Up,War\n")
        files.writestr("ml-latest-small/links.csv", "not wanted")
        files.writestr("../../README.txt", "licence")
    (site / "ml-latest-small.zip").write_bytes(content.getvalue())
    md5 = md5 or hashlib.md5(content.getvalue()).hexdigest()
    (site / "ml-latest-small.zip.md5").write_text(f"MD5 (ml-latest-small.zip) = {md5}")


def test_movielens(site, tmp_path, capsys):
    write_release(site)
    folder = tmp_path / "data"
    assert download.main(["", "movielens", "ml-latest-small", str(folder)]) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.txt", "movies.csv", "ratings.csv"]
    assert str(folder / "movies.csv") in capsys.readouterr().out
    template = dict(title_template="{title}", item_template="{title}")
    assert movielens.read(str(folder), **template, max_bad_fraction=0.0).titles == [
        "Up"
    ]


def test_a_wrong_checksum_leaves_nothing(site, tmp_path, capsys):
    write_release(site, md5="0" * 32)
    folder = tmp_path / "data"
    assert download.main(["", "movielens", "ml-latest-small", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "must be 0000" in error and error.count("\n") == 1
    assert not list(folder.iterdir())


def test_google_local_keeps_what_is_there(site, tmp_path, capsys):
    for kind in ("review", "meta"):
        (site / f"{kind}-New_York.json.gz").write_bytes(kind.encode() * 1000)
    folder = tmp_path / "data"
    for _ in range(2):
        assert download.main(["", "google_local", "New_York", str(folder)]) == 0
    assert (folder / "meta-New_York.json.gz").read_bytes() == b"meta" * 1000
    assert capsys.readouterr().out.count("is there already") == 2


def test_a_file_cut_short_is_not_kept(tmp_path, monkeypatch):
    class Reply(io.BytesIO):
        headers = {"Content-Length": "10"}

    monkeypatch.setattr(download, "_open", lambda address: Reply(b"123"))
    with pytest.raises(UserError, match="3 of 10 bytes"):
        download.google_local("New_York", tmp_path)
    assert not list(tmp_path.iterdir())


def test_amazon_asks_the_hub_for_files_that_the_reader_finds(tmp_path):
    asked = []

    def client(*, repo_id, repo_type, filename, local_dir):
        asked.append((repo_id, repo_type, filename))
        path = Path(local_dir, filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = '{"parent_asin": "B", "title": "Hat", "user_id": "U", '
        path.write_text(row + '"timestamp": 1000, "rating": 5}\n')
        return str(path)

    download.amazon_reviews_2023("Gift_Cards", tmp_path, client)
    assert [name for _, _, name in asked] == [
        "raw/review_categories/Gift_Cards.jsonl",
        "raw/meta_categories/meta_Gift_Cards.jsonl",
    ]
    assert asked[0][:2] == ("McAuley-Lab/Amazon-Reviews-2023", "dataset")
    template = dict(title_template="{title}", item_template="{title}")
    log = amazon_reviews_2023.read(str(tmp_path), **template, max_bad_fraction=0.0)
    assert (log.user_ids, log.item_ids) == (["U"], ["B"])


@pytest.mark.parametrize(
    "source, name, hint",
    [
        ("amazon_reviews_2023", "Giftcards", "Gift_Cards"),
        ("movielens", "ml-latest-smal", "ml-latest-small"),
        ("google_local", "../New_York", "New_York"),
        ("google_local", "Nowhere", "404"),
    ],
)
def test_names_that_are_not_there(site, tmp_path, capsys, source, name, hint):
    assert download.main(["", source, name, str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert hint in error and error.count("\n") == 1
