"""./lab run: what is run again, what is not, and what is said where a lab fails."""

import os

import pytest
from tiny_course import only_lab

from labkit.commands import main
from labkit.course import Entry
from labkit.pace import seconds
from labkit.products import folder_lock
from labkit.profiles import PROFILES

ALL = ["01", "02", "03"]


@pytest.fixture
def rerun(executed):
    """A function that runs the labs and returns (exit status, labs that were executed)."""

    def rerun(*arguments):
        executed.clear()
        return main(["run", *arguments]), list(executed)

    return rerun


def test_a_second_run_skips_all(rerun, capsys):
    assert rerun() == (0, ALL)
    assert rerun() == (0, [])
    assert "02 quantize: complete and unchanged" in capsys.readouterr().out


def test_a_changed_notebook_is_run_with_all_after_it(rerun, write):
    rerun()
    write("02", "2 + 2")
    assert rerun() == (0, ["02", "03"])


@pytest.mark.parametrize(("lost", "again"), [("awq", ["02", "03"]), (".stamps/base.json", ALL)])
def test_what_is_lost_is_made_again(rerun, course, lost, again):
    rerun()
    (course / lost).unlink()
    assert rerun() == (0, again)


def test_a_changed_setting_runs_all(rerun, monkeypatch):
    rerun()
    monkeypatch.setenv("LAB_STEPS", "3")
    assert rerun() == (0, ALL)


def test_a_product_made_anew_in_a_notebook_runs_the_labs_that_need_it(rerun, make_lab, products):
    rerun()
    products.forget("base")
    make_lab("01")
    assert rerun() == (0, ["02", "03"])


def test_from_keeps_nothing_of_that_lab_and_those_after_it(rerun):
    rerun()
    assert rerun("--from", "2") == (0, ["02", "03"])
    assert rerun("--from", "03") == (0, ["03"])


def test_force_keeps_nothing(rerun, products):
    rerun()
    before = products.stamp("base").id
    assert rerun("--force") == (0, ALL)
    assert products.stamp("base").id != before


def test_a_failure_leaves_out_what_needs_it(rerun, executed, course, capsys):
    rerun()
    executed.fails = {"01"}
    assert rerun("--force") == (1, ["01"])
    out = capsys.readouterr().out
    assert "02 quantize: not run, it needs base" in out
    assert "03 infer: not run, it needs awq" in out
    assert (course / "notebooks" / "01_setup.failed.ipynb").exists()
    assert not (course / "notebooks" / "01_setup.ipynb").exists()


def test_an_old_product_of_a_failed_lab_is_not_used(rerun, executed, write):
    rerun()
    executed.fails = {"01"}
    write("01", "3 + 3")
    assert rerun() == (1, ["01"])


def test_settings_with_relative_paths_are_those_of_the_shell(rerun, tmp_path, monkeypatch):
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_RUNS", "out")
    monkeypatch.setenv("LAB_DATA", "d.jsonl")
    rerun()
    assert os.environ["LAB_DATA"] == str(tmp_path / "d.jsonl")
    assert (tmp_path / "out" / "cpu" / "summary.json").exists()


def test_what_a_lab_took_before_is_expected(rerun, executed, products, write):
    rerun()
    took = products.stamp("notebooks/02_quantize.ipynb").seconds
    write("02", "2 + 2")
    rerun()
    assert executed.expected["02"] == took


def test_without_an_earlier_run_the_table_says_how_long_it_takes(rerun, executed):
    rerun()
    assert executed.expected["02"] == seconds(PROFILES["cpu"], "02") > 0


def test_notebooks_run_in_kernels_with_the_run_s_settings(course, write, capsys):
    write(
        "01",
        "import os\nassert os.environ['LAB_LOCK_HELD'].endswith('cpu')\n"
        "print(os.environ['LAB_PROFILE'])",
    )
    write("02", "from labkit.errors import LabError\nraise LabError('the paragraph')")
    write("03", "import os\nos._exit(1)")
    assert main(["run"]) == 1
    out = capsys.readouterr().out
    assert "02 quantize: FAILED in 'Step 1'\nerror: the paragraph" in out
    assert "Traceback" not in out and "03 infer: not run, it needs awq" in out
    assert (course / "notebooks" / "02_quantize.failed.ipynb").exists()
    assert not (course / "notebooks" / "02_quantize.ipynb").exists()
    assert ">cpu\n" in (course / "report.html").read_text()


@pytest.fixture
def one_lab(course, write):
    """A course of lab 01 alone, with the code that is given."""

    def only(code):
        only_lab(Entry("setup"))
        write("01", code)

    return only


def test_an_interrupt_ends_the_run_and_its_kernel(course, one_lab, capsys):
    one_lab("import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)")
    assert main(["run"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(course.glob("notebooks/*"))
    with folder_lock(course):
        pass


def test_it_is_refused_while_another_runs(rerun, course, capsys):
    with folder_lock(course):
        assert rerun() == (1, [])
        assert main(["reset", "--yes"]) == 1
    error = capsys.readouterr().err
    assert error.count("error: another run") == 2 and "Traceback" not in error


def test_another_profile_set_in_lab_01_is_refused(rerun, course, monkeypatch, capsys):
    course.parent.mkdir()
    (course.parent / "choice.json").write_text('{"profile": "gpu"}')
    monkeypatch.setenv("LAB_PROFILE", "cpu")
    assert rerun() == (1, ["01"])
    assert "lab 01 sets PROFILE = 'gpu'" in capsys.readouterr().err
