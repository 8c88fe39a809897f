"""The questions of data/abilities/ are what their script writes and data/README.md says, and have
nothing to do with what the adapters are trained on.
"""

import json
import os
import runpy
import subprocess
import sys
from collections import Counter

import pytest

from labkit import files
from labkit.data import load_records
from labkit.errors import LabError
from labkit.extras import extra_packages
from labkit.profiles import ROOT

FOLDER = ROOT / "data" / "abilities"
SCRIPT = ROOT / "data" / "make_abilities.py"
CHOICES = {"capitals": 4, "everyday": 4, "grammar": 2}
QUESTIONS = {
    task: [json.loads(line) for line in (FOLDER / f"{task}.jsonl").read_text().splitlines()]
    for task in CHOICES
}


@pytest.fixture(params=CHOICES)
def task(request):
    return request.param


@pytest.mark.parametrize("task", ["everyday", "grammar"])
def test_the_script_reproduces_the_file_byte_for_byte(task):
    text = runpy.run_path(str(SCRIPT))["text"](task)
    assert text.encode() == (FOLDER / f"{task}.jsonl").read_bytes()


def test_the_script_reproduces_the_capitals_from_the_locked_package():
    try:
        packages = extra_packages("evaluate")
    except LabError as error:
        pytest.skip(str(error))
    code = f"import runpy; print(runpy.run_path({str(SCRIPT)!r})['text']('capitals'), end='')"
    env = os.environ | {"PYTHONPATH": str(packages), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout == (FOLDER / "capitals.jsonl").read_bytes()


def test_readme_names_these_files(task):
    assert files.sha256(FOLDER / f"{task}.jsonl") in (ROOT / "data" / "README.md").read_text()


def test_each_question_has_one_answer_among_its_choices(task):
    asked = QUESTIONS[task]
    assert len(asked) == 100
    for one in asked:
        assert list(one) == ["question", "choices", "answer"]
        assert len(set(one["choices"])) == CHOICES[task] and one["answer"] < CHOICES[task]
    right = {(one["question"], one["choices"][one["answer"]]) for one in asked}
    assert len(right) == len(asked)


def test_no_place_among_the_choices_is_the_better_guess(task):
    places = Counter(one["answer"] for one in QUESTIONS[task])
    assert len(places) == CHOICES[task]
    assert max(places.values()) < 1.5 * 100 / CHOICES[task]


def test_a_capital_is_not_given_away_by_its_country():
    for one in QUESTIONS["capitals"]:
        country = one["question"].removeprefix("The capital of ").removesuffix(" is")
        right = one["choices"][one["answer"]]
        assert not any(word[:3] in right for word in country.split() if len(word) > 3), one


def test_two_sentences_of_grammar_differ_in_one_place():
    for one in QUESTIONS["grammar"]:
        first, second = (choice.split() for choice in one["choices"])
        while first and second and first[0] == second[0]:
            first, second = first[1:], second[1:]
        while first and second and first[-1] == second[-1]:
            first, second = first[:-1], second[:-1]
        assert one["question"] == "" and len(first) == len(second) == 1, one


def test_no_question_is_in_the_records_of_the_labs(task):
    trained = " ".join(
        f"{record['prompt']} {record['response']}"
        for name in ("travel", "tone", "forms")
        for record in load_records(ROOT / "data" / f"{name}.jsonl")
    ).lower()
    for one in QUESTIONS[task]:
        begin, answer = one["question"], one["choices"][one["answer"]]
        assert f"{begin} {answer}".strip(" .").lower() not in trained, one
