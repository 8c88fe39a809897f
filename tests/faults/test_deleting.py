"""Whatever a name or a link says: nothing is deleted but what the labs have made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from samples import CPU, writes

from labkit.commands import main
from labkit.errors import LabError
from labkit.files import write_json
from labkit.folders import MARK, own, remove
from labkit.products import Products
from labkit.profiles import ROOT
from labkit.registry.local import LocalRegistry
from labkit.session import Lab
from labkit.working_copies import WorkingCopies


@pytest.fixture
def precious(tmp_path):
    """A file of the user's, in a folder beside the labs' own."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder / "thesis.txt"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A run folder with two products, as two labs left it."""
    for name in ("LAB_PROFILE", "LAB_MODEL", "LAB_DATA", "LAB_STEPS", "LAB_LOCK_HELD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "runs"))
    Lab("01", CPU).keep("base", writes("weights"))
    Lab("04", CPU).keep("onnx", writes("graph"), needs=("base",))
    return tmp_path / "runs" / "cpu"


def forged(home: Path, name: str) -> None:
    """A stamp that says that *name* is a product of lab 04."""
    text = (home / ".stamps" / "onnx.json").read_text().replace('"onnx"', f'"{name}"')
    (home / ".stamps" / "forged.json").write_text(text)


def a_stamp_leads_out(home, precious):
    forged(home, "logs/../../../precious")


def a_stamp_names_the_run_folder_s_parent(home, precious):
    forged(home, "logs/../..")


def a_stamp_s_own_place_leads_out(home, precious):
    (home / ".stamps" / "x").symlink_to(precious.parent)
    forged(home, "x/thesis.txt")


def the_file_of_a_stamp_is_a_link(home, precious):
    write_json(precious.with_name("onnx.json"), {})
    (home / ".stamps" / "linked.json").symlink_to(precious.with_name("onnx.json"))


def the_notebooks_are_a_link(home, precious):
    shutil.copy(precious, precious.with_name("01_setup.ipynb"))
    (home / "notebooks").symlink_to(precious.parent)


def the_logs_are_a_link(home, precious):
    shutil.copy(precious, precious.with_name("01-base.log"))
    shutil.rmtree(home / "logs")
    (home / "logs").symlink_to(precious.parent)


def a_product_is_a_link(home, precious):
    (home / "awq").symlink_to(precious.parent)


def a_product_holds_a_link(home, precious):
    (home / "awq").mkdir()
    (home / "awq" / "elsewhere").symlink_to(precious.parent)


def an_output_is_a_link(home, precious):
    (home / "registry").symlink_to(precious.parent)


@pytest.mark.parametrize("options", [["--yes"], ["--from", "04", "--yes"], ["--all", "--yes"]])
@pytest.mark.parametrize(
    "fault",
    [
        a_stamp_leads_out,
        a_stamp_names_the_run_folder_s_parent,
        a_stamp_s_own_place_leads_out,
        the_file_of_a_stamp_is_a_link,
        the_notebooks_are_a_link,
        the_logs_are_a_link,
        a_product_is_a_link,
        a_product_holds_a_link,
        an_output_is_a_link,
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_reset_deletes_nothing_outside_of_the_run_folder(home, precious, fault, options):
    fault(home, precious)
    before = sorted(precious.parent.iterdir())
    main(["reset", *options])
    assert precious.read_text() == "years of work"
    assert sorted(precious.parent.iterdir()) == before and home.parent.exists()


def test_a_run_folder_that_is_a_link_is_not_emptied(home, precious, capsys):
    elsewhere = precious.parent / "cpu"
    home.rename(elsewhere)
    home.symlink_to(elsewhere)
    assert main(["reset", "--yes"]) == 1
    assert "is a link, so that nothing in it is deleted" in capsys.readouterr().err
    assert (elsewhere / "onnx").exists()


def test_a_folder_that_the_labs_did_not_make_is_neither_used_nor_emptied(
    home, precious, monkeypatch, capsys
):
    monkeypatch.setenv("LAB_RUNS", str(precious.parents[1] / "documents"))
    documents = precious.parents[1] / "documents" / "cpu"
    shutil.copytree(precious.parent, documents)
    (documents / "base").touch()
    assert main(["reset", "--yes"]) == 1
    assert "was not made by the labs" in capsys.readouterr().err
    with pytest.raises(LabError, match=r"files that are not of the labs \(base\).*LAB_RUNS="):
        Lab("01", CPU)
    assert (documents / "base").exists() and (documents / "thesis.txt").exists()


def test_a_reset_leaves_and_names_what_no_lab_has_made(home, capsys):
    for path in ("notes.txt", "mine/a.txt", "notebooks/my own.ipynb", "logs/my own.log"):
        (home / path).parent.mkdir(exist_ok=True)
        (home / path).touch()
    assert main(["reset", "--yes"]) == 0
    found = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    kept = {"notes.txt", "mine/a.txt", "notebooks/my own.ipynb", "logs/my own.log"}
    assert found == kept | {MARK, ".lock"}
    assert "no lab has made it: logs, mine, notebooks, notes.txt" in capsys.readouterr().out
    Lab("01", CPU).keep("base", writes("weights"))


def test_what_an_attendee_has_made_in_a_lab_is_deleted_with_it(home):
    Lab("05", CPU).keep("mein Versuch", writes("x"))
    assert main(["reset", "--from", "05", "--yes"]) == 0
    assert not (home / "mein Versuch").exists() and (home / "onnx").exists()


@pytest.mark.parametrize(
    "name",
    ["../precious", "..", ".", "", "/abs", "a/../../x", "a/b/c", "logs", ".stamps", "registry/x"]
    + ["notebooks", "a\n", "-rf", "summary.json", "~", "a/", "a//b", "Logs", "Summary.JSON"]
    + ["a" * 201, "ü" * 101],
    ids=lambda name: ascii(name[:20]),
)
def test_no_product_can_be_named_so(home, name):
    products = Products(home)
    written = home / ".partial"
    written.touch()
    decision = products.decision(None)
    for action in (
        lambda: products.delete(name),
        lambda: products.put(name, written, decision, lab="01"),
        lambda: Lab("01", CPU).keep(name, lambda *_: pytest.fail("built for nothing")),
        lambda: Lab("01", CPU).write(name, "x"),
    ):
        with pytest.raises(LabError, match="cannot be the name of a product"):
            action()
    assert products.is_current("base")
    assert not list(home.glob(".partial-*"))


def test_a_name_may_be_as_long_as_it_says(home):
    for name in ("a" * 200, "mein größtes Modell, 2. Versuch".replace(",", "")):
        Lab("01", CPU).write(name, "x")
        Lab("01", CPU).keep(name, writes("x"), anew=True)
        assert Products(home).is_current(name, hashed=True)


def inside_another(tmp_path, precious):
    return precious


def upwards(tmp_path, precious):
    return tmp_path / "own" / ".." / "precious"


def behind_a_link(tmp_path, precious):
    (tmp_path / "own" / "link").symlink_to(precious.parent)
    return tmp_path / "own" / "link" / "thesis.txt"


@pytest.mark.parametrize(
    "place", [inside_another, upwards, behind_a_link], ids=lambda place: place.__name__
)
def test_the_one_place_that_deletes_takes_what_lies_in_a_folder_of_its_own(
    tmp_path, precious, place
):
    own(tmp_path / "own")
    with pytest.raises(LabError, match="is not deleted"):
        remove(place(tmp_path, precious), inside=tmp_path / "own")
    assert precious.exists()


def test_a_link_is_deleted_and_not_what_it_leads_to(tmp_path, precious):
    own(tmp_path / "own")
    (tmp_path / "own" / "link").symlink_to(precious.parent)
    remove(tmp_path / "own" / "link", inside=tmp_path / "own")
    assert precious.exists() and not (tmp_path / "own" / "link").is_symlink()
    remove(tmp_path / "own" / "never there", inside=tmp_path / "own")
    remove(tmp_path / "own", inside=tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_nothing_is_deleted_through_a_mount(home, precious, capsys):
    place = home / "awq" / "a place"
    place.mkdir(parents=True)
    if subprocess.run(["mount", "--bind", precious.parent, place], capture_output=True).returncode:
        pytest.skip("mounting needs the rights of root")
    try:
        assert main(["reset", "--yes"]) == 1
        assert f"{place} is another folder or disk that is mounted" in capsys.readouterr().err
        assert precious.read_text() == "years of work"
    finally:
        subprocess.run(["umount", place], check=True)
    assert main(["reset", "--yes"]) == 0 and not (home / "awq").exists()


@pytest.mark.parametrize("name", ["records", "workflows", "notebooks", "logs", ".stamps"])
def test_a_file_in_the_place_of_a_folder_is_left_or_told(home, name, capsys):
    shutil.rmtree(home / name, ignore_errors=True)
    (home / name).write_text("mine")
    assert main(["reset", "--yes"]) == 0


@pytest.mark.parametrize("name", ["logs/05-mine.log", "logs/.running", ".partial-mine"])
def test_nothing_is_written_through_a_link(home, precious, name):
    for again in (True, False):
        (home / name).unlink(missing_ok=True)
        (home / name).symlink_to(precious)
        Lab("05", CPU).keep("mine", writes("x"), anew=again)
        (home / name).unlink(missing_ok=True)
        (home / name).symlink_to(precious)
        Lab("05", CPU).write("mine", "y")
        assert precious.read_text() == "years of work"


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(home):
    os.mkfifo(home / "logs" / "05-mine.log")
    Lab("05", CPU).keep("mine", lambda _, out: (print("done"), out.write_text("x")))
    assert (home / "logs" / "05-mine.log").read_text() == "done\n"


READ_ONLY = """
import os, shutil, sys
from samples import CPU
from labkit.commands import main
from labkit.session import Lab
lab = Lab("05", CPU)
for recipe in (1, 2):
    lab.keep("copy", lambda recipe, out: shutil.copytree(sys.argv[1], out), recipe)
assert main(["reset", "--yes"]) == 0
print(sorted(os.listdir(lab.folder)))
"""


def test_a_copy_of_a_read_only_folder_can_be_deleted(home, precious):
    (precious.parent / "inner").mkdir()
    (precious.parent / "inner" / "file").touch()
    for place in (precious.parent / "inner", precious.parent):
        place.chmod(0o555)
    without = []
    if os.geteuid() == 0:  # whom no mode keeps from anything
        if not shutil.which("setpriv"):
            pytest.skip("root may write everywhere, and setpriv is not installed")
        without = ["setpriv", "--inh-caps", "-all", "--bounding-set", "-dac_override"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(
        [*without, sys.executable, "-c", READ_ONLY, precious.parent],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("['.labkit', '.lock']\n"), done.stderr
    assert precious.exists() and precious.parent.stat().st_mode & 0o777 == 0o555


def test_without_its_mark_a_folder_is_not_ours(tmp_path, precious):
    with pytest.raises(LabError, match="was not made by the labs"):
        remove(precious, inside=precious.parent)
    with pytest.raises(LabError, match=r"not of the labs \(thesis.txt\)"):
        own(precious.parent)


def test_working_copies_are_deleted_and_other_files_beside_them_stay(tmp_path):
    (tmp_path / "notebooks").mkdir()
    notebook = tmp_path / "notebooks" / "01_setup.ipynb"
    notebook.write_text("{}")
    copies = WorkingCopies(tmp_path)
    copies.make(notebook)
    (copies.folder / "my data.csv").write_text("1")
    copies.delete()
    assert sorted(path.name for path in copies.folder.iterdir()) == [MARK, "my data.csv"]


def test_folders_from_before_there_were_marks_are_ours(tmp_path, home):
    (tmp_path / "notebooks").mkdir()
    copies = WorkingCopies(tmp_path)
    for name in ("01_setup.ipynb", "02_quantize.ipynb"):
        (tmp_path / "notebooks" / name).write_text("{}")
        copies.make(tmp_path / "notebooks" / name)
        (copies.folder / MARK).unlink()
    own(copies.folder)
    copies.delete()
    assert copies.names() == []
    (home / "registry" / "m" / "1").mkdir(parents=True)
    (home / "registry" / "m" / "1" / "model.yml").touch()
    own(home / "registry")


def test_a_registry_in_a_foreign_folder_is_not_begun(tmp_path, precious):
    registry = LocalRegistry(precious.parent, tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").touch()
    from azure.ai.ml.entities import Model

    with pytest.raises(LabError, match="not of the labs"):
        registry.create_or_update(Model(name="m", version="1", path=tmp_path / "model"))
    assert precious.exists()


def test_a_download_replaces_no_folder(tmp_path, precious):
    (precious.parent / "manifest.json").write_text("{}")
    registry = LocalRegistry(tmp_path / "registry", tmp_path)
    with pytest.raises(LabError, match="is not empty"):
        registry.download("m", "1", precious.parent)
    assert precious.exists()
