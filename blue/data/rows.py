"""Rows of the table files a user brings: Parquet, JSON lines, CSV, any separator.

A file's kind is its ending: .parquet or .pq; .jsonl, .ndjson or .json with one object a
line; every other ending is text with one row a line. Each may be gzipped (.gz). Rows
are streamed; one that cannot be split into its columns comes with what is wrong.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blue.errors import UserError

if TYPE_CHECKING:
    from pyarrow import parquet

_Binary = io.BufferedReader | gzip.GzipFile
_KINDS: dict[str, str] = {
    **dict.fromkeys(("parquet", "pq"), "parquet"),
    **dict.fromkeys(("json", "jsonl", "ndjson"), "json"),
}
_PEEKED = 1000  # rows of JSON lines that tell the columns


class Row(NamedTuple):
    line: int  # in the file, from 1; a Parquet file's row number
    values: list  # one for each wanted column, None where there is none
    reason: str = ""  # what is wrong with the row; `values` is then all None
    lines: int = 1  # lines it spans


def read_rows(path: Path, wanted: list[str], *, separator: str) -> Iterator[Row]:
    """The wanted columns of a file, row by row.

    `separator` of text files may have several characters; empty: `,`, tab, `;` or `|`,
    whichever the first line has most. When all wanted columns are numbers, a text file
    has no header and its columns are numbered from 1.

    Raises:
      UserError: one line, for a file that is missing, damaged, not UTF-8 or without a
        wanted column (of JSON lines: without it in every row, known at the end).
    """
    _check_exists(path)
    with _told_in_one_line(path):
        if (kind := _kind(path)) == "parquet":
            yield from _parquet_rows(path, wanted)
        elif kind == "json":
            yield from _json_rows(path, wanted)
        else:
            yield from _delimited_rows(path, separator, wanted)


def column_names(path: Path, *, separator: str) -> list[str]:
    """The columns of a file: of its first line or schema; of JSON, of the first rows.

    Raises:
      UserError: as `read_rows`, which has the same `separator`.
    """
    _check_exists(path)
    with _told_in_one_line(path):
        if (kind := _kind(path)) == "parquet":
            with _parquet(path) as file:
                return file.schema_arrow.names
        with _open(path) as file:
            lines = _lines(file)
            if kind == "json":
                return _keys(itertools.islice(lines, _PEEKED))
            split = _split(lines, separator)
            return next(([name.strip() for name in names] for _, names, _ in split), [])


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file (data.path, data.events and data.items name it)"
        )


def _kind(path: Path) -> str:
    ending = "".join(path.suffixes).lower().removesuffix(".gz").rpartition(".")[2]
    return _KINDS.get(ending, "text")


@contextlib.contextmanager
def _told_in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
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


def _open(path: Path) -> _Binary:
    if path.suffix.lower() == ".gz":
        return gzip.open(path)
    return path.open("rb")


def _lines(file: _Binary) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def _first_undecodable(path: Path) -> int:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def _check_columns(path: Path, wanted: list[str], found: list[str]) -> None:
    for name in wanted:
        if name not in found:
            more = ", ..." if len(found) > 30 else ""
            raise UserError(
                f"{path}: no column {name!r}, which data.columns or a template names; "
                f"the file has {', '.join(map(repr, found[:30]))}{more}"
            )


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator["parquet.ParquetFile"]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        gzipped = path.suffix.lower() == ".gz"  # needs random access: all in memory
        source = pa.BufferReader(gzip.open(path).read()) if gzipped else str(path)
        yield parquet.ParquetFile(source)
    except pa.ArrowException as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable Parquet file ({first_line})") from None


def _parquet_rows(path: Path, wanted: list[str]) -> Iterator[Row]:
    import pyarrow as pa

    with _parquet(path) as file:
        _check_columns(path, wanted, file.schema_arrow.names)
        line = 0
        for batch in file.iter_batches(columns=list(dict.fromkeys(wanted))):
            columns = []
            for name in wanted:
                column = batch.column(name)
                if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
                    # to UTC without its zone, which may not be known here
                    column = column.cast(pa.timestamp("us"), safe=False)
                columns.append(column.to_pylist())
            for values in zip(*columns, strict=True):
                line += 1
                yield Row(line, list(values))


def _json_rows(path: Path, wanted: list[str]) -> Iterator[Row]:
    nothing = [None] * len(wanted)
    found: dict[str, None] = {}
    with _open(path) as file:
        for line, text in enumerate(_lines(file), 1):
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
            found.update(dict.fromkeys(row))
            yield Row(line, [row.get(name) for name in wanted])
    if found:  # a field may be absent from a row, not from all of them
        _check_columns(path, wanted, list(found))


def _keys(lines: Iterable[str]) -> list[str]:
    """The keys of all objects among the lines, in the order of their appearance."""
    found: dict[str, None] = {}
    for text in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(text)
            found.update(dict.fromkeys(row if isinstance(row, dict) else ()))
    return list(found)


def _delimited_rows(path: Path, separator: str, wanted: list[str]) -> Iterator[Row]:
    nothing = [None] * len(wanted)
    with _open(path) as file:
        columns, split = None, _split(_lines(file), separator)
        for line, fields, spans in split:
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


def _split(lines: io.TextIOWrapper, separator: str) -> _Fields:
    first = lines.readline()
    separator = separator or max(",\t;|", key=first.count)
    if len(separator) == 1:
        return _split_csv(lines, first, separator)
    return _split_long(lines, first, separator)


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
