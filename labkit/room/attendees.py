"""Who comes: the CSV of a room, and the names of the attendees' compute instances."""

import csv
import hashlib
import io
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError, plain

COLUMNS = ("name", "object_id")  # and, where it is not that of the sign-in, tenant_id
GUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
MOST, LONGEST, WIDEST = 200, 2**18, 80  # attendees, bytes of the file, characters of a field
LETTERS = 8  # with the event's name no longer than Azure's 24 characters
EVENT = "[a-z](-?[a-z0-9]){0,14}"


@dataclass(frozen=True)
class Attendee:
    """A line of the CSV. *compute* names the instance, and has nothing of the person in it."""

    name: str
    object_id: str
    tenant_id: str  # "" for that of the sign-in
    compute: str


def check_event(event: str) -> None:
    """Raises LabError where no instance can be named after *event*."""
    if not re.fullmatch(EVENT, event):
        raise LabError(
            f"'{event}' cannot be the name of an event: instances are named after it. Choose at "
            "most 15 small letters and digits, hyphens between them, a letter first."
        )


def read_attendees(path: Path, event: str) -> list[Attendee]:
    """The attendees in the file *path*, in its order, with an instance of *event* for each.

    Raises LabError that names the line of the first thing that is wrong, and for an event whose
    name no instance can begin with.
    """
    check_event(event)
    if not path.is_file():
        raise LabError(f"there is no file {path}. Name the CSV of the attendees.")
    with open(path, "rb") as file:
        data = file.read(LONGEST + 1)
    line = 1
    people: dict[str, tuple[int, str, str]] = {}
    try:
        if len(data) > LONGEST:
            line = data.count(b"\n") + 1
            raise ValueError(f"the file goes on beyond {LONGEST // 1024} kB")
        text = _text(data)
        # a spreadsheet separates as its language does
        separator = next((one for one in ",;\t" if one in text.partition("\n")[0]), ",")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        columns = None
        for fields in reader:
            line = reader.line_num
            fields = [_field(field) for field in fields]
            if not any(fields):
                continue
            if columns is None:
                columns = _columns(fields)
                continue
            if len(fields) != len(columns):
                raise ValueError(f"it has {len(fields)} fields, the first line {len(columns)}")
            _add(people, dict(zip(columns, fields, strict=True)), line)
        line = reader.line_num + 1
        if not people:
            raise ValueError("nobody is in it")
    except UnicodeDecodeError as error:
        line, why = data[: error.start].count(b"\n") + 1, "it is not in UTF-8 ('CSV UTF-8')"
    except csv.Error as error:
        line, why = reader.line_num, str(error)
    except ValueError as error:
        why = str(error)
    else:
        names = _computes(event, people)
        return [Attendee(who, id_, of, names[id_]) for id_, (_, who, of) in people.items()]
    raise LabError(
        f"line {line} of {path}: {why}. Correct the CSV and run this again; nothing was sent."
    )


def _text(data: bytes) -> str:
    if data.startswith(b"PK\3\4"):
        raise ValueError("this is a workbook of Excel: save it as 'CSV UTF-8'")
    return data.decode("utf-8-sig")  # with Excel's mark at the start, or without


def _field(text: str) -> str:
    text = text.strip(" ")
    if plain(text) != text or set(text) & set("\n\t"):
        raise ValueError(f"a field holds what cannot be printed: {ascii(text[:WIDEST])}")
    if len(text) > WIDEST:
        raise ValueError(f"a field has more than {WIDEST} characters")
    if text[:1] in ("=", "+", "-", "@"):  # which a spreadsheet would compute
        raise ValueError(f"a field begins like a formula: {text}")
    return text


def _columns(fields: list[str]) -> list[str]:
    columns = [field.lower() for field in fields]
    if {*COLUMNS} - {*columns} or sorted(columns) not in (
        sorted(COLUMNS),
        sorted([*COLUMNS, "tenant_id"]),
    ):
        raise ValueError(
            f"its columns are {', '.join(columns)}, and should be name, object_id and, if you "
            "like, tenant_id: nothing that is not needed"
        )
    return columns


def _add(people: dict, row: dict[str, str], line: int) -> None:
    if not row["name"]:
        raise ValueError("there is no name")
    for column in ("object_id", "tenant_id"):
        row[column] = row.get(column, "").lower()
        if row[column] and not re.fullmatch(GUID, row[column]):
            raise ValueError(f"{row[column]} is no {column} of Entra, as 8-4-4-4-12 digits")
    if not row["object_id"]:
        raise ValueError("there is no object_id ('az ad user show --id MAIL --query id')")
    if row["object_id"] in people:
        raise ValueError(f"this object_id is that of line {people[row['object_id']][0]}, too")
    if len(people) == MOST:
        raise ValueError(f"more than {MOST} attendees")
    people[row["object_id"]] = (line, row["name"], row["tenant_id"])


def _computes(event: str, people: dict) -> dict[str, str]:
    """Object id -> name of the instance, the same in whatever order the lines are."""
    taken: dict[str, str] = {}
    for object_id in sorted(people):
        for turn in itertools.count():
            # letters only: after a hyphen, Azure wants one
            digest = hashlib.sha256(f"{event}/{object_id}/{turn}".encode()).digest()
            name = f"{event}-" + "".join(chr(97 + byte % 26) for byte in digest[:LETTERS])
            if name not in taken:
                taken[name] = object_id
                break
    return {object_id: name for name, object_id in taken.items()}
