"""Rows of a user's table files: Parquet, JSON lines, CSV, any separator.

A file's kind is its ending. .parquet and .pq are Parquet; .jsonl, .ndjson and .json
have one object a line. Every other ending is text with one row a line. Each may be
gzipped (.gz). Rows are streamed; a row that cannot be split into columns has a reason
instead.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from blue.errors import UserError

logger = logging.getLogger("blue")

_TELL_EVERY_S = 10.0  # seconds between lines of progress
_UTF8 = "utf-8-sig"  # with or without a byte order mark
_Binary = io.BufferedReader | gzip.GzipFile


class Row(NamedTuple):
    """The wanted columns of one row, or why it cannot be read."""

    line: int  # in the file, from 1; a Parquet file's row number
    values: list  # one for each wanted column, None where there is none
    reason: str = ""  # what is wrong with the row; `values` is then all None
    lines: int = 1  # lines it spans


def read_rows(
    path: Path,
    wanted: Sequence[str],
    *,
    separator: str = "",
    required: Sequence[str] | None = None,
    encoding: str = _UTF8,
) -> Iterator[Row]:
    """The wanted columns of a file, row by row; progress is logged every ten seconds.

    `separator` of text files may have several characters; empty: `,`, tab, `;` or `|`,
    whichever the first line has most. If all wanted columns are numbers, a text file
    has no header and its columns are numbered from 1. JSON lines must have the
    `required` columns (none given: all wanted ones) in some row.

    Raises:
      UserError: one line, for a file that is missing, damaged, not in its encoding or
          without a required column. For JSON lines that is known at the end.
    """
    wanted = list(wanted)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file (data.path, data.events and data.items name it)"
        )
    kind = "".join(path.suffixes).lower().removesuffix(".gz").rpartition(".")[2]
    try:
        if kind in ("parquet", "pq"):
            yield from _parquet_rows(path, wanted)
        elif kind in ("json", "jsonl", "ndjson"):
            required = wanted if required is None else list(required)
            yield from _json_rows(path, wanted, required)
        else:
            yield from _delimited_rows(path, separator, wanted, encoding)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(
            f"{path}: the gzip file is cut short or damaged; get it again"
        ) from None
    except OSError as error:  # no permission, disk errors, damaged Parquet pages
        raise UserError(f"{path}: cannot be read ({error})") from None
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: line {_first_undecodable(path)} is not UTF-8; convert the file"
        ) from None


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files of that pattern in a folder, gzipped or not, sorted; of both, the plain."""
    found = {
        path.name.removesuffix(".gz"): path for path in folder.glob(f"{pattern}.gz")
    }
    found |= {path.name: path for path in folder.glob(pattern)}
    return [path for _, path in sorted(found.items()) if path.is_file()]


def is_utf8(path: Path) -> bool:
    """Whether the whole file, gzipped or not, is UTF-8. A missing or damaged one is."""
    try:
        return not _first_undecodable(path)
    except (OSError, EOFError, zlib.error):  # reported when it is read
        return True


def _open(path: Path) -> tuple[_Binary, io.BufferedReader]:
    """The content, and the file itself, whose position is the progress."""
    file = path.open("rb")
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(fileobj=file), file
    return file, file


def _lines(content: _Binary, encoding: str = _UTF8) -> io.TextIOWrapper:
    return io.TextIOWrapper(content, encoding=encoding, newline="")


def _first_undecodable(path: Path) -> int:
    """The first line that is not UTF-8, from 1; 0 if all are."""
    content, file = _open(path)
    with file:
        for number, line in enumerate(content, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def _with_progress(
    path: Path, rows: Iterator[Row], share: Callable[[], float]
) -> Iterator[Row]:
    """The rows; logs progress. `share`: of the file so far."""
    start = logged = time.monotonic()
    for number, row in enumerate(rows, 1):
        yield row
        if number % 1024 or (now := time.monotonic()) - logged < _TELL_EVERY_S:
            continue
        logged, seconds, done = now, now - start, max(share(), 1e-9)
        logger.info(
            "%s: %d rows, %.0f%%, %.0f rows/s, %.0f s left",
            *(path.name, number, 100 * done, number / seconds),
            seconds * (1 - done) / done,
        )


def _share(path: Path, file: io.BufferedReader) -> Callable[[], float]:
    size = max(path.stat().st_size, 1)
    return lambda: file.tell() / size


def _check_columns(path: Path, wanted: list[str], found: list[str]) -> None:
    for name in wanted:
        if name not in found:
            more = ", ..." if len(found) > 30 else ""
            raise UserError(
                f"{path}: no column {name!r}, which data.columns or a template names; "
                f"the file has {', '.join(map(repr, found[:30]))}{more}"
            )


def _parquet_rows(path: Path, wanted: list[str]) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    def rows() -> Iterator[Row]:
        nonlocal line
        for batch in file.iter_batches(columns=list(dict.fromkeys(wanted))):
            columns = []
            for name in wanted:
                column = batch.column(name)
                if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
                    # to UTC, without the zone, which may be unknown here
                    column = column.cast(pa.timestamp("us"), safe=False)
                columns.append(column.to_pylist())
            for values in zip(*columns, strict=True):
                line += 1
                yield Row(line, list(values))

    try:
        gzipped = path.suffix.lower() == ".gz"  # needs random access: all in memory
        source = pa.BufferReader(gzip.open(path).read()) if gzipped else str(path)
        file = parquet.ParquetFile(source)
        _check_columns(path, wanted, file.schema_arrow.names)
        line, total = 0, max(file.metadata.num_rows, 1)
        yield from _with_progress(path, rows(), lambda: line / total)
    except pa.ArrowException as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable Parquet file ({first_line})") from None


def _json_rows(path: Path, wanted: list[str], required: list[str]) -> Iterator[Row]:
    nothing = [None] * len(wanted)
    found: dict[str, None] = {}

    def rows() -> Iterator[Row]:
        for line, text in enumerate(_lines(content), 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                yield Row(line, nothing, "broken JSON")
                continue
            if not isinstance(row, dict):
                yield Row(line, nothing, "not a JSON object")
                continue
            if not row.keys() <= found.keys():
                found.update(dict.fromkeys(row))
            yield Row(line, [row.get(name) for name in wanted])

    content, file = _open(path)
    with file:
        yield from _with_progress(path, rows(), _share(path, file))
    if found:  # a field may be absent from a row, not from all of them
        _check_columns(path, required, list(found))


def _delimited_rows(
    path: Path, separator: str, wanted: list[str], encoding: str
) -> Iterator[Row]:
    content, file = _open(path)
    with file:
        rows = _split_rows(path, _lines(content, encoding), separator, wanted)
        yield from _with_progress(path, rows, _share(path, file))


def _split_rows(
    path: Path, lines: io.TextIOWrapper, separator: str, wanted: list[str]
) -> Iterator[Row]:
    nothing = [None] * len(wanted)
    first = lines.readline()
    separator = separator or max(",\t;|", key=first.count)
    split = _split_csv if len(separator) == 1 else _split_long
    columns, places = None, []
    for line, fields, spans in split(lines, first, separator):
        if columns is None:  # the first row: the header, unless columns are numbers
            columns = [field.strip() for field in fields]
            headerless = all(name.isdecimal() for name in wanted)
            if headerless:
                columns = [str(number) for number in range(1, len(fields) + 1)]
            _check_columns(path, wanted, columns)
            places = [columns.index(name) for name in wanted]
            if not headerless:
                continue
        if not fields:
            yield Row(line, nothing, "unreadable row", spans)
        elif len(fields) != len(columns):
            yield Row(line, nothing, "wrong number of columns", spans)
        else:
            yield Row(line, [fields[place] for place in places], "", spans)


_Fields = Iterator[tuple[int, list[str], int]]  # (line, fields or [] if broken, lines)


def _split_long(lines: io.TextIOWrapper, first: str, separator: str) -> _Fields:
    for line, text in enumerate(itertools.chain([first], lines), 1):
        if text := text.rstrip("\r\n"):
            yield line, text.split(separator), 1


def _split_csv(lines: io.TextIOWrapper, first: str, separator: str) -> _Fields:
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator)
    before = 0
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:  # a field beyond csv's limit: a quote that never ends
            yield before + 1, [], reader.line_num - before
        else:
            if fields:
                yield before + 1, fields, reader.line_num - before
        before = reader.line_num


# --------------------------------------------------------------------- the columns

_PEEKED = 1000  # rows of JSON lines that are read for their columns


def column_names(path: Path, *, separator: str) -> list[str]:
    """The columns by a file's first line or schema; of JSON lines, by the first rows.

    Empty for a file that is empty or cannot be read: `read_rows` says why.
    """
    kind = "".join(path.suffixes).lower().removesuffix(".gz").rpartition(".")[2]
    try:
        if kind in ("parquet", "pq"):
            return _parquet_names(path)
        content, file = _open(path)
        with file:
            lines = _lines(content)
            if kind in ("json", "jsonl", "ndjson"):
                return _keys(itertools.islice(lines, _PEEKED))
            first = lines.readline()
            separator = separator or max(",\t;|", key=first.count)
            split = _split_csv if len(separator) == 1 else _split_long
            _, header, _ = next(split(lines, first, separator), (0, [], 0))
            return [name.strip() for name in header]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return []


def _parquet_names(path: Path) -> list[str]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        gzipped = path.suffix.lower() == ".gz"
        source = pa.BufferReader(gzip.open(path).read()) if gzipped else str(path)
        return parquet.ParquetFile(source).schema_arrow.names
    except pa.ArrowException:
        return []


def _keys(lines: Iterable[str]) -> list[str]:
    """The keys of all objects among the lines, in the order of their appearance."""
    found: dict[str, None] = {}
    for text in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(text)
            found.update(dict.fromkeys(row if isinstance(row, dict) else ()))
    return list(found)
