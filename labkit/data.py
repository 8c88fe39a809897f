"""Records of {"prompt", "response"}: read from a file, and left out where they are too long."""

import unicodedata
from pathlib import Path

from labkit.answers import LEAST
from labkit.errors import LabError
from labkit.profiles import Profile
from labkit.prompts import chat_ids, harmless_record
from labkit.rows import RowError, rows
from labkit.shapes import ADDED, FIELD_NAMES, check_letters, listed, shape_of, to_record


def load_records(
    path: str | Path,
    *,
    at_least: int = 1,
    fields: dict[str, str] | None = None,
    show: bool = False,
) -> list[dict]:
    """Records of a file, in file order: {"prompt", "response"}, and the keys that were not used.

    "history" is there too, if turns came before. Read are JSON lines, a JSON array, CSV or
    Parquet, each also in gzip, in one of labkit/shapes.py's SHAPES. *fields* maps FIELD_NAMES to
    the names in the file, {"prompt": "frage"}. *show* prints how many were read, as what, and
    which keys were not used. Raises LabError with file, line (or row) and what is wrong, or where
    there are fewer than
    *at_least* records.
    """
    path, fields = Path(path), fields or {}
    if not isinstance(fields, dict) or not all(
        key in FIELD_NAMES and isinstance(name, str) for key, name in fields.items()
    ):
        raise LabError(
            f"FIELDS is {fields!r}. It must map some of {', '.join(FIELD_NAMES)} to the names "
            "in your "
            'file, for example {"prompt": "frage", "response": "antwort"}.'
        )
    try:
        shape, records, used, seen = _read(path, fields)
    except RowError as error:
        raise LabError(
            f"{path}: {error}. The shapes that can be read stand in data/README.md, "
            '"Your own data".'
        ) from None
    if len(records) < at_least:
        raise LabError(
            f"{path} has {len(records)} records, and at least {at_least} are needed. Add "
            "records, or unset LAB_DATA."
        )
    if show:
        _show(records, shape, fields, used, seen)
    return records


def fitting(tokenizer, records: list[dict], profile: Profile) -> list[dict]:
    """Those *records* that training, losses and answers have room for, by the tokens of chat_ids.

    Control tokens in their texts are broken by a space: whatever reads them later, they are no
    more than characters. Prints which records that are, which are left out, which are cut in
    training, and why. Raises LabError where fewer than
    two batches are left.
    """
    longest, seen = profile.max_length, profile.sequence_length
    too_long = f"left out, longer than {longest} tokens (max_length)"
    no_room = (
        "left out, the question leaves no room for an answer: "
        f"{LEAST} of {longest} tokens (max_length) and 1 of {seen} (sequence_length)"
    )
    cut = f"cut in training after {seen} tokens (sequence_length)"
    broken = "with control tokens of the model in their texts, broken by a space"
    kept, named = [], {too_long: [], no_room: [], cut: [], broken: []}
    for number, record in enumerate(records, 1):
        ids, start = chat_ids(tokenizer, record)
        begin = " ".join(record["prompt"][:200].split())[:40]
        name = f'record {number} ({len(ids):,} tokens, "{begin}...")'
        if len(ids) > longest:
            named[too_long].append(name)
        elif start > longest - LEAST or start >= seen:
            named[no_room].append(name)
        else:
            kept.append(clean := harmless_record(tokenizer, record))
            if _letters(clean) != _letters(record):
                named[broken].append(name)
            if len(ids) > seen:
                named[cut].append(name)
    print(f"{len(kept):,} of {len(records):,} records have room.")
    for fate, names in named.items():
        if names:
            more = f"; and {len(names) - 3:,} more" if len(names) > 3 else ""
            print(f"{len(names):,} {fate}: {'; '.join(names[:3])}{more}")
    if len(named[cut]) > len(kept) / 2:
        print(
            "Training will not see how most of your answers end, so the model will not learn "
            "to stop. Use shorter records or system turns, or raise sequence_length in "
            "labkit/profiles.py."
        )
    if len(kept) < 2 * profile.batch_size:
        raise LabError(
            f"only {len(kept)} of {len(records)} records have room, and at least "
            f"{2 * profile.batch_size} are needed: the lines above say why. Use shorter "
            "records, or raise max_length and sequence_length in labkit/profiles.py."
        )
    return kept


def _letters(record: dict) -> int:
    texts = [record["prompt"], record["response"]]
    texts += [turn["content"] for turn in record.get("history", ())]
    return sum(len(unicodedata.normalize("NFC", text)) for text in texts)


def _read(
    path: Path, fields: dict[str, str]
) -> tuple[tuple[str, ...], list[dict], set[str], set[str]]:
    """(shape of the file, records, keys that were used, all keys)."""
    shape, records, used, seen = (), [], set(), set()
    for place, row in rows(path):
        try:
            view = _view(row, fields)
            shape = shape or shape_of(row, view, fields)
            record = to_record(view, shape, fields)
        except RowError as error:
            raise RowError(f"{place}: {error}") from None
        names = {*shape, *ADDED.get(shape[0], ()), "system", "destination"}
        names |= {"history"} if len(shape) == 2 else set()
        names -= fields.keys()
        taken = {key for key in row if key in fields.values() or key.strip().lower() in names}
        if view.get("destination") is not None:
            record["destination"] = view["destination"]
        others = row.keys() - taken - {"prompt", "response", "history"}
        records.append(record | {key: row[key] for key in row if key in others})
        used |= taken
        seen |= row.keys()
    if records and (never := set(fields.values()) - seen):
        raise RowError(
            f"no record has the key {listed(never)}, which FIELDS names; the keys are: "
            f"{listed(seen)}"
        )
    return shape, records, used, seen


def _view(row: object, fields: dict[str, str]) -> dict:
    """*row* under the labs' names: keys in lower case, those of *fields* as they are mapped."""
    if not isinstance(row, dict):
        raise RowError(f"a {type(row).__name__}, not an object")
    check_letters(row)
    view = {key.strip().lower(): value for key, value in row.items()}
    if len(view) < len(row):
        raise RowError(f"two keys differ only in capitals or spaces; the keys are: {listed(row)}")
    return view | {key: row.get(name) for key, name in fields.items()}


def _show(records, shape, fields, used, seen) -> None:
    added = [key for key in ADDED.get(shape[0], ()) if key in map(str.lower, used)]
    names = "/".join(fields.get(key, key) for key in (*shape[:1], *added, *shape[1:]))
    print(f"I read {len(records):,} records as {names}.")
    roles = [{turn["role"] for turn in record.get("history", ())} for record in records]
    for role, what in (("system", "a system turn"), ("user", "earlier questions and answers")):
        if count := sum(role in found for found in roles):
            print(f"{count:,} have {what}.")
    if unused := seen - used:
        print(f"Not used: {listed(unused)}.")
