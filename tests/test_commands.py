"""The command line, on a course of three tiny labs in a temporary folder."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest

from labkit import workspace
from labkit.commands import main, open, reset, run, setup, status
from labkit.errors import LabError
from labkit.profiles import ROOT, resolve_profile

LABS = {"01": ("setup", ()), "02": ("quantize", ("base",)), "03": ("infer", ("awq",))}
MAKER = {"base": "01", "awq": "02", "awq-gpu": "02"}
PRODUCTS = {"01": "base", "02": "awq", "03": "answers"}
NEEDS = {"01": (), "02": ("base",), "03": ("awq",)}


@pytest.fixture
def course(tmp_path, monkeypatch):
    """Folder of the runs; three labs, each of one step."""
    for name in ("LAB_PROFILE", "LAB_MODEL", "LAB_DATA", "LAB_STEPS", "LAB_LOCK_HELD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(workspace, "LABS", LABS)
    monkeypatch.setattr(workspace, "MAKER", MAKER)
    monkeypatch.setattr(workspace, "GPU_ONLY", {"awq-gpu"})
    monkeypatch.setattr(
        workspace, "notebook_path", lambda number: tmp_path / f"{number}_{LABS[number][0]}.ipynb"
    )
    monkeypatch.setattr(setup, "enter", lambda *_, **__: None)
    for number in LABS:
        write_notebook(number, "1 + 1")
    return tmp_path / "runs" / "cpu"


def write_notebook(number, code):
    cells = [
        nbformat.v4.new_markdown_cell(f"# Lab {number}\n\n**Time:** read 5 min, run 2 min"),
        nbformat.v4.new_markdown_cell("## Step 1"),
        nbformat.v4.new_code_cell(code),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), workspace.notebook_path(number))


@pytest.fixture
def executed(course, monkeypatch):
    """Labs that were executed, in order; those put into the set ``fails`` fail. No kernel is started."""

    class Executed(list):
        fails = set()

    executed = Executed()

    def execute(folder, profile, number, progress):
        executed.append(number)
        if number in executed.fails:
            return False
        lab = workspace.Lab(number, resolve_profile())
        with pytest.MonkeyPatch.context() as kernel:
            kernel.setenv("LAB_LOCK_HELD", str(folder))
            lab.step(PRODUCTS[number], lambda out: out.write_text(number), needs=NEEDS[number])
        path = run.executed_path(folder, number)
        path.parent.mkdir(exist_ok=True)
        nbformat.write(
            nbformat.v4.new_notebook(metadata={"labkit": {"key": run.key(folder, number)}}), path
        )
        return True

    monkeypatch.setattr(run, "_execute", execute)
    monkeypatch.setattr(run, "write_report", lambda folder: None)
    return executed


def rerun(executed, *arguments):
    executed.clear()
    return main(["run", *arguments]), list(executed)


def test_second_run_skips_all(executed, capsys):
    assert rerun(executed) == (0, ["01", "02", "03"])
    assert rerun(executed) == (0, [])
    assert "02 quantize: complete and unchanged" in capsys.readouterr().out


def test_changed_notebook_is_run_with_all_after_it(executed):
    rerun(executed)
    write_notebook("02", "2 + 2")
    assert rerun(executed) == (0, ["02", "03"])


def test_lost_product_is_made_again(executed, course):
    rerun(executed)
    (course / "awq").unlink()
    assert rerun(executed) == (0, ["02", "03"])


def test_lost_stamp_is_made_again(executed, course):
    rerun(executed)
    (course / ".steps" / "base.json").unlink()
    assert rerun(executed)[1][0] == "01"


def test_changed_setting_runs_all(executed, monkeypatch):
    rerun(executed)
    monkeypatch.setenv("LAB_STEPS", "3")
    assert rerun(executed) == (0, ["01", "02", "03"])


def test_from(executed):
    rerun(executed)
    assert rerun(executed, "--from", "2") == (0, ["02", "03"])
    assert rerun(executed, "--from", "03") == (0, ["03"])


def test_force(executed, course):
    rerun(executed)
    before = workspace.read_stamp(course, "base")["id"]
    assert rerun(executed, "--force") == (0, ["01", "02", "03"])
    assert workspace.read_stamp(course, "base")["id"] != before


def test_failure_leaves_out_what_needs_it(executed, capsys):
    executed.fails = {"01"}
    assert rerun(executed) == (1, ["01"])
    out = capsys.readouterr().out
    assert (
        "02 quantize: not run, it needs base" in out and "03 infer: not run, it needs awq" in out
    )


def test_an_old_product_of_a_failed_lab_is_not_used(executed):
    rerun(executed)
    executed.fails = {"01"}
    write_notebook("01", "3 + 3")
    assert rerun(executed) == (1, ["01"])


def test_relative_settings_are_those_of_the_shell(executed, tmp_path, monkeypatch):
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_RUNS", "out")
    monkeypatch.setenv("LAB_DATA", "d.jsonl")
    main(["run"])
    assert (
        os.environ["LAB_DATA"] == str(tmp_path / "d.jsonl")
        and (tmp_path / "out" / "cpu" / "summary.json").exists()
    )


def test_seconds_are_kept_and_expected(executed, course):
    assert run.expected_seconds(course, "02", "**Time:** read 5 min, run about 1.5 min") == 90
    assert run.expected_seconds(course, "02", "**Time:** run 40 s") == 40
    assert run.expected_seconds(course, "02", "no such line") is None
    rerun(executed)
    assert json.loads((course / "lab_seconds.json").read_text()).keys() == LABS.keys()


def test_run_with_kernels(course, capsys):
    write_notebook(
        "01",
        "import os\nassert os.environ['LAB_LOCK_HELD'].endswith('cpu')\nprint(os.environ['LAB_PROFILE'])",
    )
    write_notebook("02", "from labkit.errors import LabError\nraise LabError('the paragraph')")
    write_notebook("03", "import os\nos._exit(1)")
    assert main(["run"]) == 1
    out = capsys.readouterr().out
    assert "02 quantize: FAILED in 'Step 1'\nerror: the paragraph" in out
    assert "Traceback" not in out
    assert (course / "notebooks" / "02_quantize.failed.ipynb").exists()
    assert not (course / "notebooks" / "02_quantize.ipynb").exists()
    report = (course / "report.html").read_text()
    assert 'href="#lab-01"' in report and ">cpu\n" in report
    assert not [line for line in report.splitlines() if "<script" in line and "src=" in line]
    assert "cdnjs" not in report and "unpkg" not in report


def test_dead_kernel_is_named(course, capsys, monkeypatch):
    monkeypatch.setattr(workspace, "LABS", {"01": LABS["01"]})
    write_notebook("01", "import os\nos._exit(1)")
    assert main(["run"]) == 1
    out = capsys.readouterr().out
    assert "the kernel died" in out and str(course / "logs") in out


def test_interrupt_ends_the_run_and_its_kernel(course, capsys):
    write_notebook(
        "01", "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    )
    assert main(["run"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (course / "notebooks").exists()
    with workspace.folder_lock(course):
        pass


def test_run_is_refused_while_another_runs(executed, course, capsys):
    with workspace.folder_lock(course):
        assert rerun(executed) == (1, [])
        assert main(["reset"]) == 1
    error = capsys.readouterr().err
    assert error.count("error: another run") == 2 and "Traceback" not in error


def test_status(executed, course, capsys):
    assert [status.state(course, number) for number in LABS] == ["not run"] * 3
    rerun(executed)
    assert [status.state(course, number) for number in LABS] == ["complete"] * 3
    (course / "awq").unlink()
    run.executed_path(course, "01").unlink()
    assert [status.state(course, number) for number in LABS] == ["incomplete", "stale", "stale"]
    assert main(["status"]) == 0
    assert "02 quantize" in capsys.readouterr().out


def test_reset_from(executed, course):
    rerun(executed)
    assert main(["reset", "--from", "02"]) == 0
    assert (course / "base").exists() and workspace.is_current(course, "base")
    assert not (course / "awq").exists() and not (course / "answers").exists()
    assert [status.state(course, number) for number in LABS] == ["complete", "not run", "not run"]


def test_reset_deletes_the_local_registry_with_lab_06(executed, course, monkeypatch):
    rerun(executed)
    monkeypatch.setattr(workspace, "LABS", LABS | {"06": ("upload", ("answers",))})
    for name in ("registry", "downloaded"):
        (course / name / "1").mkdir(parents=True)
    assert main(["reset", "--from", "06"]) == 0
    assert (
        not (course / "registry").exists()
        and not (course / "downloaded").exists()
        and (course / "base").exists()
    )


def test_reset_keeps_the_choice_unless_all(executed, course):
    rerun(executed)
    choice = course.parent / "choice.json"
    choice.write_text('{"profile": "cpu", "data": "/gone.jsonl"}')
    other = course.parent / "gpu" / "base"
    other.parent.mkdir()
    other.touch()
    assert main(["reset"]) == 0
    assert not (course / "base").exists() and choice.exists()
    assert main(["reset", "--all"]) == 0
    assert not choice.exists() and other.exists()


def test_reset_deletes_nothing_outside(executed, course, tmp_path):
    rerun(executed)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "work").touch()
    (course / "awq").unlink()
    (course / "awq").symlink_to(precious)
    assert main(["reset", "--from", "02"]) == 0
    assert (precious / "work").exists() and not (course / "awq").is_symlink()
    with pytest.raises(LabError, match="outside"):
        reset._delete(course, course / ".." / ".." / "precious")
    assert (precious / "work").exists()


def test_unknown_command(capsys):
    assert main(["fly"]) == 2
    assert "unknown command 'fly'" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(
        f"  {name}" in out
        for name in ("setup", "doctor", "run", "open", "status", "reset", "test")
    )


def test_commands_need_only_the_standard_library():
    code = "import sys, labkit, labkit.commands.setup; labkit.commands.main(['help'])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_lab_works_from_any_folder(tmp_path):
    done = subprocess.run([ROOT / "lab", "fly"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")


def test_lab_says_what_to_install_where_no_python_fits(tmp_path):
    for tool in ("bash", "env", "dirname", "readlink"):
        (tmp_path / tool).symlink_to(
            next(f"{d}/{tool}" for d in ("/usr/bin", "/bin") if os.path.exists(f"{d}/{tool}"))
        )
    done = subprocess.run(
        [tmp_path / "bash", ROOT / "lab", "help"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Install one" in done.stderr


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """A .venv of the test's own; pip and venv are replaced."""
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "_make_venv", lambda folder: None)
    return tmp_path / ".venv"


def fake_pip(monkeypatch, code):
    def start(python, command, wheels):
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    monkeypatch.setattr(setup, "_start_pip", start)


def test_setup_failure_says_what_to_do(venv, monkeypatch, capsys):
    fake_pip(monkeypatch, "print('ERROR: No matching distribution found'); raise SystemExit(1)")
    assert main(["setup"]) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith("error: ")
        and "--wheels DIR" in error
        and "No matching distribution" in error
    )
    assert "Traceback" not in error and not setup.ready()


def test_setup_failure_of_the_install_shows_the_end_of_pip(venv, monkeypatch, capsys):
    monkeypatch.setattr(setup, "_choose", lambda *_: ("cpu.txt", ()))
    fake_pip(monkeypatch, "print('early\\n' * 50 + 'the reason'); raise SystemExit(3)")
    assert main(["setup"]) == 1
    error = capsys.readouterr().err
    assert "pip failed (exit 3)" in error and "the reason" in error and error.count("early") < 20


def test_setup_leaves_a_foreign_environment_alone(venv, capsys):
    (venv / "bin").mkdir(parents=True)
    assert main(["setup"]) == 1
    assert "was not made by" in capsys.readouterr().err and (venv / "bin").exists()


def test_setup_refuses_a_full_disk(venv, monkeypatch, capsys):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
    assert main(["setup"]) == 1
    assert "1.0 GB free, and 5 GB are needed" in capsys.readouterr().err


def test_setup_says_that_a_folder_of_wheels_is_missing(capsys):
    assert main(["setup", "--wheels", "/no/such/folder"]) == 1
    assert "/no/such/folder is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wheel", "lock", "index"),
    [
        ("/somewhere/torch-V+cpu-cp311-cp311-linux_x86_64.whl", "cpu.txt", ()),
        (
            "https://download.pytorch.org/whl/cpu/torch-V%2Bcpu-cp311-cp311-linux_x86_64.whl",
            "cpu.txt",
            setup.CPU_INDEX,
        ),
        ("torch-V-cp311-cp311-manylinux_2_28_x86_64.whl", "cpu-cuda-torch.txt", ()),
    ],
)
def test_setup_chooses_the_lock_by_the_torch_that_pip_finds(
    venv, monkeypatch, capsys, wheel, lock, index
):
    venv.mkdir()
    monkeypatch.setattr(sys, "platform", "linux")
    wheel = wheel.replace("V", setup.pins(ROOT / "locks" / "cpu.txt")["torch"])
    fake_pip(monkeypatch, f"print('Collecting torch'); print('  Downloading {wheel} (1 MB)')")
    with setup.Progress() as progress:
        assert setup._choose(venv, None, progress) == (lock, index)
    assert ("3 GB" in capsys.readouterr().out) == (lock != "cpu.txt")


def test_marker_of_another_lock_or_folder_is_not_ready(venv):
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    marker = {
        "lock": "cpu.txt",
        "digest": setup._digest(ROOT / "locks" / "cpu.txt"),
        "folder": str(venv),
    }

    def ready(**changes):
        (venv / "labkit-lock.json").write_text(json.dumps(marker | changes))
        return setup.ready(gpu=False)

    assert ready()
    assert not ready(digest="other") and not ready(folder="/moved") and not setup.ready(gpu=True)


def test_open_takes_the_next_free_port():
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert port < open.free_port(port) <= port + 50
