"""Rows of a data file with their places: JSON lines, a JSON array, CSV or Parquet; in gzip, too.

datasets and pandas read these, too. But a broken row of theirs is "position 28" of no line,
missing keys and null become one, pandas takes the word NA for nothing, and datasets takes [..] and
:: in a path for patterns. A reader needs the line.
"""

import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

# bytes once unpacked: hundreds of times what the labs can train on, and still an eighth of the
# memory of a small machine
LIMIT = 2**28
BLANK = re.compile(r"\s*")


class RowError(Exception):
    """What is wrong, and in which line, row or turn; who catches it adds the file's name."""


def rows(path: Path) -> Iterator[tuple[str, object]]:
    """(place, row) of each row of a file: the place is "line N", in Parquet "row N".

    A row of CSV or Parquet is a dict. Raises RowError with the place and what is wrong there.
    """
    data, kind = _unpacked(path), Path(path.name.lower().removesuffix(".gz")).suffix
    if data.startswith(b"PK\3\4"):
        raise RowError("this is a zip archive or an Excel file; save it as CSV in UTF-8")
    if data.startswith(b"PAR1") or kind == ".parquet":
        return _parquet(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise RowError(f"line {number}: the bytes are not UTF-8; save the file as UTF-8") from None
    if kind in (".csv", ".tsv"):
        return _csv(text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _array(text) if text.lstrip().startswith("[") else _lines(text)


def _unpacked(path: Path) -> bytes:
    """All bytes of a file, of gzip those within."""
    try:
        if path.exists() and not path.is_file():
            raise RowError("this is a folder or a device, not a file")
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.open(file) if packed else file as content:
                data = content.read(LIMIT + 1)
    except FileNotFoundError:
        raise RowError("the data file is missing") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise RowError("the gzip file is cut off or damaged") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise RowError(f"the file cannot be opened ({error})") from None
    if len(data) > LIMIT:
        raise RowError(_too_large())
    return data


def _too_large() -> str:
    return (
        f"the file holds more than {LIMIT / 1e6:.0f} MB; take a part of it, a few hundred records "
        "are enough"
    )


def _once(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object; Python itself would keep the last of two values and say nothing."""
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise RowError(
            f"{ascii(next(n for n in names if names.count(n) > 1))[:40]} is there twice"
        )
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_once)


@contextlib.contextmanager
def _placed(line: int, *, before: int = 0):
    """Gives errors of the JSON that begins in *line* their place; *before* it are as many lines
    that the decoder does not see.
    """
    try:
        yield
    except json.JSONDecodeError as error:
        raise RowError(
            f"line {before + error.lineno}: not valid JSON ({error.msg} at column {error.colno})"
        ) from None
    except RecursionError:
        raise RowError(f"line {line}: brackets in brackets, too deep to read") from None
    except ValueError:
        raise RowError(f"line {line}: a number with too many digits to read") from None
    except RowError as error:
        raise RowError(f"line {line}: {error}") from None


def _lines(text: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            with _placed(number, before=number - 1):
                yield f"line {number}", _JSON.decode(line)


def _array(text: str) -> Iterator[tuple[str, object]]:
    """One element after the other, because json.loads knows no line of an element once it has read
    them all.
    """
    at, line, seen = BLANK.match(text, text.index("[") + 1).end(), 1, 0
    while True:
        line, seen = line + text.count("\n", seen, at), at
        with _placed(line):
            if text.startswith("]", at):
                break
            row, at = _JSON.raw_decode(text, at)
            at = BLANK.match(text, at).end()
            if text.startswith(",", at):
                at = BLANK.match(text, at + 1).end()
            elif not text.startswith("]", at):
                raise json.JSONDecodeError("a comma or ] is missing", text, at)
        yield f"line {line}", row
    with _placed(line):
        if (end := BLANK.match(text, at + 1).end()) < len(text):
            raise json.JSONDecodeError("more text behind the array", text, end)


def _csv(text: str) -> Iterator[tuple[str, dict]]:
    """The separator is the one of , ; and tab that the first line has most of."""
    csv.field_size_limit(LIMIT)  # 131,072 letters otherwise
    first = (text.lstrip().splitlines() or [""])[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True
    )
    names = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise RowError(f"line {line}: not valid CSV ({error})") from None
        if not row:
            continue
        if names is None:
            names = row
            if len(set(names)) < len(names):
                raise RowError(f"line {line}: two columns have the same name")
        elif len(row) != len(names):
            raise RowError(
                f"line {line}: {len(row)} fields, and the first line names {len(names)} columns"
            )
        else:
            yield f"line {line}", dict(zip(names, row, strict=True))


def _parquet(data: bytes) -> Iterator[tuple[str, dict]]:
    import pyarrow
    from pyarrow import parquet

    done = size = 0
    try:
        # in small pieces: a text that is stored once may stand in a million rows
        for batch in parquet.ParquetFile(pyarrow.BufferReader(data)).iter_batches(batch_size=64):
            size += batch.nbytes
            if size > LIMIT:
                raise RowError(_too_large())
            for index in range(len(batch)):
                row = batch.slice(index, 1).to_pylist()[0]
                yield f"row {done + 1}", row
                done += 1
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        why = str(error).split("\n")[0][:200]
        raise RowError(f"row {done + 1}: not readable as Parquet ({why})") from None
