"""The shapes of records that other people's files have, and what becomes of a row of each."""

import json

from labkit.rows import RowError

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

# they belong to the question, where a record has them
ADDED = {"instruction": ("input", "context")}
FIELD_NAMES = ("prompt", "response", "messages", "system", "history", "destination")

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}


def check_letters(row: dict) -> None:
    """JSON can write half of a character, which no file and no tokenizer takes."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise RowError("half of a character (a lone surrogate such as \\ud83d)") from None
    except RecursionError:
        raise RowError("brackets in brackets, too deep to read") from None


def shape_of(row: dict, view: dict, fields: dict[str, str]) -> tuple[str, ...]:
    there = {key for key in view if key not in fields or fields[key] in row}
    asked = fields.keys() & {"prompt", "response", "messages"}
    if lost := [fields[key] for key in sorted(asked) if fields[key] not in row]:
        raise RowError(
            f"FIELDS names {listed(lost)}, and the keys are: {listed(row)}; capitals count"
        )
    for keys in SHAPES:
        if asked <= set(keys) <= there:
            return keys
    raise RowError(
        f"no question and answer under known names; the keys are: {listed(row)}. FIELDS in lab "
        "01 maps yours"
    )


def to_record(view: dict, shape: tuple[str, ...], fields: dict[str, str]) -> dict:
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


def listed(keys) -> str:
    """Up to eight of *keys*, each in quotes and not longer than 40 letters."""
    return ", ".join(f'"{key[:40]}"' for key in sorted(keys)[:8]) + ", ..." * (len(keys) > 8)
