"""Records: every shape and format as it comes, forty hostile files, lengths, and the split."""

import csv
import gzip
import hashlib
import io
import json
import os
import runpy
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from labkit import files, rows
from labkit.data import chat_ids, fitting, load_records
from labkit.errors import LabError
from labkit.profiles import PROFILES, ROOT
from labkit.split import split_records
from labkit.starting import start

CPU = PROFILES["cpu"]


def qa(n: int) -> dict:
    return {"prompt": f"Question {n}?", "response": f"Answer {n}."}


def jsonl(*found) -> bytes:
    return (
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in found).encode()
        + b"\n"
    )


def table(*found: dict) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(found)), out)
    return out.getvalue()


def sheet(*found: dict, **options) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(found[0]), **options)
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue().encode()


def turns(
    *texts: str, who=("user", "assistant"), system: str = "", keys=("role", "content")
) -> list[dict]:
    found = [(who[i % 2], text) for i, text in enumerate(texts)]
    return [
        dict(zip(keys, turn, strict=True)) for turn in [("system", system)] * bool(system) + found
    ]


def saved(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


# ---- shapes and formats

HUMAN = {"who": ("human", "gpt"), "keys": ("from", "value")}
BEFORE = [{"role": "system", "content": "Be brief."}, *turns("Hi", "Hello")]
PARTS = {"role": "user", "content": [{"type": "text", "text": text} for text in "ab"]}
SHAPES = {
    "prompt/response": ({"prompt": "Q", "response": "A"}, {}),
    "messages": ({"messages": turns("Q", "A")}, {}),
    "messages, turns before": ({"messages": turns("Hi", "Hello", "Q", "A", system="Be brief.")}, {"history": BEFORE}),
    "conversations": ({"conversations": turns("Q", "A", **HUMAN)}, {}),
    "conversations, turns before": (
        {"conversations": turns("Hi", "Hello", "Q", "A", **HUMAN), "system": "Be brief."},
        {"history": BEFORE},
    ),
    "prompt/completion": ({"prompt": "Q", "completion": "A"}, {}),
    "prompt/completion, turns": ({"prompt": BEFORE + turns("Q"), "completion": turns("Q", "A")[1:]}, {"history": BEFORE}),
    "instruction/output": ({"instruction": "Q", "output": "A"}, {}),
    "instruction/input/output": ({"instruction": "Sum up:", "input": "a text", "output": "A"}, {"prompt": "Sum up:\n\na text"}),
    "instruction/input/output, no input": ({"instruction": "Q", "input": "", "output": "A"}, {}),
    "instruction/context/response": ({"instruction": "Q:", "context": "a text", "response": "A"}, {"prompt": "Q:\n\na text"}),
    "question/answer": ({"question": "Q", "answer": "A"}, {}),
    "Question/Answer": ({"Question": "Q", " Answer ": "A"}, {}),
    "history": ({"prompt": "Q", "response": "A", "history": turns("Hi", "Hello"), "system": "Be brief."}, {"history": BEFORE}),
    "history in pairs": ({"prompt": "Q", "response": "A", "history": [["Hi", "Hello"]]}, {"history": turns("Hi", "Hello")}),
    "no history": ({"prompt": "Q", "response": "A", "history": None}, {}),
    "parts": ({"messages": [PARTS, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]}, {"prompt": "a\nb"}),
    "empty system turn": ({"messages": [{"role": "system", "content": ""}, *turns("Q", "A")]}, {}),
    "chosen among two": ({"prompt": "Other", "prompt_id": 1, "messages": turns("Q", "A")}, {"prompt_id": 1}),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_in_each_format_becomes_the_same_record(tmp_path, shape, kind, zipped):
    row, other = SHAPES[shape]
    content = {
        "jsonl": jsonl(row, row),
        "json": json.dumps([row, row], indent=2).encode(),
        "parquet": table(row, row),
    }[kind]
    path = saved(
        tmp_path, f"d.{kind}" + ".gz" * zipped, gzip.compress(content) if zipped else content
    )
    assert load_records(path) == [{"prompt": "Q", "response": "A"} | other] * 2


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_keeps_line_breaks_quotes_and_words_that_mean_nothing_elsewhere(tmp_path, delimiter):
    texts = ['Say "a, b;\tc"\nand null', "NA", "null", "007", "1e5"]
    content = sheet(
        *({"Question": text, "Answer": text, "id": "x"} for text in texts), delimiter=delimiter
    )
    path = saved(tmp_path, "d.csv", b"\xef\xbb\xbf" + content)
    assert load_records(path) == [{"prompt": text, "response": text, "id": "x"} for text in texts]


def test_what_was_understood_is_said(tmp_path, capsys):
    found = [
        {"instruction": "Q", "input": "x", "output": "A", "source": "web", "destination": "Rome"}
    ] * 1200
    load_records(saved(tmp_path, "d.jsonl", jsonl(*found)), show=True)
    assert (
        capsys.readouterr().out
        == 'I read 1,200 records as instruction/input/output.\nNot used: "source".\n'
    )
    load_records(
        saved(
            tmp_path, "d.json", json.dumps([{"messages": turns("Hi", "Hello", "Q", "A")}]).encode()
        ),
        show=True,
    )
    assert (
        capsys.readouterr().out
        == "I read 1 records as messages.\n1 have earlier questions and answers.\n"
    )
    load_records(CPU.data)
    assert capsys.readouterr().out == ""


def test_fields_map_names_of_ones_own(tmp_path, capsys):
    row = {"frage": "Q", "antwort": "A", "ort": "Rom", "prompt": "no"}
    path = saved(tmp_path, "d.csv", sheet(row))
    fields = {"prompt": "frage", "response": "antwort", "destination": "ort"}
    assert load_records(path, fields=fields, show=True) == [
        {"prompt": "Q", "response": "A", "destination": "Rom"}
    ]
    assert "as frage/antwort.\n" in capsys.readouterr().out
    chat = saved(
        tmp_path, "d.jsonl", jsonl({"prompt": "no", "response": "no", "dialog": turns("Q", "A")})
    )
    assert load_records(chat, fields={"messages": "dialog"}) == [{"prompt": "Q", "response": "A"}]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"prompt": "frag", "response": "antwort"},
            'line 2: FIELDS names "frag", and the keys are: "antwort", "frage"',
        ),
        ({"prompt": "frage"}, "line 2: no question and answer"),
        (
            {"prompt": "frage", "response": "antwort", "destination": "ort"},
            'no record has the key "ort"',
        ),
        ({"question": "frage"}, "FIELDS is .*must map some of prompt, response"),
        ({"prompt": 3}, "FIELDS is"),
        (["frage", "antwort"], "FIELDS is"),
    ],
)
def test_wrong_fields_are_named(tmp_path, fields, said):
    with pytest.raises(LabError, match=said):
        load_records(
            saved(tmp_path, "d.csv", sheet({"frage": "Q", "antwort": "A"})), fields=fields
        )


# ---- hostile files: the number of records, or what is said of the file

GOOD = jsonl(qa(1))
TWO = GOOD + jsonl(qa(2))
AB = b'{"prompt": "a", "response": "b"'
TALK = {"messages": turns("Q", "A")}
IMAGE = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "x"}},
]


def talk(*messages) -> bytes:
    return jsonl(TALK, {"messages": list(messages)})


HOSTILE = {
    # bytes
    "empty": ("d.jsonl", b"", "has 0 records, and at least 1"),
    "blank": ("d.jsonl", b" \n\n \t\n", "has 0 records"),
    "byte order mark": ("d.jsonl", b"\xef\xbb\xbf" + TWO + b"\n\n", 2),
    "CRLF": ("d.jsonl", TWO.replace(b"\n", b"\r\n"), 2),
    "CR": ("d.jsonl", TWO.replace(b"\n", b"\r"), 2),
    "no line break at the end": ("d.jsonl", TWO.rstrip(), 2),
    "separators of Unicode": ("d.jsonl", TWO.replace(b"Answer", "A\u2028B\u2029C\x85D".encode()), 2),
    "control characters unescaped": ("d.jsonl", TWO + b'{"prompt": "a\tb", "response": "c"}', "line 3: not valid JSON .Inv"),
    "not UTF-8": ("d.jsonl", GOOD + b"\n\xff\xfe\n", "line 3: the bytes are not UTF-8"),
    "Latin-1": ("d.jsonl", GOOD + '{"prompt": "é", "response": "b"}'.encode("latin-1"), "line 2: the bytes are not UTF-8"),
    "UTF-16": ("d.jsonl", TWO.decode().encode("utf-16"), "line 1: the bytes are not UTF-8"),
    "UTF-16 without mark": ("d.jsonl", TWO.decode().encode("utf-16-le"), "line 1: not valid JSON"),
    "UTF-32": ("d.jsonl", TWO.decode().encode("utf-32"), "line 1: the bytes are not UTF-8"),
    "random": ("d.jsonl", bytes(range(256)) * 50, "line 2: the bytes are not UTF-8"),
    "zip": ("d.csv", b"PK\x03\x04" + bytes(100), "zip archive or an Excel file"),
    # gzip
    "gz cut off": ("d.jsonl.gz", gzip.compress(TWO * 50)[:-20], "gzip file is cut off or damaged"),
    "gz of two bytes": ("d.jsonl.gz", b"\x1f\x8b", "gzip file is cut off or damaged"),
    "gz damaged": ("d.jsonl.gz", gzip.compress(TWO)[:12] + bytes(40), "gzip file is cut off or damaged"),
    "gz with a block of no type": ("d.jsonl.gz", gzip.compress(TWO)[:10] + b"\xff" * 40, "gzip file is cut off or damaged"),
    "gz with other bytes behind": ("d.jsonl.gz", gzip.compress(TWO) + b"tail", "gzip file is cut off or damaged"),
    "gz in two members": ("d.jsonl.gz", gzip.compress(GOOD) + gzip.compress(jsonl(qa(2))), 2),
    "gz without the name": ("d.jsonl", gzip.compress(TWO), 2),
    "gz by name only": ("d.jsonl.gz", TWO, 2),
    "gz with an error inside": ("d.jsonl.gz", gzip.compress(GOOD + b"{"), "line 2: not valid JSON"),
    # JSON
    "line cut off": ("d.jsonl", GOOD + b'{"prompt": "a", "response": \n' + GOOD, "line 2: not valid JSON"),
    "two objects in a line": ("d.jsonl", GOOD + GOOD.strip() + GOOD, "line 2: not valid JSON .Extra data"),
    "a list among objects": ("d.jsonl", GOOD + b"[1, 2]\n", "line 2: a list, not an object"),
    "null among objects": ("d.jsonl", GOOD + b"null\n", "line 2: a NoneType, not an object"),
    "5,000 digits": ("d.jsonl", GOOD + AB + b', "n": ' + b"9" * 5000 + b"}", "line 2: a number with too many"),
    "5,000 digits in an array": ("d.json", b"[\n" + GOOD + b",\n" + b"9" * 5000 + b"]", "line 4: a number with too many"),
    "not a number": ("d.jsonl", b'{"prompt": "a", "response": "b", "n": NaN, "m": 1e999}', 1),
    "100,000 brackets": ("d.jsonl", GOOD + b'{"n": ' + b"[" * 100_000, "line 2: brackets in brackets"),
    "100,000 closed brackets": ("d.jsonl", AB + b', "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1: brackets"),
    "brackets in an array": ("d.json", b"[\n" + GOOD + b"," + b"[" * 100_000, "line 3: brackets in brackets"),
    "only brackets": ("d.json", b"[" * 100_000, "line 1: brackets in brackets"),
    "objects in objects": ("d.jsonl", b'{"n":' * 100_000, "line 1: brackets in brackets"),
    "the same key twice": ("d.jsonl", GOOD + AB + b', "prompt": "c"}', "line 2: 'prompt' is there twice"),
    "lone surrogate": ("d.jsonl", GOOD + rb'{"prompt": "a \ud83d", "response": "b"}', "line 2: half of a character"),
    "lone surrogate in a key": ("d.jsonl", GOOD + AB + rb', "\udc00": 1}', "line 2: half of a character"),
    "lone surrogate beside": ("d.jsonl", AB + rb', "destination": "\ud800"}', "line 1: half of a character"),
    "twice a lone surrogate": ("d.jsonl", rb'{"\ud800": 1, "\ud800": 2}', r"line 1: '\\ud800' is there twice"),
    "surrogates in pairs": ("d.jsonl", rb'{"prompt": "a \ud83d\ude00", "response": "b"}', 1),
    "NUL": ("d.jsonl", GOOD + rb'{"prompt": "a\u0000b", "response": "b"}', 'line 2: "prompt" holds the character NUL'),
    "whitespace only": ("d.jsonl", jsonl({"prompt": " \u00a0\u3000", "response": "b"}), 'line 1: "prompt" is missing, empty'),
    "a number for a text": ("d.jsonl", jsonl(qa(1), {"prompt": 3, "response": "b"}), 'line 2: "prompt" is missing, empty or not'),
    "a key missing": ("d.jsonl", GOOD + b'{"prompt": "a"}', 'line 2: "response" is missing'),
    "unknown keys": ("d.jsonl", b'{"foo": "a", "bar": "b"}', 'line 1: no question and answer.*"bar", "foo"'),
    "100,000 unknown keys": ("d.jsonl", jsonl({f"k{n}": n for n in range(100_000)}), r"line 1: no question and answer.*\.\.\."),
    "one line of 5 MB": ("d.jsonl", jsonl({"prompt": "a" * 5_000_000, "response": "b"}), 1),
    "array cut off": ("d.json", json.dumps([qa(1), qa(2)], indent=1).encode()[:-3], "line 9: not valid JSON"),
    "array without a comma": ("d.json", b"[" + GOOD + GOOD + b"]", "line 2: not valid JSON .a comma"),
    "array with a comma at its end": ("d.json", b"[" + GOOD + b",\n]", 1),
    "array, then more": ("d.json", b"[" + GOOD + b"]\n\nx", "line 4: not valid JSON .more text"),
    "array of lists": ("d.json", b'[\n["a", "b"]]', "line 2: a list, not an object"),
    "empty array": ("d.json", b"[]", "has 0 records"),
    "array, wrong record": ("d.json", b"[" + GOOD + b",\n\n" + jsonl({"prompt": "a"}) + b"]", 'line 4: "response" is missing'),
    "one object around all": ("d.json", jsonl({"data": [qa(1), qa(2)]}), 'line 1: no question and answer.*"data"'),
    # conversations
    "no turn": ("d.jsonl", talk(), 'line 2: "messages" is missing, empty or not a list'),
    "turns as a text": ("d.jsonl", jsonl(TALK, {"messages": str(TALK)}), 'line 2: "messages" is missing, empty or not a list'),
    "a text for a turn": ("d.jsonl", talk("Q", "A"), "line 2: turn 1 of .* is a str, not an object"),
    "two questions": ("d.jsonl", talk(*turns("Q"), *turns("Q", "A")), "line 2: turn 2 is of the user, where it is the assistant"),
    "answer first": ("d.jsonl", talk(*turns("A", "Q", "A", who=("assistant", "user"))), "line 2: turn 1 is of the assistant"),
    "late system": ("d.jsonl", talk(*turns("Q", "A"), *turns("Q", "A", system="x")), "line 2: turn 3 is of the system"),
    "no answer": ("d.jsonl", talk(*turns("Q", "A", "Q")), "line 2: the last turn is of the user"),
    "system only": ("d.jsonl", talk(*turns(system="x")), "line 2: the last turn is of the system"),
    "an empty system turn only": ("d.jsonl", talk({"role": "system", "content": ""}), 'line 2: "messages" holds nothing but'),
    "an image": ("d.jsonl", talk({"role": "user", "content": IMAGE}, *turns("", "A")[1:]), "line 2: turn 1 .*'image_url'"),
    "a tool": ("d.jsonl", talk(*turns("Q", "A"), {"role": "tool", "content": "3"}), "line 2: turn 3 .* is of 'tool'"),
    "a call": ("d.jsonl", talk(*turns("Q"), {"role": "model", "content": None, "tool_calls": [{}]}), "line 2: turn 2 .* calls"),
    "a role that is a list": ("d.jsonl", talk({"role": ["user"], "content": "x"}), r"line 2: turn 1 .* is of"),
    "no role": ("d.jsonl", talk({"content": "x"}), "line 2: turn 1 .* is of 'None'"),
    "empty turn": ("d.jsonl", talk(*turns("Q", " ")), "line 2: turn 2 of .* is missing, empty"),
    "history as a text": ("d.jsonl", jsonl(qa(1), qa(2) | {"history": "long"}), 'line 2: "history" is missing, empty or not'),
    "history, wrong order": ("d.jsonl", jsonl(qa(1), qa(2) | {"history": turns("Q")}), "line 2: turn 2 is of the user"),
    "system as a number": ("d.jsonl", jsonl(qa(1), qa(2) | {"system": 3}), 'line 2: "system" is missing, empty or not a text'),
    # CSV
    "csv of one column": ("d.csv", b"prompt\na\n", 'line 2: no question and answer.*"prompt"'),
    "csv, other columns": ("d.csv", sheet({"a": "x", "b": "y"}), 'line 2: no question and answer.*"a", "b"'),
    "csv, header only": ("d.csv", b"prompt,response\n", "has 0 records"),
    "csv, empty": ("d.csv", b"", "has 0 records"),
    "csv, too few": ("d.csv", b'prompt,response\n"a\nb",c\n\nd\n', "line 5: 1 fields, and the first line names 2"),
    "csv, too many": ("d.csv", b"prompt,response\na,b\nc,d,e\n", "line 3: 3 fields"),
    "csv, open quote": ("d.csv", b'prompt,response\na,b\n"c,d\ne,f\n', "line 3: not valid CSV"),
    "csv, quote within": ("d.csv", b'prompt,response\n"a"b,c\n', "line 2: not valid CSV"),
    "csv, the same column twice": ("d.csv", b"prompt,response,prompt\na,b,c\n", "line 1: two columns"),
    "csv, empty field": ("d.csv", b"prompt,response\na,b\nc,\n", 'line 3: "response" is missing'),
    "csv, NUL": ("d.csv", b"prompt,response\na,b\nc,d\0e\n", 'line 3: "response" holds the character NUL'),
    "csv, Latin-1": ("d.csv", "prompt,response\né,b\n".encode("latin-1"), "line 2: the bytes are not UTF-8"),
    "csv, a field of 300,000 letters": ("d.csv", sheet(qa(1) | {"response": "a" * 300_000}), 1),
    "csv that is JSON": ("d.csv", TWO, "line 2: no question and answer|line 1"),
    "JSON that is CSV": ("d.jsonl", sheet(qa(1)), "line 1: not valid JSON"),
    "csv, blank lines": ("d.csv", b"\nprompt,response\n\na,b\n\n", 1),
    # Parquet
    "parquet cut off": ("d.parquet", table(qa(1))[:-30], "not readable as Parquet"),
    "parquet, four bytes": ("d.parquet", b"PAR1", "not readable as Parquet"),
    "parquet, zeros within": ("d.parquet", (t := table(qa(1)))[:4] + bytes(60) + t[64:], "row 1: "),
    "parquet by name only": ("d.parquet", TWO, "not readable as Parquet"),
    "parquet without the name": ("d.bin", table(qa(1), qa(2)), 2),
    "parquet, numbers": ("d.parquet", table({"prompt": 1, "response": 2}), 'row 1: "prompt" is missing, empty or not a text'),
    "parquet, null": ("d.parquet", table(qa(1), {"prompt": "a", "response": None}), 'row 2: "response" is missing'),
    "parquet, row 70": ("d.parquet", table(*map(qa, range(69)), qa(1) | {"prompt": " "}), 'row 70: "prompt" is missing'),
    "parquet, no rows": ("d.parquet", table(qa(1))[:0] + table(*[qa(1)] * 0), "has 0 records"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_the_right_number_or_one_sentence(tmp_path, name):
    file, content, outcome = HOSTILE[name]
    path = saved(tmp_path, file, content)
    if isinstance(outcome, int):
        assert len(load_records(path)) == outcome
        return
    with pytest.raises(LabError, match=outcome) as error:
        load_records(path)
    text = str(error.value)
    assert str(path) in text and len(text) < 900 and "\n" not in text
    text.encode()  # or printing it would be the traceback


def test_parquet_with_bytes_that_are_no_text(tmp_path):
    broken = pyarrow.array([b"a", b"\xff\xfe"]).view(pyarrow.string())
    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": broken, "response": ["b", "c"]}), out)
    with pytest.raises(LabError, match="row 2: not readable as Parquet"):
        load_records(saved(tmp_path, "d.parquet", out.getvalue()))


@pytest.mark.parametrize("bomb", ["gz", "plain", "parquet"])
def test_a_file_that_grows_is_stopped(tmp_path, monkeypatch, bomb):
    """A megabyte of gzip or Parquet can hold gigabytes; a smaller limit keeps the test small."""
    monkeypatch.setattr(rows, "LIMIT", 2**22)
    spaces = b" " * 2**26
    content = {
        "gz": gzip.compress(spaces),
        "plain": spaces,
        "parquet": table(*[qa(1) | {"response": "a" * 50_000}] * 200),
    }[bomb]
    path = saved(tmp_path, "d.parquet" if bomb == "parquet" else "d.jsonl", content)
    tracemalloc.start()
    with pytest.raises(LabError, match="holds more than 4 MB"):
        load_records(path)
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
    monkeypatch.undo()
    assert 2**26 < rows.LIMIT <= 2**30


@pytest.mark.parametrize("path", ["/dev/zero", ".", "pipe", "missing.jsonl", "a" * 300, "a\0b"])
def test_what_is_no_file_is_not_read(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LabError, match="folder or a device|data file is missing|cannot be opened"):
        load_records(tmp_path / path)


@pytest.mark.parametrize("name", ["a[1].jsonl", "a::b.jsonl", "*.csv", "ä ö.json"])
def test_a_name_is_a_name_and_no_pattern(tmp_path, name):
    content = sheet(qa(1)) if name.endswith("csv") else TWO
    assert len(load_records(saved(tmp_path, name, content))) == content.count(b"Question")


def test_fewer_records_than_two_batches(tmp_path):
    with pytest.raises(LabError, match="has 2 records, and at least 8"):
        load_records(saved(tmp_path, "d.jsonl", TWO), at_least=8)


# ---- lengths


@pytest.fixture
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


def sized(tokenizer, question: int, answer: int) -> dict:
    """A record of the tiny model, a token a letter: tokens before the answer, and tokens of the
    answer with its end.
    """
    fixed = chat_ids(tokenizer, {"prompt": "q", "response": "a"})
    record = {"prompt": "q" * (question - fixed[1] + 1), "response": "a" * (answer - 1)}
    assert (len(chat_ids(tokenizer, record)[0]), chat_ids(tokenizer, record)[1]) == (
        question + answer,
        question,
    )
    return record


def test_what_has_no_room_is_left_out_and_what_is_cut_is_named(tokenizer, capsys):
    profile = replace(CPU, max_length=120, sequence_length=60, batch_size=2)
    kept = [sized(tokenizer, *size) for size in ((30, 10), (40, 20), (40, 21), (59, 61), (59, 2))]
    out = [sized(tokenizer, *size) for size in ((59, 62), (60, 2), (105, 2), (300, 9))]
    assert fitting(tokenizer, [*out, *kept], profile) == kept
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "5 of 9 records have room."
    assert said[1].startswith(
        "2 left out, longer than 120 tokens (max_length): record 1 (121 tokens, "
    )
    assert "record 4 (309 tokens, " in said[1]
    assert (
        said[2].startswith("2 left out, the question leaves no room")
        and "record 2 (62 tokens" in said[2]
    )
    assert said[3].startswith(
        "3 cut in training after 60 tokens (sequence_length): record 7 (61 tokens"
    )
    assert (
        said[4].startswith("Training will not see how most of your answers end") and len(said) == 5
    )


def test_room_for_an_answer_counts_where_training_sees_all(tokenizer):
    profile = replace(CPU, max_length=60, sequence_length=60, batch_size=1)
    kept = [sized(tokenizer, 44, 3), sized(tokenizer, 44, 16)]
    assert fitting(tokenizer, [sized(tokenizer, 45, 3), *kept], profile) == kept


def test_too_few_records_with_room(tokenizer, capsys):
    with pytest.raises(LabError, match="only 3 of 23 records have room, and at least 4"):
        fitting(tokenizer, [sized(tokenizer, 30, 9)] * 3 + [sized(tokenizer, 30, 900)] * 20, CPU)
    assert "and 17 more" in capsys.readouterr().out


# ---- the split


def digest(records: list[dict]) -> str:
    return hashlib.sha256(json.dumps(records, ensure_ascii=False).encode()).hexdigest()


@pytest.mark.parametrize(
    ("file", "options", "train_digest", "held_digest"),
    [
        ("travel", {}, "c750a85a046eb97d", "f068f6ec35a8ba8e"),
        ("tone", {"by": "word", "share": 0.2}, "22d0f2d763736d92", "ec0a6a5091624f2d"),
    ],
)
def test_our_own_data_split_as_the_stored_figures_had_it(
    file, options, train_digest, held_digest, capsys
):
    train, held = split_records(load_records(ROOT / "data" / f"{file}.jsonl"), **options)
    assert digest(train)[:16] == train_digest
    assert digest(held)[:16] == held_digest
    assert not capsys.readouterr().out


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def split(records: list[dict], **options) -> tuple[list[dict], list[dict]]:
    """split_records, and what must hold of it for any records."""
    train, held = split_records(records, **options)
    assert (train, held) == split_records(records, **options)
    assert train and held and sorted(map(id, [*train, *held])) == sorted(map(id, records))
    for key in ("prompt", "destination"):
        left, right = (
            {plain(str(r[key])) for r in part if isinstance(r.get(key), str)}
            for part in (train, held)
        )
        assert not left & right, key
    return train, held


def test_split_keeps_prompts_together():
    train, held = split([qa(n % 190) | {"response": f"Answer {n}."} for n in range(289)])
    assert 30 <= len(held) <= 42


@pytest.mark.parametrize("count", [8, 9, 12, 16, 100])
def test_a_small_set_is_split(count, capsys):
    train, held = split([qa(n) for n in range(count)])
    assert len(held) == max(1, round(count / 8)) and len(train) >= CPU.batch_size
    assert not capsys.readouterr().out


def test_records_of_one_prompt_with_other_turns_before_stay_together():
    split(
        [
            qa(n) | {"prompt": f"go on {n % 30}", "history": turns(f"Begin {n}", "Well")}
            for n in range(90)
        ]
    )


def test_the_same_prompt_under_two_destinations_stays_together():
    """In a chain: a prompt joins two places, a place joins two prompts; records without a place
    among them.
    """
    records = [qa(n) | {"destination": f"place {n % 40}"} for n in range(200)]
    records += [
        qa(n) | {"response": "Other.", "destination": f"PLACE  {(n + 7) % 40}"}
        for n in range(0, 200, 25)
    ]
    records += [qa(n) | {"prompt": f"  QUESTION   {n}? "} for n in range(0, 200, 9)]
    train, held = split(records)
    assert 0.1 < len(held) / len(records) < 0.16


def test_a_destination_and_a_prompt_of_the_same_name_are_two_groups():
    records = [qa(n) for n in range(10)] + [
        qa(11) | {"prompt": "rome"},
        qa(12) | {"destination": "rome"},
    ]
    split(records)


def test_a_conversation_that_is_cut_into_records_stays_together():
    records = []
    for n in range(40):
        begin = turns(f"Begin {n}", f"Answer {n}")
        records += [
            {"prompt": f"Begin {n}", "response": f"Answer {n}"},
            {"prompt": f"Next {n}", "response": "x", "history": begin},
        ]
    train, held = split(records)
    assert {r["prompt"].split()[1] for r in train} & {
        r["prompt"].split()[1] for r in held
    } == set()
    assert len(held) == 10


@pytest.mark.parametrize(
    ("sizes", "held_out"),
    [
        ((700, *[1] * 300), 125),
        ((900, *[10] * 10), 100),
        ((500, 300, 190, 10), 200),
        ((600, 400), 400),
    ],
)
def test_one_huge_group_leaves_the_share_near_an_eighth(sizes, held_out, capsys):
    records = [
        qa(1000 * group + n) | {"destination": f"place {group}"}
        for group, size in enumerate(sizes)
        for n in range(size)
    ]
    train, held = split(records)
    assert len(held) == held_out
    assert bool(capsys.readouterr().out) == (abs(len(held) / len(records) - 0.125) > 0.032)


def test_where_an_eighth_cannot_be_had_it_is_said(capsys):
    records = [qa(n) | {"destination": f"place {n % 2}"} for n in range(40)]
    train, held = split(records)
    assert (len(train), len(held)) == (20, 20)
    assert "20 of 40 records (50%) are held out, not 12.5%" in capsys.readouterr().out


def test_destinations_that_are_no_text_are_ignored():
    """As texts they would be of two groups, none of which can be divided."""
    train, held = split([qa(n) | {"destination": n % 2 or None} for n in range(20)])
    assert (len(train), len(held)) == (18, 2)


@pytest.mark.parametrize(
    "second",
    [qa(1), {"prompt": " question  1? ", "response": "b"}, {"prompt": "c", "response": "d"}],
)
def test_what_belongs_together_cannot_be_split(second):
    with pytest.raises(LabError, match="same prompt or destination"):
        split_records(
            [
                record | {"destination": "Rome"} if second["prompt"] == "c" else record
                for record in (qa(1), second)
            ]
        )


def test_travel_data_is_as_documented():
    records = load_records(CPU.data)
    train, held = split_records(records)
    assert len({r["prompt"] for r in records}) == len(records) >= 320
    assert len({r["prompt"] for r in held}) >= 40
    places = {r["destination"] for r in held}
    assert not places & {r["destination"] for r in train}
    text = " ".join(r["prompt"] + " " + r["response"] for r in train)
    assert not [place for place in places if place in text]
    for record in records:
        assert record["response"].startswith(f"{record['destination']}, in short: ")
        assert record["response"].count("Pocket tip: ") == 1
    assert files.sha256(Path(CPU.data)) in (ROOT / "data" / "README.md").read_text()


# ---- lab 01's own cells


def test_lab_01_writes_what_the_labs_after_it_read(runs, tmp_path, tokenizer, capsys):
    """Step 3 on a file of chats: the turns before the question reach train.jsonl, and FIELDS
    decide what is kept.
    """
    chats = [
        turns("Hi", "Hello", f"Question {n}?", f"Answer {n}.", system="Be brief.")
        for n in range(12)
    ]
    found = [
        {"dialog": chat} | {"text": f"Frage {n}?", "antwort": f"Antwort {n}."}
        for n, chat in enumerate(chats)
    ]
    data = saved(tmp_path, "my[1] data.json", json.dumps(found).encode())
    notebook = json.loads((ROOT / "notebooks" / "01_setup.ipynb").read_text())
    code = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}
    cells = tmp_path / "cells.py"  # a file, because a step's key holds the source of its function
    cells.write_text(
        "import json\nimport labkit\n"
        + "\n".join(code[f"lab01-{n}"] for n in ("16", "19a", "21", "23", "25"))
    )
    lab, ids = start("01", data=str(data)), []
    for fields in (
        {"messages": "dialog"},
        {"messages": "dialog"},
        {"prompt": "text", "response": "antwort"},
    ):
        runpy.run_path(str(cells), {"lab": lab, "tokenizer": tokenizer, "FIELDS": fields})
        said = capsys.readouterr().out
        assert "I read 12 records as " in said and "12 of 12 records have room" in said
        train, held = (
            load_records(runs / "cpu" / f"{part}.jsonl") for part in ("train", "heldout")
        )
        ids.append(lab.products.stamp("train.jsonl").id)
        if "messages" in fields:
            assert [len(r["history"]) for r in train + held] == [3] * 12
        else:
            assert all(list(r) == ["prompt", "response"] for r in train + held)
    assert ids[0] == ids[1] != ids[2], "other FIELDS must not serve old products"


def test_a_prompt_is_the_same_however_it_is_typed():
    records = [
        {"prompt": text, "response": str(i)}
        for i in range(40)
        for text in (f"Straße né {i}", f"STRASSE NE\u0301  {i}")
    ]
    train, held = split_records(records)
    assert not {r["response"] for r in train} & {r["response"] for r in held}


def test_a_question_in_the_turns_of_another_record_is_on_the_same_side():
    records = [{"prompt": f"Q{i}", "response": "A "} for i in range(40)]
    earlier = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "A"}]
        for i in range(40)
    ]
    records += [
        {"prompt": f"Then{i}", "response": "B", "history": turns}
        for i, turns in enumerate(earlier)
    ]
    train, held = split_records(records)
    assert not {t["content"] for r in train for t in r.get("history", ())} & {
        r["prompt"].lower() for r in held
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "d.jsonl",
            '{"prompt": "a", "Prompt": "c", "response": "b"}',
            "line 1: two keys differ only in capitals",
        ),
        ("d.csv", "Prompt,prompt,response\na,b,c\n", "line 2: two keys differ only in capitals"),
    ],
)
def test_one_of_two_columns_is_not_chosen_without_a_word(name, text, said, tmp_path):
    with pytest.raises(LabError, match=said):
        load_records(saved(tmp_path, name, text.encode()))


def test_a_field_that_the_file_has_not_is_named(tmp_path):
    path = saved(tmp_path, "d.csv", b"frage,antwort\na,b\n")
    with pytest.raises(
        LabError,
        match='FIELDS names "antwortt", and the keys are: "antwort", "frage"; capitals count',
    ):
        load_records(path, fields={"prompt": "frage", "response": "antwortt"})
