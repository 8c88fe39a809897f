"""data/forms.jsonl is what its script writes and data/README.md says, and its split keeps
templates, cities and numbers apart.
"""

import json
import re
import runpy
from collections import Counter

import jsonschema
import pytest

from labkit import files
from labkit.data import load_records
from labkit.profiles import ROOT

FORMS = ROOT / "data" / "forms.jsonl"
RECORDS = load_records(FORMS)
SCRIPT = runpy.run_path(str(ROOT / "data" / "make_forms.py"))
SCHEMA = json.loads((ROOT / "data" / "forms.schema.json").read_text())


def side(name: str) -> list[dict]:
    return [record for record in RECORDS if record["split"] == name]


def form(record: dict) -> dict:
    return json.loads(record["response"])


def test_the_script_reproduces_the_file_byte_for_byte():
    text = "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in SCRIPT["records"]())
    assert text.encode() == FORMS.read_bytes()


def test_readme_names_this_file():
    assert files.sha256(FORMS) in (ROOT / "data" / "README.md").read_text()


def test_records_are_of_one_shape_and_distinct():
    kinds = Counter((r["split"], r["template"] == "by hand") for r in RECORDS)
    assert kinds == {
        ("train", False): 480,
        ("heldout", False): 120,
        ("train", True): 50,
        ("heldout", True): 50,
    }
    assert len({" ".join(r["prompt"].lower().split()) for r in RECORDS}) == len(RECORDS)
    for record in RECORDS:
        assert list(record) == ["prompt", "response", "template", "split"], record
        assert 1 <= len(record["prompt"].split()) <= 30, record


def test_every_response_fits_the_schema_and_is_compact():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for record in RECORDS:
        found = form(record)
        jsonschema.validate(found, SCHEMA)
        assert list(found) == list(SCHEMA["properties"]) == SCHEMA["required"], record
        assert record["response"] == json.dumps(found, separators=(",", ":"), ensure_ascii=False)
        assert len(set(found["wants"])) == len(found["wants"]), record


def test_schema_and_script_have_the_same_words():
    properties = SCHEMA["properties"]
    assert properties["month"]["enum"] == [*SCRIPT["MONTHS"], None]
    assert properties["wants"]["items"]["enum"] == sorted(SCRIPT["WANTS"])
    seen = {want for record in RECORDS for want in form(record)["wants"]}
    assert seen == set(SCRIPT["WANTS"])


@pytest.mark.parametrize("here, there", [("train", "heldout"), ("heldout", "train")])
def test_no_city_of_one_side_is_named_on_the_other(here, there):
    cities = {form(r)["city"] for r in side(here)} - {None} | set(SCRIPT["CITIES"][here])
    any_city = re.compile(rf"\b({'|'.join(map(re.escape, cities))})\b", re.IGNORECASE)
    assert not [r["prompt"] for r in side(there) if any_city.search(r["prompt"])]
    assert not cities & {form(r)["city"] for r in side(there)}


def test_no_template_is_on_both_sides():
    train, held = ({line for line in SCRIPT["TEMPLATES"][s].split("\n")} for s in SCRIPT["EACH"])
    assert train & held == {""}
    for record in RECORDS:
        assert record["template"] == "by hand" or record["template"].startswith(record["split"])


def test_the_held_out_numbers_are_in_no_training_record():
    words = [SCRIPT["NUMBERS"][number] for number in SCRIPT["HELD_OUT_NUMBERS"]]
    held_out = re.compile(rf"[69]|11|\b({'|'.join(words)})\b", re.IGNORECASE)
    assert not [r for r in side("train") if held_out.search(r["prompt"] + r["response"])]
    asked = [form(r)[key] for r in side("heldout") for key in ("days", "people")]
    assert sum(number in SCRIPT["HELD_OUT_NUMBERS"] for number in asked) >= 50
