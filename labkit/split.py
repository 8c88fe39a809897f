"""The split of records into those that training sees and those that are held out."""

import hashlib
import unicodedata

from labkit.errors import LabError

HELD_OUT_SHARE = 0.125


def split_records(
    records: list[dict], *, by: str = "destination", share: float = HELD_OUT_SHARE
) -> tuple[list[dict], list[dict]]:
    """(train, held out): whole groups, so that no prompt and no value of *by* is in both.

    Records belong together that share their value of *by* or their prompt, whatever its letter
    case and spaces; and where one holds the other's question and answer among the turns before its
    own. Groups are ranked by the SHA-256 of their name, and taken in that order where they fit
    into *share* of the records; one more is taken if it brings the number nearer: the same file
    always splits the same way. Prints why, if the number is far from *share*. Raises LabError
    where all records belong together.
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
    is_nearer = abs(count + len(groups[nearest]) - wanted) <= wanted - count
    if not held or (len(rest) > 1 and is_nearer):
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
    """(name, kind) -> the records that belong together, in order of their first one.

    A group is named by a value of *by*, if one of its records has one, else by a prompt.
    """
    from networkx import Graph, connected_components

    def place(record: dict) -> str | None:
        name = record.get(by)
        return name if isinstance(name, str) and name.strip() else None

    asked = {(_plain(record["prompt"]), _plain(record["response"])) for record in records}
    links = Graph()
    for record in records:
        prompt = ("prompt", _plain(record["prompt"]))
        links.add_node(prompt)
        if place(record):
            links.add_edge(prompt, ("place", _plain(place(record))))
        turns = [turn for turn in record.get("history") or () if turn["role"] != "system"]
        texts = [_plain(turn["content"]) for turn in turns]
        # a file may hold a conversation once for each of its answers: the later ones give the
        # earlier ones away
        for pair in zip(texts[::2], texts[1::2], strict=False):
            if pair in asked:
                links.add_edge(prompt, ("prompt", pair[0]))
    group_of = {
        mark: number for number, marks in enumerate(connected_components(links)) for mark in marks
    }
    together: dict[int, list[dict]] = {}
    for record in records:
        together.setdefault(group_of["prompt", _plain(record["prompt"])], []).append(record)
    groups = {}
    for group in together.values():
        places = [name for record in group if (name := place(record))]
        prompts = [_plain(record["prompt"]) for record in group]
        groups[(min(places), "place") if places else (min(prompts), "prompt")] = group
    return groups


def _plain(text: str) -> str:
    """*text* without what makes no other question of it: letter case, spaces, forms of a
    character.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
