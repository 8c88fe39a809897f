"""data/tone.jsonl is as data/README.md says, and its split keeps the emotion words apart."""

import re
from collections import Counter

from labkit import files
from labkit.data import load_records
from labkit.profiles import ROOT
from labkit.split import split_records

TONE = ROOT / "data" / "tone.jsonl"
ANSWERS = {"surprise", "joy", "fear", "sadness"}
RECORDS = load_records(TONE)


def has_word(prompt: str, word: str) -> bool:
    """Whether *word*, less a final e or y that endings change, begins at a word of *prompt*."""
    return re.search(rf"\b{re.escape(re.sub('[ey]$', '', word))}", prompt.lower()) is not None


def test_records_are_balanced_distinct_and_of_one_shape():
    counts = Counter(r["response"] for r in RECORDS)
    assert set(counts) == ANSWERS
    assert len(set(counts.values())) == 1
    assert len({" ".join(r["prompt"].lower().split()) for r in RECORDS}) == len(RECORDS) >= 560
    for record in RECORDS:
        assert list(record) == ["prompt", "response", "word"], record
        assert 6 <= len(record["prompt"].split()) <= 20, record


def test_a_phrase_holds_its_own_emotion_word_and_no_other():
    words = {r["word"] for r in RECORDS}
    for record in RECORDS:
        assert {w for w in words if has_word(record["prompt"], w)} == {record["word"]}, record
        assert not re.search("surpris|joy|fear|sad", record["prompt"].lower()), record


def test_the_split_holds_out_whole_emotion_words():
    train, held = split_records(RECORDS, by="word", share=0.2)
    assert len(train) >= 400
    assert len(held) >= 100
    for here, there in ((train, held), (held, train)):
        words = {r["word"] for r in here}
        assert not [(w, r["prompt"]) for w in words for r in there if has_word(r["prompt"], w)]
    counts = Counter(r["response"] for r in held)
    assert all(0.18 <= counts[answer] / len(held) <= 0.32 for answer in ANSWERS), counts


def test_readme_names_this_file():
    assert files.sha256(TONE) in (ROOT / "data" / "README.md").read_text()
