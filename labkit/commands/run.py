"""./lab run: all labs in order, what is complete and unchanged skipped, and one report of them all."""

import argparse
import asyncio
import hashlib
import json
import os
import re
import signal
import time
from dataclasses import asdict
from pathlib import Path

from labkit import workspace
from labkit.commands import lab_number
from labkit.errors import LabError
from labkit.files import sha256
from labkit.profiles import resolve_profile, runs_folder, saved_choice
from labkit.progress import Progress, clock

WIDGET = "application/vnd.jupyter.widget-view+json"
PLAIN_PAGE = (
    # without the scripts that the page would load from elsewhere
    "{% extends 'lab/index.html.j2' %}{% block html_head_js %}{% endblock %}{% block jupyter_widgets %}{% endblock %}"
    "{% block html_head_js_mathjax %}{% endblock %}{% block html_head_js_mermaidjs %}{% endblock %}"
)


def main(arguments: list[str]) -> int:
    """Runs the labs; 1 where one failed."""
    parser = argparse.ArgumentParser(
        prog="./lab run", description="Runs all labs in order and writes a report."
    )
    parser.add_argument("--force", action="store_true", help="keep no earlier result")
    parser.add_argument(
        "--from",
        dest="first",
        metavar="NN",
        type=lab_number,
        help="keep no result of lab NN and those after it",
    )
    options = parser.parse_args(arguments)
    profile = resolve_profile()
    folder = runs_folder() / profile.name
    with workspace.folder_lock(folder):
        first = "01" if options.force else options.first
        if first:
            forget(folder, first)
        rows = _run_labs(folder, profile.name, first or "99")
        workspace.write_summary(folder)
        report = write_report(folder)
    return _close(folder, rows, report)


def forget(folder: Path, first: str) -> None:
    """Deletes the stamps of lab *first* and those after it: none of their results is kept."""
    for stamp in workspace.stamps(folder):
        if stamp["lab"] >= first:
            (folder / ".steps" / f"{stamp['name']}.json").unlink()


def executed_path(folder: Path, number: str) -> Path:
    """Where the executed notebook of lab *number* lies."""
    return folder / "notebooks" / workspace.notebook_path(number).name


def key(folder: Path, number: str) -> str:
    """SHA-256 over what decides the outcome of lab *number*, the results of the labs before it among them."""
    profile = resolve_profile()
    parts = [
        sha256(workspace.notebook_path(number)),
        *map(sha256, sorted((workspace.ROOT / "notebooks" / "workflows").glob("*.json"))),
        *(stamp["id"] for stamp in workspace.stamps(folder) if stamp["lab"] < number),
        workspace.labkit_digest(),
        json.dumps(asdict(profile), sort_keys=True).replace(str(workspace.ROOT), "ROOT"),
        sha256(Path(profile.data)),
        json.dumps(workspace.versions()),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def complete(folder: Path, number: str) -> bool:
    """Whether running lab *number* again would bring nothing new."""
    path = executed_path(folder, number)
    if not path.exists() or json.loads(path.read_text())["metadata"].get("labkit", {}).get(
        "key"
    ) != key(folder, number):
        return False
    names = {stamp["name"] for stamp in workspace.stamps(folder) if stamp["lab"] == number}
    names |= {product for product, maker in workspace.MAKER.items() if maker == number}
    if resolve_profile().device != "cuda":
        names -= workspace.GPU_ONLY
    return all(workspace.is_current(folder, name) for name in names)


def lab_seconds(folder: Path) -> dict[str, float]:
    """Lab -> seconds that its last complete run took."""
    path = folder / "lab_seconds.json"
    return json.loads(path.read_text()) if path.exists() else {}


def expected_seconds(folder: Path, number: str, first_cell: str) -> float | None:
    """Seconds that lab *number* took before, else what its first cell says, else None."""
    said = re.search(r"\*\*Time:\*\*.*run (?:about )?(\d+(?:\.\d+)?) (s|min)", first_cell)
    return lab_seconds(folder).get(number) or (
        said and float(said[1]) * (60 if said[2] == "min" else 1)
    )


def write_report(folder: Path) -> Path | None:
    """Joins the executed notebooks into report.html, which needs no network; None where there is none."""
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    numbers = [number for number in workspace.LABS if executed_path(folder, number).exists()]
    if not numbers:
        return None
    title = f"On-device lab, profile {folder.name}"
    contents = "\n".join(
        f"- [Lab {number}: {workspace.LABS[number][0]}](#lab-{number})" for number in numbers
    )
    cells = [
        nbformat.v4.new_markdown_cell(
            f"# {title}\n\n{time.strftime('%Y-%m-%d %H:%M')}\n\n{contents}"
        )
    ]
    for number in numbers:
        notebook = nbformat.read(executed_path(folder, number), as_version=4)
        cells += [
            nbformat.v4.new_markdown_cell(f'<a id="lab-{number}"></a>\n\n---'),
            *notebook.cells,
        ]
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index}"  # two notebooks may share an id
        if cell.cell_type == "code":
            # a widget is nothing without its kernel; one with a page beside it is shown by that
            cell.outputs = [
                o for o in cell.outputs if WIDGET not in o.get("data", {}) or "text/html" in o.data
            ]
    language = {"name": "python", "pygments_lexer": "ipython3"}
    joined = nbformat.v4.new_notebook(
        cells=cells, metadata={"title": title, "language_info": language}
    )
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"report.html.j2": PLAIN_PAGE})], template_file="report.html.j2"
    )
    exporter.embed_images = True
    html, _ = exporter.from_notebook_node(
        joined, {"metadata": {"path": str(workspace.ROOT / "notebooks")}}
    )
    _write(folder / "report.html", html)
    return folder / "report.html"


def _run_labs(folder: Path, profile: str, first: str) -> dict[str, tuple[str, float | None]]:
    """Lab -> (state, seconds); labs from *first* on are run in any case."""
    rows, executed = {}, False
    with Progress() as progress:
        for number, (name, needs) in workspace.LABS.items():
            if number < first and not executed and complete(folder, number):
                progress.line(f"{number} {name}: complete and unchanged")
                rows[number] = ("unchanged", lab_seconds(folder).get(number))
                continue
            bad = {
                earlier for earlier, (state, _) in rows.items() if state in ("FAILED", "not run")
            }
            missing = [
                p
                for p in needs
                if workspace.MAKER.get(p) in bad or not workspace.is_current(folder, p)
            ]
            if bad and missing:
                progress.line(f"{number} {name}: not run, it needs {', '.join(missing)}")
                rows[number] = ("not run", None)
                continue
            executed = True
            started = time.monotonic()
            done = _execute(folder, profile, number, progress)
            seconds = time.monotonic() - started
            rows[number] = ("complete" if done else "FAILED", seconds)
            if done:
                _write(
                    folder / "lab_seconds.json",
                    json.dumps(lab_seconds(folder) | {number: round(seconds, 1)}),
                )
                progress.line(f"{number} {name}: complete, {clock(seconds)}")
            if saved_choice().get("profile", profile) != profile:
                raise LabError(
                    f"lab 01 sets PROFILE = '{saved_choice()['profile']}', and this run was started for the profile {profile}. "
                    "Run './lab run' again, without LAB_PROFILE, or set PROFILE in lab 01 back to None."
                )
    return rows


def _execute(folder: Path, profile: str, number: str, progress: Progress) -> bool:
    """Runs one notebook and keeps it, with its outputs, in *folder*; False where a cell failed."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    source = workspace.notebook_path(number)
    notebook = nbformat.read(source, as_version=4)
    expected = expected_seconds(folder, number, notebook.cells[0].source if notebook.cells else "")
    lab = f"{number} {workspace.LABS[number][0]}"
    section, since, interrupted = "start", time.monotonic(), False

    def leave():
        if not progress.live and time.monotonic() - since >= 1:
            print(f"  {lab}: {section}, {clock(time.monotonic() - since)}", flush=True)

    def stop(task):
        nonlocal interrupted
        interrupted = True
        task.cancel()

    def enter(cell, cell_index):
        nonlocal section, since
        # nbclient's own handler ends the kernel and then itself, with an assertion
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop, asyncio.current_task())
        headings = (
            re.findall(r"^#+ +(.+)$", cell.source, re.M) if cell.cell_type == "markdown" else []
        )
        if headings:
            leave()
            section, since = headings[-1], time.monotonic()
        progress.show(f"{lab}: {section}", expected=expected, restart=False)

    target = executed_path(folder, number)
    failed = target.with_name(f"{target.stem}.failed.ipynb")
    progress.show(f"{lab}: start the kernel", expected=expected)
    client = NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=180,
        kernel_name="python3",
        resources={"metadata": {"path": str(source.parent)}},
        on_cell_start=enter,
        shutdown_kernel="immediate",
        coalesce_streams=True,  # else the report shows a streamed answer one token a line
        extra_arguments=[
            "--IPKernelApp.log_level=ERROR"
        ],  # it warns about its own transport, in the midst of the progress
    )
    env = os.environ | {
        "LAB_PROFILE": profile,
        "LAB_LOCK_HELD": str(folder),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    try:
        client.execute(env=env)
    except CellExecutionError as error:
        problem = error.evalue if error.ename == "LabError" else f"{error.ename}: {error.evalue}"
    except (DeadKernelError, asyncio.CancelledError):
        if interrupted:
            raise KeyboardInterrupt from None
        problem = (
            "the kernel died, most often because memory ran out. Close other programs, or see what "
            f"'./lab doctor' says of this machine. Logs are in {folder / 'logs'}."
        )
        logs = sorted(
            (folder / "logs").glob(f"{number}-*.log"), key=lambda path: path.stat().st_mtime
        )
        if logs:
            last = "\n".join(logs[-1].read_text(errors="replace").splitlines()[-12:])
            problem += f" The end of {logs[-1]}:\n{last}"
    else:
        leave()
        notebook.metadata["labkit"] = {"key": key(folder, number)}
        _write(target, nbformat.writes(notebook))
        failed.unlink(missing_ok=True)
        return True
    _write(failed, nbformat.writes(notebook))
    # the outputs of an earlier success would contradict what the folder now holds
    target.unlink(missing_ok=True)
    progress.line(
        f"{lab}: FAILED in '{section}'\nerror: {problem}\nThe notebook as far as it ran: {failed}"
    )
    return False


def _close(folder: Path, rows: dict[str, tuple[str, float | None]], report: Path | None) -> int:
    print(f"\n{'lab':14}{'state':12}{'seconds':>8}")
    for number, (state, seconds) in rows.items():
        print(
            f"{number + ' ' + workspace.LABS[number][0]:14}{state:12}{'' if seconds is None else f'{seconds:.1f}':>8}"
        )
    print()
    for what, path in {
        "report": report,
        "figures": folder / "summary.json",
        "model": folder / "onnx",
    }.items():
        if path and path.exists():
            print(f"{what:8}{path}")
    return int(any(state in ("FAILED", "not run") for state, _ in rows.values()))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    aside.replace(path)
