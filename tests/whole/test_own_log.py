"""A log as a newcomer brings it: any file, any column names; mistakes in one line."""

import csv
import gzip
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from blue.main import main
from blue.sources.data import load_examples, load_log
from blue.workdir import settings

ROOT = Path(__file__).parents[2]
START = datetime(2024, 3, 1, 8, tzinfo=UTC)
COLUMNS = {
    "user_id": "kunde",
    "item_id": "artikel",
    "timestamp": "zeit",
    "rating": "sterne",
    "items_item_id": "artikelnr",
}
ITEMS = [(f"{i:03d}", f"Tee, Sorte {i} 🍵", f"Marke {i % 3}") for i in range(40)]
EVENTS = [  # 24 users with 6 to 11 events, each an item only once
    (
        f"K{user:02d}",
        ITEMS[(7 * user + 3 * place) % 40][0],
        START + timedelta(days=user, hours=5 * place),
        float(1 + (user + place) % 5) if place % 3 else None,
    )
    for user in range(24)
    for place in range(6 + user % 6)
]


# --- the same log in files of every kind


def write_text(path, separator, time, line_end="\n"):
    for name, header, rows in (
        ("kaeufe", ("kunde", "artikel", "zeit", "sterne"), EVENTS),
        ("artikel", ("artikelnr", "bezeichnung", "marke"), ITEMS),
    ):
        with (path / f"{name}.csv").open("w", newline="", encoding="utf-8-sig") as f:
            writer = csv.writer(f, delimiter=separator, lineterminator=line_end)
            writer.writerow(header)
            writer.writerows(
                [time(cell) if isinstance(cell, datetime) else cell for cell in row]
                for row in rows
            )
    return "kaeufe.csv", "artikel.csv"


def write_parquet(path):
    kunde, artikel, zeit, sterne = zip(*EVENTS, strict=True)
    zeit = pa.array(zeit, pa.timestamp("ms", tz="Europe/Berlin"))
    events = {"sterne": sterne, "zeit": zeit, "artikel": artikel, "kunde": kunde}
    parquet.write_table(pa.table(events), path / "kaeufe.parquet")
    columns = zip(*ITEMS, strict=True)
    names = ("artikelnr", "bezeichnung", "marke")
    parquet.write_table(
        pa.table(dict(zip(names, columns, strict=True))), path / "artikel.parquet"
    )
    return "kaeufe.parquet", "artikel.parquet"


def write_json(path, ending):
    keys = ("kunde", "artikel", "zeit", "sterne")
    events = [dict(zip(keys, row, strict=True)) for row in EVENTS]
    for event in events:
        event["zeit"] = event["zeit"].isoformat().replace("+00:00", "Z")
        if event["sterne"] is None:
            del event["sterne"]
    items = [
        {"artikelnr": i, "bezeichnung": title, "marke": brand}
        for i, title, brand in ITEMS
    ]
    for name, rows in (("kaeufe", events), ("artikel", items)):
        content = "\n".join(json.dumps(row) for row in rows).encode()
        content = gzip.compress(content) if ending.endswith("gz") else content
        (path / f"{name}.{ending}").write_bytes(content)
    return f"kaeufe.{ending}", f"artikel.{ending}"


BERLIN = timezone(timedelta(hours=1))
WRITERS = {
    "csv": lambda path: write_text(path, ",", lambda t: f"{t:%Y-%m-%d %H:%M:%S}"),
    "tsv": lambda path: write_text(path, "\t", lambda t: int(t.timestamp() * 1000)),
    "semicolon": lambda path: write_text(
        path, ";", lambda t: t.astimezone(BERLIN).isoformat(), "\r\n"
    ),
    "zone names": lambda path: write_text(
        path, "|", lambda t: f"{t:%Y/%m/%d %H:%M} UTC"
    ),
    "offsets": lambda path: write_text(
        path, ",", lambda t: f"{t.astimezone(BERLIN):%Y-%m-%d %H:%M:%S %z}"
    ),
    "parquet": write_parquet,
    "jsonl": lambda path: write_json(path, "jsonl"),
    "jsonl.gz": lambda path: write_json(path, "jsonl.gz"),
}


def flags(path, events="kaeufe.csv", items="artikel.csv", **columns):
    """The command's flags for these files, in the size of a test."""
    named = COLUMNS | columns
    return [
        "--config.data.name=table",  # :tiny has made-up data
        "--config.data.min_interactions=5",
        "--config.data.window_policy=rolling",
        "--config.data.eval_negatives=8",
        f"--config.data.path={path}",
        f"--config.data.events={events}",
        f"--config.data.items={items}",
        "--config.data.title_template={bezeichnung} ({marke})",
        *(f"--config.data.columns.{field}={name}" for field, name in named.items()),
    ]


def load(path, workdir, *more):
    argv = ["blue", f"--config={ROOT}/configs/profiler_table.py:tiny"]
    config, _ = settings.load([*argv, f"--workdir={workdir}", *more])
    log = load_log(config, str(workdir))
    return log, load_examples(config, log, str(workdir))


def test_the_same_log_comes_out_of_every_kind_of_file(tmp_path):
    fingerprints = {}
    for kind, write in WRITERS.items():
        folder = tmp_path / kind / "shop"
        folder.mkdir(parents=True)
        log, examples = load(
            folder, tmp_path / kind / "run", *flags(folder, *write(folder))
        )
        assert len(log.user) == len(EVENTS) and not sum(log.rows_bad.values()), kind
        assert log.user_ids == [f"K{user:02d}" for user in range(24)]
        assert log.item_ids[7] == "007" and log.titles[7] == "Tee, Sorte 7 🍵 (Marke 1)"
        assert log.texts == log.titles  # no item_template: the title_template
        times = [int(when.timestamp()) for _, _, when, _ in EVENTS]
        np.testing.assert_array_equal(log.timestamp, times)
        ratings = [np.nan if stars is None else stars for *_, stars in EVENTS]
        np.testing.assert_array_equal(log.rating, np.float32(ratings))
        fingerprints[kind] = examples.fingerprint
    assert len(set(fingerprints.values())) == 1, fingerprints
    assert examples.stats["users_train"] == 18
    assert examples.stats["users_validation"] == 2
    assert examples.stats["users_test"] == 4


def test_weird_but_valid_rows(tmp_path):
    (tmp_path / "kaeufe.csv").write_bytes(
        b"\xef\xbb\xbfzeit,artikel,notiz,kunde,sterne\r\n"
        b'1709280000,7,"a, b\r\nc",007,\r\n'  # seconds; a cell of two lines
        b"1709280001500,007,,007,3.5\r\n"  # milliseconds; 7 and 007 are two items
        b'"2024-03-01T09:00:02+01:00",7,,7,"4"\r\n'
        b"2024-03-01 08:00:03 UTC,007,,\xf0\x9f\x98\x80,0\r\n"
    )
    (tmp_path / "artikel.csv").write_text(
        'artikelnr,bezeichnung,marke\n7,"Tee, ""grün""",\n007,🍵,Norda\n', "utf-8"
    )
    argv = ["blue", f"--config={ROOT}/configs/profiler_table.py:tiny", "--workdir=x"]
    config, _ = settings.load([*argv, *flags(tmp_path)])
    log = load_log(config, "x")
    assert (log.user_ids, log.item_ids) == (["007", "7", "😀"], ["7", "007"])
    assert log.titles == ['Tee, "grün"', "🍵 (Norda)"]
    assert log.timestamp.tolist() == [1709280000 + i for i in range(4)]
    assert log.user.tolist() == [0, 0, 1, 2] and log.item.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(log.rating, np.float32([np.nan, 3.5, 4, 0]))
    assert not sum(log.rows_bad.values())


# --- columns that are found, and said aloud


def test_usual_names_are_taken_and_said_aloud(tmp_path, caplog):
    caplog.set_level("INFO", "blue")
    (tmp_path / "events.csv").write_text("CustomerID,sku,Event Time\nu,a,5\n")
    (tmp_path / "items.csv").write_text("sku,Product-Name,price\na,Tea,3\n")
    argv = ["blue", f"--config={ROOT}/configs/profiler_table.py", "--workdir=x"]
    config, _ = settings.load([*argv, f"--config.data.path={tmp_path}"])
    log = load_log(config, "x")
    assert (log.user_ids, log.item_ids, log.titles) == (["u"], ["a"], ["Tea"])
    assert log.timestamp.tolist() == [5] and np.isnan(log.rating).all()
    for said in (
        "'CustomerID' is taken as user_id",
        "'sku' is taken as item_id",
        "'Event Time' is taken as timestamp",
        "'Product-Name' is taken as title",
        "no column of ratings",
    ):
        assert said in caplog.text


def test_files_without_a_header_have_numbers_for_names(tmp_path):
    (tmp_path / "kaeufe.csv").write_text("u,a,5\nu,b,6\n")
    (tmp_path / "artikel.csv").write_text("a,Tea,3\nb,Jam,4\n")
    numbers = dict(user_id=1, item_id=2, timestamp=3, rating="rating", items_item_id=1)
    argv = ["blue", f"--config={ROOT}/configs/profiler_table.py", "--workdir=x"]
    config, _ = settings.load(
        [*argv, *flags(tmp_path, **numbers), "--config.data.title_template={2}"]
        + ["--config.data.item_template={2}"]
    )
    assert load_log(config, "x").titles == ["Tea", "Jam"]


# --- mistakes: exit code 2 and one line


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    WRITERS["csv"](folder)
    return folder


def refusal(capsys, folder, *more):
    """The one line that the command ends with."""
    argv = ["blue", f"--config={ROOT}/configs/profiler_table.py:tiny"]
    argv += [f"--workdir={folder.parent}/run", "--config.stages=evaluate"]
    assert main([*argv, *flags(folder), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def set_column(path, name, value, rows=slice(None)):
    """Overwrite a column of a CSV file in the rows given."""
    with path.open(newline="", encoding="utf-8-sig") as f:
        header, *body = csv.reader(f)
    for row in body[rows]:
        row[header.index(name)] = value
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([header, *body])


def test_unknown_columns_name_the_file_its_columns_and_the_flags(capsys, shop):
    line = refusal(
        capsys,
        shop,
        "--config.data.columns.user_id=user_id",
        "--config.data.columns.timestamp=zeitt",
    )
    assert "kaeufe.csv: no column 'user_id', 'zeitt'; the file has 'kunde'," in line
    assert "--config.data.columns.user_id=NAME --config.data.columns.timestamp" in line
    assert "did you mean 'zeit'?" in line

    line = refusal(capsys, shop, "--config.data.title_template={title}")
    assert "artikel.csv: no column 'title'; the file has 'artikelnr', 'bezeich" in line
    assert "set --config.data.title_template='{NAME}'" in line


def test_an_ambiguous_column_is_not_guessed(capsys, shop):
    write = (shop / "kaeufe.csv").write_text
    write("kunde,artikel,date,time\nu,001,2024-01-01,08:00\n")
    line = refusal(
        capsys,
        shop,
        "--config.data.columns.timestamp=timestamp",
        "--config.data.columns.rating=",
    )
    assert "no column 'timestamp'" in line
    assert "'date', 'time' could be meant by 'timestamp'" in line


def test_a_missing_file_lists_the_folder(capsys, shop):
    line = refusal(capsys, shop, "--config.data.events=clicks.csv")
    assert (
        "clicks.csv: no such file; the folder has 'artikel.csv', 'kaeufe.csv'" in line
    )
    line = refusal(capsys, shop, "--config.data.path=/nowhere")
    assert "/nowhere/artikel.csv: no such file, for data.path is no folder" in line


@pytest.mark.parametrize("rows", [slice(None), slice(40, None)])
def test_unreadable_times_show_one_and_say_what_is_read(capsys, shop, rows):
    set_column(shop / "kaeufe.csv", "zeit", "31.12.2023 14:05", rows)
    line = refusal(capsys, shop)
    first = 2 + (rows.start or 0)
    assert f"'31.12.2023 14:05' in line {first};" in line and "column 'zeit'" in line
    assert "1714567890" in line and "2024-05-01T13:45:00+02:00" in line


def test_no_user_with_enough_history(capsys, shop):
    line = refusal(capsys, shop, "--config.data.min_interactions=12")
    assert "none of 24 users gives an example: 24 have fewer than" in line
    assert "the longest log has 11" in line

    set_column(shop / "kaeufe.csv", "zeit", "2024-01-01")  # all at one moment
    line = refusal(capsys, shop)
    kept = "exclude_window 0, include_window 24, rolling 0"
    assert f"users that each policy keeps: {kept}" in line


def test_too_few_candidates_name_the_number_that_there_is(capsys, shop):
    line = refusal(capsys, shop, "--config.data.eval_negatives=99")
    assert "data.eval_negatives=99: of the 40 items" in line
    fewest = int(line.partition("--config.data.eval_negatives=")[2].split()[0])
    assert 8 <= fewest < 40
    workdir = shop.parent / "lower"
    load(shop, workdir, *flags(shop), f"--config.data.eval_negatives={fewest}")


def test_too_few_users_to_hold_some_out(capsys, shop):
    text = (shop / "kaeufe.csv").read_text().splitlines()
    few = [line for line in text if line[:3] < "K09" or not line.startswith("K")]
    (shop / "kaeufe.csv").write_text("\n".join(few))
    assert "at least 10 are needed" in refusal(capsys, shop)


# --- splits that are given

SPLIT = {0: "test", 1: "test", 2: "validation", 3: "validation"}


def write_splits(folder, *more):
    rows = [(f"K{user:02d}", SPLIT.get(user, "train")) for user in range(20)]
    lines = [",".join(row) for row in [("user_id", "split"), *rows, *more]]
    (folder / "splits.csv").write_text("\n".join(lines))
    return "--config.data.splits=splits.csv"


def users_of(log, split):
    return sorted({log.user_ids[user] for user in split.user})


def test_given_splits_are_kept_and_others_are_left_out(shop, tmp_path):
    by_hash = load(shop, tmp_path, *flags(shop))[1]
    log, given = load(shop, tmp_path, *flags(shop), write_splits(shop))
    assert users_of(log, given.test) == ["K00", "K01"]
    assert users_of(log, given.validation) == ["K02", "K03"]
    assert users_of(log, given.train) == [f"K{user:02d}" for user in range(4, 20)]
    assert given.stats["users_without_split"] == 4
    assert given.fingerprint != by_hash.fingerprint
    seen = np.unique(log.item[np.isin(log.user, given.train.user)])
    np.testing.assert_array_equal(given.pool, seen)
    again = load(shop, tmp_path, *flags(shop), write_splits(shop, ("K04", "train")))
    assert again[1].fingerprint == given.fingerprint  # a row twice changes nothing


def test_the_splits_file_may_name_users_as_the_events_do(shop, tmp_path):
    flag = write_splits(shop)
    text = (shop / "splits.csv").read_text().replace("user_id", "kunde")
    (shop / "splits.csv").write_text(text)
    log, given = load(shop, tmp_path, *flags(shop), flag)
    assert users_of(log, given.test) == ["K00", "K01"]


@pytest.mark.parametrize(
    "row, told",
    [
        (("K05", "test"), "user 'K05' is in test here and in train in line 7"),
        (("K21", "dev"), "the split 'dev' of user 'K21' must be one of train, valid"),
        (("K99", "train"), "user 'K99' is not in the log"),
    ],
)
def test_a_wrong_row_of_the_splits(capsys, shop, row, told):
    line = refusal(capsys, shop, write_splits(shop, row))
    assert "splits.csv, line 22: " in line and told in line


@pytest.mark.parametrize("empty", ["train", "validation", "test"])
def test_an_empty_split(capsys, shop, empty):
    flag = write_splits(shop)
    text = (shop / "splits.csv").read_text().splitlines()
    left = [line for line in text if not line.endswith(f",{empty}")]
    (shop / "splits.csv").write_text("\n".join(left))
    assert f"data.splits: no user in {empty}: of the 0 users" in refusal(
        capsys, shop, flag
    )


def test_a_splits_file_without_its_columns(capsys, shop):
    (shop / "splits.csv").write_text("user_id,part\nK01,train\n")
    line = refusal(capsys, shop, "--config.data.splits=splits.csv")
    assert "splits.csv: no column 'split'" in line and "'user_id', 'part'" in line
