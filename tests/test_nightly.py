"""A night: real runs of `./lab nightly` in a copy of this clone with two small labs, which name
each cause; and what it makes of outputs, figures and earlier nights.
"""

import datetime
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import nbformat
import psutil
import pytest

from labkit import folders
from labkit.commands import nightly
from labkit.errors import LabError
from labkit.extras import extra_packages
from labkit.night import audit, causes, nights, page, parts
from labkit.night.causes import Failure
from labkit.night.nights import Figure, Night
from labkit.night.parts import Ran
from labkit.products import folder_lock
from labkit.profiles import ROOT

COURSE = """
LABS.clear()
LABS["01"] = Entry("setup", makes=("weights",))
LABS["02"] = Entry("quantize", needs=("weights",), makes=("answers",))
"""
START = "import labkit\n\nlab = labkit.start({!r})"
MAKE = """def build(recipe, out):
    out.write_bytes(b"w" * recipe["bytes"])


weights = lab.keep("weights", build, {"bytes": 4_000_000})
size = labkit.Estimate(weights.stat().st_size / 1e6, unit="MB")
lab.record("sizes_mb", onnx_int4=size)"""
ANSWER = """import time

import safetensors


def answer(recipe, out):
    time.sleep(recipe["seconds"])  # stands for work: this test is of the time that a step takes
    out.write_text("answers")


lab.keep("answers", answer, {"seconds": 4}, needs=["weights"])"""
HEADING = "Step 2: Make the weights"


class Clone:
    """A copy of this clone with two small labs, and a folder of its own for the nights."""

    def __init__(self, folder):
        self.root, self.out, self.history = folder / "clone", folder / "night", folder / "history"
        for name in ("labkit", "data", "docs", "locks"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copy(ROOT / "lab", self.root)
        with open(self.root / "labkit" / "course.py", "a") as file:
            file.write(COURSE)
        shutil.copytree(ROOT / "notebooks" / "workflows", self.root / "notebooks" / "workflows")
        self.write()

    def write(self, make=MAKE, answer=ANSWER):
        text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
        for name, cell in (("01_setup", make), ("02_quantize", answer)):
            cells = [text(f"# Lab {name}"), code(START.format(name[:2])), text(f"## {HEADING}")]
            notebook = nbformat.v4.new_notebook(cells=[*cells, code(cell)])
            nbformat.write(notebook, self.root / "notebooks" / f"{name}.ipynb")

    def night(self, *arguments, **env):
        """(exit status, the page as Markdown) of a night of the labs."""
        done = subprocess.run(
            [sys.executable, "-m", "labkit", "nightly", "--only", "labs", *arguments]
            + ["--out", str(self.out), "--history", str(self.history)],
            cwd=self.root,
            env=os.environ
            | {"PYTHONPATH": str(self.root), "LAB_PYTHON": sys.executable, "LAB_STEPS": ""}
            | env,
            capture_output=True,
            text=True,
        )
        written = self.out / "night.md"
        assert written.exists(), done.stdout[-3000:] + done.stderr[-3000:]
        return done.returncode, written.read_text()


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def first_line(text: str) -> str:
    return text.partition("\n")[0]


def test_a_broken_cell_is_named_with_its_heading(clone):
    clone.write(make=MAKE.replace('recipe["bytes"]', 'recipe["byts"]'))
    status, text = clone.night()
    assert status == 1
    assert first_line(text) == r"# The night failed: notebook \(1\)"
    assert (
        f"lab 01 setup, cell 3 below '{HEADING}': LabError: weights failed with KeyError" in text
    )
    assert "[01\\_setup.failed.ipynb](runs/cpu/notebooks/01_setup.failed.ipynb)" in text


@pytest.mark.slow  # seven nights
def test_what_is_worse_than_on_good_nights_fails_and_is_named(clone):
    for _ in range(nights.LEAST):
        status, text = clone.night()
        assert status == 0, text
    assert "The night was good" in text
    clone.write(make=MAKE.replace("4_000_000", "8_000_000"))
    status, text = clone.night()
    assert (status, first_line(text)) == (1, r"# The night failed: regression \(1\)")
    assert r"figures: sizes\_mb.onnx\_int4: 8 MB, \+100% beside the last good nights" in text
    clone.write(answer=ANSWER.replace('"seconds": 4', '"seconds": 4 * 1.3'))
    status, text = clone.night()
    assert (status, first_line(text)) == (1, r"# The night failed: regression \(1\)")
    assert "figures: seconds.steps.answers: 5." in text
    # a change that is meant
    assert clone.night("--accept")[0] == 0
    status, text = clone.night()
    assert status == 0 and "The night was good" in text


def test_a_package_that_cannot_be_imported_is_named(clone):
    (clone.root / "safetensors.py").write_text("import a_module_that_its_update_needs\n")
    status, text = clone.night()
    assert (status, first_line(text)) == (1, r"# The night failed: dependency \(1\)")
    where = f"lab 02 quantize, cell 3 below '{HEADING}': ModuleNotFoundError"
    assert f"labs: {where}: No module named 'a\\_module" in text


def test_a_full_disk_is_named_and_the_page_is_written_all_the_same(clone):
    clone.out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(clone.out)]
    if not shutil.which("mount") or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no disk can be mounted here: that needs root")
    try:
        status, text = clone.night()
        assert (status, first_line(text)) == (1, r"# The night failed: disk \(1\)")
        assert "night.html" in os.listdir(clone.out)
    finally:
        subprocess.run(["umount", "--lazy", clone.out], check=True)


# ---- what is made of outputs


def test_a_part_that_runs_past_its_time_is_ended_with_all_that_it_started(tmp_path):
    script = "import subprocess, sys, time\nprint('begun', flush=True)\n"
    script += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    script += "time.sleep(60)"
    part = parts.Part("too slow", (sys.executable, "-c", script), minutes=1.5 / 60)
    ran = parts.run(part, tmp_path / "log")
    assert ran.status is None and ran.seconds < 30
    assert ran.end == (tmp_path / "log").read_text() == "begun\n"
    failure = causes.of_command("slow", ran)
    assert failure.cause == "time" and failure.what.endswith("at last: begun")


@pytest.mark.parametrize("last", ["time.sleep(60)", "print('begun')"])
def test_what_has_left_its_part_does_not_hold_the_night_up(tmp_path, last):
    child = "[sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True"
    script = f"import subprocess, sys, time\nchild = subprocess.Popen({child})\n"
    script += f"print(child.pid, flush=True)\n{last}"
    begun = time.monotonic()
    ran = parts.run(parts.Part("x", (sys.executable, "-c", script), 3 / 60), tmp_path / "log")
    assert time.monotonic() - begun < 30
    pid = int(first_line(ran.end))
    if ran.status is None:
        end = time.monotonic() + 10
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie":
            assert time.monotonic() < end
            time.sleep(0.1)
    else:
        psutil.Process(pid).kill()


def test_a_second_ctrl_c_leaves_nothing_behind(tmp_path):
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    script += "print('begun', flush=True); time.sleep(60)"
    code = f"""
import sys
from pathlib import Path
from labkit.night import parts
parts.run(parts.Part("x", (sys.executable, "-c", {script!r}), 1), Path(sys.argv[1]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as night:
        assert night.stdout.readline() == "begun\n"
        [child] = psutil.Process(night.pid).children()
        for _ in range(2):
            night.send_signal(signal.SIGINT)
            time.sleep(0.5)
        night.wait(timeout=20)
        assert not child.is_running()


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """A folder for a night whose parts are not run; what each got in its environment."""
    got = {}

    def run(part, log, **settings):
        got[log.stem] = settings
        return Ran(0, 1.0, "")

    monkeypatch.setattr(nightly, "run", run)
    monkeypatch.delenv("LAB_STEPS")
    return tmp_path / "a night's folder", got


def test_a_folder_with_a_space_reaches_pytest(faked):
    out, got = faked
    assert nightly.main(["--only", "tests", "--out", str(out)]) == 0
    [given] = shlex.split(got["tests"]["PYTEST_ADDOPTS"])[-1:]
    assert given == f"--junitxml={out / 'tests.xml'}"


def test_two_nights_do_not_share_a_folder(faked):
    out, got = faked
    with folder_lock(out), pytest.raises(LabError, match="another run is writing to"):
        nightly.main(["--only", "tests", "--out", str(out)])
    assert not got


def test_a_night_that_is_cut_off_has_a_page_of_what_was_done(faked, monkeypatch):
    out, _ = faked
    nightly.main(["--only", "tests", "order", "--out", str(out)])
    assert first_line((out / "night.md").read_text()) == "# The night was good"

    def run(part, log, **_):
        if log.stem == "order":
            signal.raise_signal(signal.SIGINT)
        return Ran(1, 1.0, "error: it failed")

    monkeypatch.setattr(nightly, "run", run)
    with pytest.raises(KeyboardInterrupt):
        nightly.main(["--only", "tests", "order", "--out", str(out)])
    text = (out / "night.md").read_text()
    assert first_line(text) == r"# The night failed: test \(1\), time \(1\)"
    assert "cut off before these ended: order" in text and "it failed" in text
    assert (out / "night.html").exists() and not (out / nightly.RESERVE).exists()


@pytest.mark.parametrize(("steps", "kept"), [("", 1), ("8", 0)])
def test_figures_of_other_settings_are_no_measure(faked, monkeypatch, steps, kept):
    out, _ = faked
    monkeypatch.setenv("LAB_STEPS", steps)
    nightly.main(["--only", "labs", "--out", str(out)])
    assert len(nights.read_nights(out / "history")) == kept


def test_an_experiment_that_did_not_run_has_no_figure(faked):
    out, _ = faked
    folders.own(out)
    (out / "order.json").write_text('{"losses": {"first": {"mean": 3.5}}}')
    nightly.main(["--only", "labs", "--out", str(out)])
    [kept] = nights.read_nights(out / "history")
    assert not kept.figures


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("OSError: [Errno 28] No space left on device: 'x'", "disk"),
        ("error: the disk that holds runs/cpu is full. Free some space", "disk"),
        ("error: the kernel died, most often because memory ran out.", "memory"),
        ("RuntimeError: DefaultCPUAllocator: not enough memory: Cannot allocate memory", "memory"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "memory"),
        ("requests.exceptions.ConnectionError: Max retries exceeded with url", "network"),
        ("socket.gaierror: [Errno -3] Temporary failure in name resolution", "network"),
        ("ModuleNotFoundError: No module named 'peft'", "dependency"),
        ("ImportError: cannot import name 'x' from 'transformers'", "dependency"),
        ("AttributeError: module 'olive' has no attribute 'run'", "dependency"),
        ("error: this machine is not ready. packages: 1 differ (torch 2.0 for 2.1)", "dependency"),
        ("LabError: checkpoint 4.2 failed: the graph loses nothing", "regression"),
        ("error: jinja2 3.1.2: known weakness PYSEC-1, mended in 3.1.4", "regression"),
        ("KeyError: 'x'", "otherwise"),
    ],
)
def test_what_an_error_is_called(said, cause):
    ran = Ran(1, 1.0, f"before\n{said}\nafter\n")
    assert causes.of_command("labs", ran, otherwise="otherwise").cause == cause


def test_a_part_that_was_killed_is_called_memory():
    assert causes.of_command("labs", Ran(-9, 1.0, "")).cause == "memory"


def test_failed_tests_are_named_each_with_its_cause(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "def test_wrong():\n    assert 1 == 2\n\n\ndef test_fine():\n    pass\n\n\n"
        "def test_full():\n    raise OSError(28, 'No space left on device')\n"
    )
    cells = json.loads((ROOT / "notebooks" / "06_upload.ipynb").read_text())["cells"]
    code = next("".join(one["source"]) for one in cells if one["cell_type"] == "code")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("# " + "1 / 0")])
    notebook.cells.append(nbformat.v4.new_code_cell(f"1 / 0\n{code}"))
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": ""}
    nbformat.write(notebook, tmp_path / "06_upload.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "--nbmake", "-p", "no:cacheprovider"]
    subprocess.run(
        [*command, f"--junitxml={tmp_path / 'tests.xml'}", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
    )
    found = causes.of_tests(tmp_path / "tests.xml", Ran(1, 1.0, ""))
    assert {(one.cause, one.where.rpartition("::")[2].partition(",")[0]) for one in found} == {
        ("test", "test_wrong"),
        ("disk", "test_full"),
        ("notebook", "06_upload.ipynb"),
    }
    [notebook] = [one for one in found if one.cause == "notebook"]
    assert re.fullmatch(r"06_upload.ipynb, cell \d+ below '.+'", notebook.where)
    assert "ZeroDivisionError" in notebook.what


def test_tests_that_left_no_file_are_told_by_their_output(tmp_path):
    [failure] = causes.of_tests(tmp_path / "none.xml", Ran(-9, 1.0, "collected\n"))
    assert failure.cause == "memory"


# ---- figures and earlier nights

HERE = "AMD EPYC, 2 threads"


def night(**figures):
    units = {"seconds": "s", "sizes_mb": "MB", "eval_loss": "nats", "tokens_per_s": "tokens/s"}
    found = {
        name.replace("__", "."): Figure(value, units.get(name.split("__")[0], "%"))
        for name, value in figures.items()
    }
    return Night("2026-12-01 03:17:00", "abc", HERE, good=True, figures=found)


def worse(now, earlier):
    return [row.name for row in nights.compare(now, earlier) if row.verdict == "worse"]


def test_noise_is_what_the_nights_show_and_at_least_the_floor():
    def some(*values):
        return [night(seconds__steps__awq=value) for value in values]

    assert worse(night(seconds__steps__awq=13.0), some(10, 10.1, 9.9))  # 30 % slower
    assert not worse(night(seconds__steps__awq=11.0), some(10, 10.1, 9.9))
    assert not worse(night(seconds__steps__awq=13.0), some(10, 8, 12, 9, 11.5))  # that is noise
    assert not worse(night(seconds__steps__awq=7.0), some(10, 10.1, 9.9))  # it is better
    assert not worse(night(seconds__steps__awq=13.0), some(10, 10.1))  # two nights are too few
    assert not worse(night(seconds__steps__awq=1.3), some(1, 1, 1))  # too short to say
    assert worse(night(tokens_per_s__onnx=70.0), [night(tokens_per_s__onnx=100.0)] * 3)
    assert worse(night(tone_accuracy__with=80.0), [night(tone_accuracy__with=90.0)] * 3)
    assert worse(night(sizes_mb__onnx_int4=109.0), [night(sizes_mb__onnx_int4=107.0)] * 3)
    assert not worse(night(answers_sights__with=10.0), [night(answers_sights__with=40.0)] * 3)


def test_a_slow_machine_is_no_regression_and_one_slow_step_on_it_is():
    steps = ("awq", "lora", "onnx", "base")
    before = [night(**{f"seconds__steps__{step}": 10.0 for step in steps})] * 3
    slow = {f"seconds__steps__{step}": 12.5 for step in steps}
    assert not worse(night(**slow), before)
    assert worse(night(**slow | {"seconds__steps__awq": 17.0}), before) == ["seconds.steps.awq"]
    all_slow = {name: 16.0 for name in slow}
    assert worse(night(**all_slow), before) == ["all steps together"]


def test_times_of_another_machine_and_bad_nights_are_not_compared():
    now = night(seconds__steps__awq=20.0, sizes_mb__onnx=120.0)
    there = [replace(night(seconds__steps__awq=10.0, sizes_mb__onnx=100.0), machine="other")] * 3
    assert worse(now, there) == ["sizes_mb.onnx"]
    bad = [replace(one, good=False) for one in there]
    assert not worse(now, bad)
    accepted = [
        *there,
        replace(night(seconds__steps__awq=20.0, sizes_mb__onnx=120.0), accepted=True),
    ]
    assert not worse(now, accepted)
    assert worse(night(sizes_mb__onnx=130.0), accepted)  # and that one is the measure from now on


def test_a_damaged_history_costs_one_night(tmp_path, capsys):
    nights.keep(night(sizes_mb__onnx=1.0), tmp_path)
    (tmp_path / "night-2.json").write_text('{"at": "')
    (tmp_path / "night-3.json").write_text('{"figures": {"x": {"mean": "high"}}}')
    assert [one.figures for one in nights.read_nights(tmp_path)] == [
        {"sizes_mb.onnx": Figure(1.0, "MB")}
    ]
    assert capsys.readouterr().err.count("counts as absent") == 2


def test_a_figure_of_zero_is_no_measure():
    before = [night(sizes_mb__onnx=0.0)] * 3
    assert not nights.compare(night(sizes_mb__onnx=1.0), before)


def test_the_figures_of_a_real_summary_are_found():
    summary = {
        "seconds": {"labs": {"01": 50.0}, "steps": {"awq": 21.0, "heldout.jsonl": 0.0}},
        "peak_rss_mb": 3134.2,
        "sizes_mb": {"onnx_int4": {"mean": 106.8, "low": 106.8, "high": 106.8, "unit": "MB"}},
        "profile": {"name": "cpu"},
    }
    assert set(nights.figures_of(summary)) == {
        "seconds.steps.awq",
        "peak_rss_mb",
        "sizes_mb.onnx_int4",
    }


# ---- the page


def test_nothing_of_an_output_becomes_markup(tmp_path):
    known = parts.parts(tmp_path)
    hostile = "<script>alert(1)</script> [a](javascript:b) | `c` \x1b[31m **d**\n# e"
    bad = night(sizes_mb__onnx=1.0)
    bad = replace(bad, failures=[Failure("labs", "notebook", hostile, hostile)], commit=hostile)
    bad.seconds = {"labs": 3.0}
    paths = page.write_page(tmp_path, bad, [], known, compared=0)
    html = paths[1].read_text()
    assert "<script" not in html and 'javascript:b"' not in html and "\x1b" not in html
    assert html.count("&lt;script&gt;alert") == 3
    assert "<code>c</code>" not in html and "<strong>d</strong>" not in html


def test_what_may_fail_does_not_fail_the_night(tmp_path):
    known = parts.parts(tmp_path)
    canary = replace(night(), failures=[Failure("canary", "dependency", "", "newer")])
    assert page.verdict(canary, known) == "The night was good"
    assert "## May fail" in page.markdown(tmp_path, canary, [], known, compared=0)


def test_what_is_worse_comes_first(tmp_path):
    before = [night(eval_loss__onnx_int4_adapter=3.4, sizes_mb__onnx_int4=107.0)] * 3
    now = replace(
        night(eval_loss__onnx_int4_adapter=3.4, sizes_mb__onnx_int4=211.0), commit="a1" * 20 + "+"
    )
    rows = nights.compare(now, before)
    text = page.markdown(tmp_path, now, rows, parts.parts(tmp_path), compared=3)
    figures = text.partition("|---|---|---|---|\n")[2].splitlines()
    assert "onnx\\_int4 |" in figures[0] and "worse" in figures[0] and len(figures) > 1
    assert "commit a1a1a1a1a1a1\\+" in text and "a1a1a1a1a1a1a" not in text
    assert "Executed notebooks" not in text  # there are none


# ---- known weaknesses


def weakness(**more):
    return [{"name": "jinja2", "version": "3.1.2", "vulns": [{"id": "PYSEC-1"} | more]}]


def test_exceptions_have_a_date_and_a_use():
    today = datetime.date(2026, 12, 1)
    borne = audit.Excepted(
        "PYSEC-1", "jinja2", datetime.date(2026, 12, 31), "no templates of others"
    )
    assert audit.problems(weakness(), [], today)
    assert not audit.problems(weakness(), [borne], today)
    assert not audit.problems(weakness(id="GHSA-2", aliases=["PYSEC-1"]), [borne], today)
    [line] = audit.problems(weakness(), [replace(borne, until=datetime.date(2026, 11, 30))], today)
    assert "ran out on 2026-11-30" in line
    [line] = audit.problems([], [borne], today)
    assert "of no use any more" in line
    assert audit.problems(weakness(), [replace(borne, package="torch")], today)
    [line] = audit.problems([{"name": "x", "skip_reason": "not found"}], [], today)
    assert line == "1 of 1 packages could not be asked about, the first: not found"


def test_the_exceptions_of_the_clone_can_be_read(tmp_path):
    assert isinstance(audit.exceptions(), list)
    (tmp_path / "audit.json").write_text('[{"id": "x"}]')
    with pytest.raises(LabError, match="is no list of exceptions"):
        audit.exceptions(tmp_path / "audit.json")


def test_pip_audit_itself_finds_a_weakness_and_writes_what_is_in_a_lock(tmp_path):
    try:
        packages = extra_packages("audit")
    except LabError as error:
        pytest.skip(str(error))

    class Service(http.server.BaseHTTPRequestHandler):
        """OSV's interface, and one weakness."""

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = {
                "id": "PYSEC-2026-1",
                "affected": [
                    {
                        "package": {"name": "jinja2", "ecosystem": "PyPI"},
                        "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "3.1.4"}]}],
                    }
                ],
            }
            found = [known] * (asked["package"]["name"] == "jinja2")
            body = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lock = tmp_path / "some.txt"
    lock.write_text("jinja2==3.1.2  # why\nidna==3.20\n")
    try:
        address = f"http://127.0.0.1:{server.server_port}/v1/query"
        found = audit.audit(lock, packages, "--vulnerability-service", "osv", "--osv-url", address)
    finally:
        server.shutdown()
        server.server_close()
    assert audit.problems(found, [], datetime.date.today()) == [
        "jinja2 3.1.2: known weakness PYSEC-2026-1, mended in 3.1.4"
    ]
    audit.write_sbom(lock, packages, tmp_path / "sbom.json")
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert {(one["name"], one["version"]) for one in bill["components"]} == {
        ("jinja2", "3.1.2"),
        ("idna", "3.20"),
    }
