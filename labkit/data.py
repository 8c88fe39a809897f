"""Records of {"prompt", "response"}: reading, leaving out what is too long, splitting."""

import hashlib
import json
import unicodedata
from pathlib import Path

from labkit.errors import LabError
from labkit.profiles import Profile
from labkit.prompts import chat_ids
from labkit.rows import RowError, rows

HELD_OUT_SHARE = 0.125
LEAST_ROOM = 16  # tokens of an answer, as in the chat cell of lab 05

SHAPES = (
    ("prompt", "response"),
    ("messages",),
    ("conversations",),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
)
"""Keys of the shapes that are read, the labs' own first.

The first shape that a file's first record has is the file's.
"""

ADDED = {
    "instruction": ("input", "context")
}  # they belong to the question, where a record has them
FIELD_NAMES = ("prompt", "response", "messages", "system", "history", "destination")

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
ROLES |= {"system": "system", "developer": "system"}


def load_records(
    path: str | Path,
    *,
    at_least: int = 1,
    fields: dict[str, str] | None = None,
    show: bool = False,
) -> list[dict]:
    """Records of a file, in file order: {"prompt", "response"}, "history" if turns came before, and the keys not used.

    JSON lines, a JSON array, CSV or Parquet, each also in gzip, in one of SHAPES. *fields* maps
    FIELD_NAMES to the names in the file, {"prompt": "frage"}. *show* prints how many were read, as
    what, and which keys were not used. Raises LabError with file, line (or row) and what is wrong,
    or where there are fewer than *at_least* records.
    """
    path, fields = Path(path), fields or {}
    if not isinstance(fields, dict) or not all(
        k in FIELD_NAMES and isinstance(v, str) for k, v in fields.items()
    ):
        raise LabError(
            f"FIELDS is {fields!r}. It must map some of {', '.join(FIELD_NAMES)} to the names "
            "in your file, "
            'for example {"prompt": "frage", "response": "antwort"}.'
        )
    try:
        shape, records, used, seen = _records(path, fields)
    except RowError as error:
        raise LabError(
            f'{path}: {error}. The shapes that can be read stand in data/README.md, "Your own data".'
        ) from None
    if len(records) < at_least:
        raise LabError(
            f"{path} has {len(records)} records, and at least {at_least} are needed. Add "
            "records, or unset LAB_DATA."
        )
    if show:
        added = [key for key in ADDED.get(shape[0], ()) if key in map(str.lower, used)]
        names = "/".join(fields.get(key, key) for key in (*shape[:1], *added, *shape[1:]))
        print(f"I read {len(records):,} records as {names}.")
        roles = [{turn["role"] for turn in record.get("history", ())} for record in records]
        for role, what in (("system", "a system turn"), ("user", "earlier questions and answers")):
            if count := sum(role in found for found in roles):
                print(f"{count:,} have {what}.")
        if unused := seen - used:
            print(f"Not used: {_listed(unused)}.")
    return records


def fitting(tokenizer, records: list[dict], profile: Profile) -> list[dict]:
    """Those *records* that training, losses and answers have room for, by the tokens of :func:`chat_ids`.

    Prints which are left out, which are cut in training, and why. Raises LabError where fewer than
    two batches are left.
    """
    longest, seen = profile.max_length, profile.sequence_length
    too_long = f"left out, longer than {longest} tokens (max_length)"
    room = f"{LEAST_ROOM} of {longest} tokens (max_length) and 1 of {seen} (sequence_length)"
    no_room = f"left out, the question leaves no room for an answer: {room}"
    cut = f"cut in training after {seen} tokens (sequence_length)"
    kept, named = [], {too_long: [], no_room: [], cut: []}
    for number, record in enumerate(records, 1):
        ids, start = chat_ids(tokenizer, record)
        fate = (
            too_long
            if len(ids) > longest
            else no_room
            if start > longest - LEAST_ROOM or start >= seen
            else None
        )
        if fate is None:
            kept.append(record)
            fate = cut if len(ids) > seen else None
        if fate:
            begin = " ".join(record["prompt"][:200].split())[:40]
            named[fate].append(f'record {number} ({len(ids):,} tokens, "{begin}...")')
    print(f"{len(kept):,} of {len(records):,} records have room.")
    for fate, who in named.items():
        if who:
            print(
                f"{len(who):,} {fate}: {'; '.join(who[:3])}"
                + f"; and {len(who) - 3:,} more" * (len(who) > 3)
            )
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


def split_records(
    records: list[dict], *, by: str = "destination", share: float = HELD_OUT_SHARE
) -> tuple[list[dict], list[dict]]:
    """(train, held out): whole groups, so that no prompt (no destination, where records name one) is in both.

    Records belong together that share their value of the key *by* or their prompt, whatever its
    letter case and spaces; and where one holds the other's question and answer among the turns
    before its own. Groups are ranked by the SHA-256 of their name, and taken in that order where
    they fit into *share* of the records; one more is taken if it brings the number nearer: the
    same file always splits the same way. Prints why, if the number is far from *share*. Raises
    LabError where all records belong together.
    """
    groups = _groups(records, by)
    if len(groups) < 2:
        raise LabError(
            "all records have the same prompt or destination: nothing can be held out. Add others."
        )
    wanted, held, count = max(1, round(share * len(records))), set(), 0
    ranked = sorted(groups, key=lambda name: hashlib.sha256(name[0].encode()).hexdigest())
    for name in ranked:
        if count + len(groups[name]) <= wanted:
            held.add(name)
            count += len(groups[name])
    rest = [name for name in ranked if name not in held]
    nearest = min(rest, key=lambda name: abs(count + len(groups[name]) - wanted))
    if not held or (
        len(rest) > 1 and abs(count + len(groups[nearest]) - wanted) <= wanted - count
    ):
        held.add(nearest)
        count += len(groups[nearest])
    if abs(count - wanted) > max(1, wanted / 4):
        print(
            f"{count:,} of {len(records):,} records ({count / len(records):.0%}) are held out, "
            f"not {share:.1%}: what shares a prompt or a destination stays together, and the "
            f"largest such group has {max(map(len, groups.values())):,} records."
        )
    train = [r for name, group in groups.items() if name not in held for r in group]
    return train, [r for name, group in groups.items() if name in held for r in group]


def _groups(records: list[dict], by: str) -> dict[tuple[str, str], list[dict]]:
    """(name, kind) -> the records that belong together, in order of their first one; named by a
    value of *by*, else a prompt.
    """
    parent: dict[tuple, tuple] = {}

    def root(mark):
        parent.setdefault(mark, mark)
        while parent[mark] != mark:
            parent[mark] = mark = parent[parent[mark]]
        return mark

    def place(record):
        name = record.get(by)
        return name if isinstance(name, str) and name.strip() else None

    asked = {(_plain(record["prompt"]), _plain(record["response"])) for record in records}
    for record in records:
        turns = [
            turn["content"] for turn in record.get("history") or () if turn["role"] != "system"
        ]
        # a file may hold a conversation once for each of its answers: the later ones give the
        # earlier ones away
        pairs = zip(map(_plain, turns[::2]), map(_plain, turns[1::2]), strict=False)
        others = [("prompt", pair[0]) for pair in pairs if pair in asked]
        for other in [*others, *([("place", _plain(place(record)))] if place(record) else [])]:
            parent[root(other)] = root(("prompt", _plain(record["prompt"])))
    together: dict[tuple, list[dict]] = {}
    for record in records:
        together.setdefault(root(("prompt", _plain(record["prompt"]))), []).append(record)
    groups = {}
    for group in together.values():
        places = [name for record in group if (name := place(record))]
        groups[
            (min(places), "place")
            if places
            else (min(_plain(r["prompt"]) for r in group), "prompt")
        ] = group
    return groups


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _records(
    path: Path, fields: dict[str, str]
) -> tuple[tuple[str, ...], list[dict], set[str], set[str]]:
    """(shape of the file, records, keys that were used, all keys)."""
    shape, records, used, seen = (), [], set(), set()
    for place, row in rows(path):
        try:
            if not isinstance(row, dict):
                raise RowError(f"a {type(row).__name__}, not an object")
            _check_letters(row)
            view = {key.strip().lower(): value for key, value in row.items()}
            if len(view) < len(row):
                raise RowError(
                    f"two keys differ only in capitals or spaces; the keys are: {_listed(row)}"
                )
            view |= {key: row.get(name) for key, name in fields.items()}
            shape = shape or _shape(row, view, fields)
            record = _record(view, shape, fields)
        except RowError as error:
            raise RowError(f"{place}: {error}") from None
        names = {
            *shape,
            *ADDED.get(shape[0], ()),
            "system",
            "destination",
            *["history"] * (len(shape) == 2),
        } - fields.keys()
        taken = {key for key in row if key in fields.values() or key.strip().lower() in names}
        if view.get("destination") is not None:
            record["destination"] = view["destination"]
        others = row.keys() - taken - {"prompt", "response", "history"}
        records.append(record | {key: row[key] for key in row if key in others})
        used |= taken
        seen |= row.keys()
    if records and (never := set(fields.values()) - seen):
        raise RowError(
            f"no record has the key {_listed(never)}, which FIELDS names; the keys are: "
            f"{_listed(seen)}"
        )
    return shape, records, used, seen


def _check_letters(row: dict) -> None:
    """JSON can write half of a character, which no file and no tokenizer takes."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise RowError("half of a character (a lone surrogate such as \\ud83d)") from None
    except RecursionError:
        raise RowError("brackets in brackets, too deep to read") from None


def _shape(row: dict, view: dict, fields: dict[str, str]) -> tuple[str, ...]:
    there = {key for key in view if key not in fields or fields[key] in row}
    asked = fields.keys() & {"prompt", "response", "messages"}
    if lost := [fields[key] for key in sorted(asked) if fields[key] not in row]:
        raise RowError(
            f"FIELDS names {_listed(lost)}, and the keys are: {_listed(row)}; capitals count"
        )
    for keys in SHAPES:
        if asked <= set(keys) <= there:
            return keys
    raise RowError(
        f"no question and answer under known names; the keys are: {_listed(row)}. FIELDS in lab "
        "01 maps yours"
    )


def _record(view: dict, shape: tuple[str, ...], fields: dict[str, str]) -> dict:
    """A record of the labs: {"prompt", "response"}, and "history" where turns came before."""
    first, last = (view.get(key) for key in (shape[0], shape[-1]))
    names = [f'"{fields.get(key, key)}"' for key in (shape[0], shape[-1])]
    if len(shape) == 1:
        turns = _turns(first, names[0])
    elif isinstance(first, list) and isinstance(last, list):
        turns = _turns(first, names[0]) + _turns(last, names[1])
    else:
        added = [
            _text(view[key], f'"{key}"')
            for key in ADDED.get(shape[0], ())
            if not _is_blank(view.get(key))
        ]
        asked = {"role": "user", "content": "\n\n".join([_text(first, names[0]), *added])}
        turns = [
            *_history(view.get("history")),
            asked,
            {"role": "assistant", "content": _text(last, names[1])},
        ]
    if not _is_blank(view.get("system")):
        turns.insert(0, {"role": "system", "content": _text(view["system"], '"system"')})
    expected = "user"
    for number, turn in enumerate(turns, 1):
        if turn["role"] == "system" and number == 1:
            continue
        if turn["role"] != expected:
            raise RowError(
                f"turn {number} is of the {turn['role']}, where it is the {expected}'s turn"
            )
        expected = {"user": "assistant", "assistant": "user"}[expected]
    if turns[-1]["role"] != "assistant":
        raise RowError(
            f"the last turn is of the {turns[-1]['role']}, and must be the assistant's answer"
        )
    *history, asked, answer = turns
    return {"prompt": asked["content"], "response": answer["content"]} | (
        {"history": history} if history else {}
    )


def _history(value: object) -> list[dict]:
    """Turns before the question, or [question, answer] pairs of them."""
    if _is_blank(value) or value == []:
        return []
    if isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 for pair in value
    ):
        value = [
            {"role": role, "content": text}
            for pair in value
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    return _turns(value, '"history"')


def _turns(value: object, name: str) -> list[dict]:
    """Turns {"role", "content"} or {"from", "value"}, whose content is a text or a list of parts,
    in the labs' own shape.
    """
    if not isinstance(value, list) or not value:
        raise RowError(f"{name} is missing, empty or not a list of turns")
    turns = []
    for number, turn in enumerate(value, 1):
        where = f"turn {number} of {name}"
        if not isinstance(turn, dict):
            raise RowError(
                f"{where} is a {type(turn).__name__}, not an object with a role and a content"
            )
        who = turn.get("role") or turn.get("from")
        role = ROLES.get(str(who).lower())
        if role is None or turn.get("tool_calls") or turn.get("function_call"):
            what = "calls a tool" if role else f"is of {str(who)[:40]!r}"
            raise RowError(
                f"{where} {what}: the labs train on turns of system, user and assistant only"
            )
        content = turn["content"] if turn.get("content") is not None else turn.get("value")
        if isinstance(content, list):
            content = "\n".join(_part(part, where) for part in content)
        if role != "system" or not _is_blank(content):
            turns.append({"role": role, "content": _text(content, where)})
    if not turns:
        raise RowError(f"{name} holds nothing but an empty system turn")
    return turns


def _part(part: object, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise RowError(f"{where} holds a part of the type {str(kind)[:40]!r}: the labs read text only")


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{name} is missing, empty or not a text")
    if "\0" in value:
        raise RowError(
            f"{name} holds the character NUL, at which a text ends for GenAI's C interface"
        )
    return value


def _listed(keys) -> str:
    """Up to eight of *keys*, each in quotes and not longer than 40 letters."""
    return ", ".join(f'"{key[:40]}"' for key in sorted(keys)[:8]) + ", ..." * (len(keys) > 8)
