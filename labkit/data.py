"""Records of {"prompt", "response"}: reading and splitting."""

import hashlib
import json
from pathlib import Path

from labkit.errors import LabError

HELD_OUT_SHARE = 0.125


def load_records(path: str | Path, *, at_least: int = 1) -> list[dict[str, str]]:
    """Records of a JSON-lines file, in file order; keys beside prompt and response are kept.

    Raises LabError with file, line number and what is wrong, or where there are fewer than *at_least* records.
    """
    path, records = Path(path), []

    def wrong(number, what):
        return LabError(f'{path}, line {number}: {what}. Each line must be a JSON object {{"prompt": "...", "response": "..."}}.')

    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise wrong(number, "the bytes are not UTF-8; save the file as UTF-8") from None
    except FileNotFoundError:
        raise LabError(f"the data file {path} is missing. Set LAB_DATA to a JSON-lines file, or unset it.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise wrong(number, f"not valid JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(record, dict):
            raise wrong(number, f"a {type(record).__name__}, not an object")
        for key in ("prompt", "response"):
            if not isinstance(record.get(key), str) or not record[key].strip():
                raise wrong(number, f'"{key}" is missing, empty or not a text')
        records.append(record)
    if len(records) < at_least:
        raise LabError(f"{path} has {len(records)} records, and at least {at_least} are needed. Add records, or unset LAB_DATA.")
    return records


def split_records(
    records: list[dict[str, str]], *, by: str = "destination", share: float = HELD_OUT_SHARE
) -> tuple[list[dict], list[dict]]:
    """(train, held out): whole groups, so that no prompt (no destination, where records name one) is in both.

    A record's group is its value of the key *by*, else its prompt in lower case. Groups are ranked by the SHA-256 of their name,
    and taken in that order until *share* of the records is held out: the same file always splits the same way.
    Raises LabError where all records share one group.
    """
    groups: dict[str, list[dict]] = {}
    for record in records:
        place = record.get(by)
        name = place if isinstance(place, str) and place else " ".join(record["prompt"].lower().split())
        groups.setdefault(name, []).append(record)
    if len(groups) < 2:
        raise LabError("all records have the same prompt or destination: nothing can be held out. Add others.")
    held, wanted = set(), max(1, round(share * len(records)))
    for name in sorted(groups, key=lambda n: hashlib.sha256(n.encode()).hexdigest())[: len(groups) - 1]:
        if sum(len(groups[n]) for n in held) >= wanted:
            break
        held.add(name)
    train = [r for name, group in groups.items() if name not in held for r in group]
    return train, [r for name, group in groups.items() if name in held for r in group]
