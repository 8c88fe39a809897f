"""./lab reset: asks first, deletes outputs, and nothing else."""

import sys

import pytest

from labkit.commands import main, status
from labkit.course import LABS
from labkit.profiles import resolve_profile


@pytest.fixture
def done(executed, course):
    """The run folder after a run of all labs."""
    main(["run"])
    return course


def answer(monkeypatch, text):
    """Sits at the terminal and types *text*."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: text)


@pytest.mark.parametrize("text", ["", "n", "nonsense"])
def test_it_asks_first(done, monkeypatch, capsys, text):
    answer(monkeypatch, text)
    assert main(["reset"]) == 1
    assert "nothing was deleted" in capsys.readouterr().out and (done / "base").exists()


@pytest.mark.parametrize("text", ["y", " YES "])
def test_it_deletes_after_a_yes(done, monkeypatch, text):
    answer(monkeypatch, text)
    assert main(["reset"]) == 0
    assert not (done / "base").exists()


def test_a_script_says_yes_itself(done, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert main(["reset"]) == 1
    assert "Add --yes" in capsys.readouterr().err and (done / "base").exists()
    assert main(["reset", "--yes"]) == 0
    assert [path.name for path in done.iterdir()] == [".lock", ".labkit"]


def test_it_says_that_there_is_nothing_to_delete(course, capsys):
    assert main(["reset"]) == 0
    assert f"nothing to delete: {course} does not exist" in capsys.readouterr().out


def test_from_leaves_the_labs_before(done, products):
    (done / "logs" / "03-x.log").touch()
    (done / "logs" / "01-x.log").touch()
    assert main(["reset", "--from", "02", "--yes"]) == 0
    assert products.is_current("base")
    assert not (done / "awq").exists() and not (done / "answers").exists()
    assert not (done / "logs" / "03-x.log").exists() and (done / "logs" / "01-x.log").exists()
    assert not (done / "summary.json").exists()
    found = [status.state(products, resolve_profile(), number) for number in LABS]
    assert found == ["complete", "not run", "not run"]


def test_what_a_lab_writes_beside_its_products_goes_with_it(done):
    (done / "downloaded" / "1").mkdir(parents=True)
    assert main(["reset", "--from", "03", "--yes"]) == 0
    assert not (done / "downloaded").exists() and (done / "awq").exists()


def test_the_choice_and_other_profiles_stay_unless_all(done):
    choice, other = done.parent / "choice.json", done.parent / "gpu" / "base"
    choice.write_text('{"profile": "cpu", "data": "/gone.jsonl"}')
    other.parent.mkdir()
    other.touch()
    assert main(["reset", "--yes"]) == 0
    assert not (done / "base").exists() and choice.exists()
    assert main(["reset", "--all", "--yes"]) == 0
    assert not choice.exists() and other.exists()


@pytest.mark.parametrize("arguments", [(), ("--from", "02")])
def test_what_a_link_leads_to_stays(done, tmp_path, arguments):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "work").touch()
    (done / "awq").unlink()
    (done / "awq").symlink_to(precious)
    assert main(["reset", "--yes", *arguments]) == 0
    assert (precious / "work").exists() and not (done / "awq").is_symlink()
