"""What is kept between cells, kernels and days, and what makes it be made anew."""

import shutil
from dataclasses import replace

import pytest
from samples import CPU, qa, write_lines, writes

from labkit import products
from labkit.errors import LabError
from labkit.profiles import ROOT
from labkit.session import Lab

RECIPE = {"passes": {"awq": {"bits": 4, "group": 32}}, "data": ["a", "b"]}


@pytest.fixture
def lab(runs):
    """Lab 02, with the product of lab 01 made."""
    Lab("01", CPU).keep("base", writes("weights"))
    return Lab("02", CPU)


@pytest.fixture
def made():
    """What the build of :func:`keep` was called with, in order."""
    return []


@pytest.fixture
def keep(lab, made):
    """A function that asks for awq, made from base by RECIPE unless told otherwise."""

    def ask(recipe=RECIPE, *, needs=("base",), **options):
        def build(recipe, out):
            made.append(recipe)
            out.write_text(f"build {len(made)}")

        return lab.keep("awq", build, recipe, needs=needs, **options)

    return ask


# ---- what decides


def test_a_product_is_kept_while_what_decides_it_stays(keep, made, capsys):
    path = keep()
    assert keep() == path and len(made) == 1 and path.read_text() == "build 1"
    assert "awq: kept, made at " in (out := capsys.readouterr().out)
    assert "from the same recipe, base" in out


def test_the_code_of_the_build_decides_nothing(lab):
    lab.keep("awq", writes("one"), RECIPE)
    assert lab.keep("awq", writes("two"), RECIPE).read_text() == "one"


def other_recipe(monkeypatch, lab):
    return {"recipe": RECIPE | {"passes": {"awq": {"bits": 4, "group": 16}}}}


def longer_recipe(monkeypatch, lab):
    return {"recipe": RECIPE | {"seed": 7}}


def shorter_recipe(monkeypatch, lab):
    return {"recipe": {"passes": RECIPE["passes"]}}


def other_text(monkeypatch, lab):
    return {"recipe": RECIPE | {"data": ["a" * 80, "b"]}}


def remade_need(monkeypatch, lab):
    Lab("01", CPU).keep("base", writes("weights"), anew=True)
    return {}


def fewer_needs(monkeypatch, lab):
    return {"needs": ()}


def other_version(monkeypatch, lab):
    found = products.versions()
    monkeypatch.setattr(products, "versions", lambda: found | {"torch": "0.0.1"})
    return {}


def other_pass(monkeypatch, lab):
    monkeypatch.setattr(products, "VERSION", "another")
    return {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_recipe, "because recipe.passes.awq.group was 32 and is 16\n"),
        (longer_recipe, "because recipe.seed is new\n"),
        (shorter_recipe, "because recipe.data is gone\n"),
        (other_text, 'because recipe.data was ["a", "b"] and is other text\n'),
        (remade_need, "because base was made anew\n"),
        (fewer_needs, "because needs.base is gone\n"),
        (other_version, 'is "0.0.1"\n'),
        (other_pass, 'and is "another"\n'),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whatever_decides_makes_it_anew_alone_and_is_named(
    keep, made, lab, monkeypatch, capsys, change, said
):
    keep()
    changed = change(monkeypatch, lab)
    capsys.readouterr()
    keep(**changed)
    keep(**changed)
    out = capsys.readouterr().out
    assert len(made) == 2 and out.count("awq: made anew, because ") == 1 and said in out


def test_a_build_cannot_change_the_recipe_that_is_remembered(lab):
    """Olive rewrites the workflow that it is given."""
    recipe, calls = {"steps": [1]}, []

    def build(given, out):
        calls.append(list(given["steps"]))
        given["steps"].append(2)
        out.write_text("x")

    lab.keep("awq", build, recipe)
    lab.keep("awq", build, recipe)
    assert calls == [[1]] and recipe == {"steps": [1]}


def test_on_request_it_is_made_in_any_case(keep, made):
    keep()
    keep(anew=True)
    assert len(made) == 2


def test_a_file_that_is_written_again_with_the_same_text_keeps_what_needs_it(keep, made, lab):
    lab.write("calibration.jsonl", "one")
    keep(needs=("base", "calibration.jsonl"))
    lab.write("calibration.jsonl", "one")
    keep(needs=("base", "calibration.jsonl"))
    assert len(made) == 1
    lab.write("calibration.jsonl", "two")
    assert not lab.products.is_current("awq")
    keep(needs=("base", "calibration.jsonl"))
    assert len(made) == 2


# ---- what is current


def test_a_remade_need_makes_all_that_came_after_stale(keep, lab):
    keep()
    Lab("03", CPU).keep("lora", writes("x"), needs=("awq",))
    assert lab.products.is_current("lora")
    Lab("01", CPU).keep("base", writes("weights"), anew=True)
    assert not lab.products.is_current("awq") and not lab.products.is_current("lora")
    with pytest.raises(
        LabError, match="run lab 03 first.*made from awq, which is no longer current"
    ):
        Lab("04", CPU).path("lora")


def test_what_is_not_needed_any_more_may_be_deleted(keep, lab):
    keep()
    Lab("03", CPU).keep("lora", writes("x"), needs=("awq",))
    (lab.folder / "awq").unlink()
    assert Lab("04", CPU).path("lora").read_text() == "x"
    with pytest.raises(LabError, match="run lab 02 first: .*awq is missing"):
        Lab("03", CPU).path("awq")
    Lab("01", CPU).keep("base", writes("weights"), anew=True)
    with pytest.raises(LabError, match="made from awq, which is no longer current"):
        Lab("04", CPU).path("lora")


def test_a_cut_file_is_not_taken_for_finished(keep, made, lab, capsys):
    keep().write_text("buil")
    with pytest.raises(LabError, match=r"run lab 02 first.*was altered since it was made \(awq\)"):
        Lab("03", CPU).path("awq")
    capsys.readouterr()
    assert keep().read_text() == "build 2"
    assert "made anew, because it was altered since it was made (awq)" in capsys.readouterr().out


def test_a_lost_file_of_a_folder_is_noticed(lab):
    def build(recipe, out):
        out.mkdir()
        (out / "a").touch()
        (out / "b").touch()

    (lab.keep("awq", build) / "b").unlink()
    assert not lab.products.is_current("awq")


def test_what_is_missing_names_its_lab(runs):
    with pytest.raises(LabError, match="run lab 02 first: .*awq-dense is missing"):
        Lab("03", CPU).path("awq-dense")
    with pytest.raises(LabError, match="no lab makes the product .*nothing, which is missing"):
        Lab("03", CPU).path("nothing")


@pytest.mark.parametrize("other", ["data", "model"])
def test_a_product_of_another_model_or_of_other_data_is_refused(lab, tmp_path, other):
    settings = {"data": str(write_lines(tmp_path / "d.jsonl", qa(1))), "model": "me/mine"}
    with pytest.raises(LabError, match="another model or other data"):
        Lab("02", replace(CPU, **{other: settings[other]})).path("base")


def test_a_product_that_is_kept_serves_the_data_it_is_kept_for(lab, tmp_path):
    """The untouched model is the same for all data: lab 01 keeps it, and lab 02 must find it."""
    other = replace(CPU, data=str(write_lines(tmp_path / "d.jsonl", qa(1))))
    before = lab.products.stamp("base")
    Lab("01", other).keep("base", writes("other weights"))
    assert Lab("02", other).path("base").read_text() == "weights"
    assert lab.products.stamp("base").id == before.id


def test_a_copy_of_the_run_folder_in_another_place_stays_current(
    keep, made, lab, tmp_path, monkeypatch
):
    def recipe(folder):
        return {"model_path": str(folder / "base"), "data": str(ROOT / "data" / "travel.jsonl")}

    keep(recipe(lab.folder))
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "elsewhere"))
    shutil.copytree(lab.folder, tmp_path / "elsewhere" / "cpu")
    shutil.rmtree(lab.folder)
    there = Lab("02", CPU)
    assert there.products.is_current("awq")
    there.keep("awq", writes("not needed"), recipe(there.folder), needs=("base",))
    assert there.path("awq").read_text() == "build 1"


# ---- what goes wrong on the way


@pytest.mark.parametrize("error", [LabError("it went wrong."), KeyboardInterrupt(), OSError(28)])
def test_a_failed_rebuild_does_not_leave_the_old_product_as_finished(keep, lab, error):
    keep()

    def broken(recipe, out):
        out.write_text("half")
        raise error

    with pytest.raises(LabError):
        lab.keep("awq", broken, "another recipe")
    with pytest.raises(LabError, match="run lab 02 first"):
        lab.path("awq")
