"""report.html: headline figures and all executed notebooks, on one page that needs no network."""

import base64
import os
import re
import sys
import time
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

from labkit import course
from labkit.errors import plain
from labkit.figures import Estimate
from labkit.files import write_text
from labkit.products import Products
from labkit.profiles import ROOT
from labkit.progress import clock
from labkit.state import read_state

WIDGET = "application/vnd.jupyter.widget-view+json"
PLAIN_PAGE = (
    # without the scripts that the page would load from elsewhere
    "{% extends 'lab/index.html.j2' %}{% block html_head_js %}"
    # whatever an output holds, no script runs, and nothing is loaded from elsewhere
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "font-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'\">"
    "{% endblock %}"
    "{% block jupyter_widgets %}{% endblock %}{% block html_head_js_mathjax %}{% endblock %}"
    "{% block html_head_js_mermaidjs %}{% endblock %}"
    "{% block html_head_css %}<style>{{ resources.style }}</style>{% endblock %}"
    "{% block body_header %}{{ super() }}<a class='to-contents' href='#contents'>Contents</a>"
    "{% endblock %}"
)
STYLE = (Path(__file__).parent / "report.css", Path(__file__).parent / "jupyterlab" / "custom.css")
HEADLINES = (
    # what is said -> before, after: (section, figure) each
    ("size", ("sizes_mb", "base_fp16"), ("sizes_mb", "onnx_int4")),
    ("held-out loss", ("eval_loss", "base"), ("eval_loss", "onnx_int4_adapter")),
    ("speed", ("tokens_per_s", "transformers_bf16"), ("tokens_per_s", "onnx_int4_adapter")),
    ("answers in our style", ("answers_style", "without"), ("answers_style", "with")),
)


def write_report(products: Products) -> Path | None:
    """Joins the executed notebooks into report.html in the run folder; None if none was."""
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    folder = products.folder
    paths = {n: folder / "notebooks" / course.notebook_path(n).name for n in course.LABS}
    read = {n: _cells(path) for n, path in paths.items() if path.exists()}
    labs = {n: cells for n, cells in read.items() if cells is not None}
    if not labs:
        return None
    title = f"On-device lab, profile {folder.name}"
    cells = [nbformat.v4.new_markdown_cell(_first_page(title, folder, labs))]
    for lab, its_cells in labs.items():
        cells += [nbformat.v4.new_markdown_cell(f'<a id="lab-{lab}"></a>\n\n---'), *its_cells]
    glossary = (ROOT / "docs" / "GLOSSARY.md").read_text(encoding="utf-8")
    cells.append(nbformat.v4.new_markdown_cell(f'<a id="glossary"></a>\n\n---\n\n{glossary}'))
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index}"  # two notebooks may share an id
        if cell.cell_type == "markdown":
            cell.source = _with_links(cell.source, folder, labs)
        elif cell.cell_type == "code":
            # a widget is nothing without its kernel; one with a page beside it is shown by that
            cell.outputs = [
                output
                for output in cell.outputs
                if WIDGET not in output.get("data", {}) or "text/html" in output.data
            ]
    language = {"name": "python", "pygments_lexer": "ipython3"}
    joined = nbformat.v4.new_notebook(
        cells=cells, metadata={"title": title, "language_info": language}
    )
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"report.html.j2": PLAIN_PAGE})], template_file="report.html.j2"
    )
    style = "\n".join(path.read_text(encoding="utf-8") for path in STYLE)
    html, _ = exporter.from_notebook_node(
        joined, {"metadata": {"path": str(ROOT / "notebooks")}, "style": style}
    )
    # the policy leaves to these two, wherever they stand: another page in the place of this one,
    # and connections that are opened ahead
    head, body = html.split("<body", 1)
    body = re.sub(r"<(?=(?:meta|link)[\s/>])", "&lt;", body, flags=re.IGNORECASE)
    page = f"{head}<body{body}".encode("utf-8", "replace")  # halves of characters
    write_text(folder / "report.html", page.decode())
    return folder / "report.html"


def _cells(path: Path) -> list | None:
    """The cells of the executed notebook *path*; None where it is none, which is printed."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # its libraries raise a dozen kinds
        why = plain(str(error).strip().split("\n")[0])[:120]
        print(f"{path} cannot be read ({why}), and is left out of the report", file=sys.stderr)
        return None
    return notebook.cells


def _first_page(title: str, folder: Path, labs: dict[str, list]) -> str:
    """Title, headline figures, contents; gives the steps of *labs* (number -> cells) anchors."""
    summary, rows = read_state(folder / "summary.json", dict) or {}, []
    for what, *ends in HEADLINES:
        try:
            before, after = (Estimate(**summary[section][name]) for section, name in ends)
        except KeyError:  # that lab has not run
            continue
        rows.append(f"| {what} | {escape(str(before))} | {escape(str(after))} |")
    header = "| | 16 bits, as it came | 4 bits, with its adapter |\n|---|---|---|"
    table = "\n".join([header, *rows]) if rows else ""
    seconds = summary.get("seconds", {}).get("labs", {})
    contents = [line for lab in labs for line in _contents(lab, labs[lab], seconds.get(lab, 0))]
    machine = summary.get("machine", {})
    processor = escape(str(machine.get("processor", "")))
    where = f"{processor}, {machine.get('threads', '')} threads"
    took = f"{time.strftime('%Y-%m-%d %H:%M')}, {where}, {clock(sum(seconds.values()))} in all"
    return "\n\n".join(
        [
            f"# {title}\n\n{took}",
            table,
            '<a id="contents"></a>\n\n## Contents',
            "\n".join([*contents, "- [Glossary](#glossary)"]),
        ]
    )


def _contents(lab: str, cells: list, seconds: float) -> list[str]:
    """Lines of a list: the title of *lab*, and below it its steps, which are given anchors."""
    name, lines = f"Lab {lab}", []
    for cell in cells:
        if cell.cell_type != "markdown":
            continue
        if title := re.match(r"# (.+)", cell.source):
            name = title[1]
        step = re.search(r"^## Step (\d+): ([^(\n]+)", cell.source, re.MULTILINE)
        if step:
            anchor = f"lab-{lab}-step-{step[1]}"
            start = step.start()
            cell.source = f'{cell.source[:start]}<a id="{anchor}"></a>\n\n{cell.source[start:]}'
            lines.append(f"    - [{step[1]}. {step[2].strip()}](#{anchor})")
    took = f", {clock(seconds)}" if seconds else ""
    return [f"- [{name}](#lab-{lab}){took}", *lines]


def _with_links(text: str, folder: Path, labs: Iterable[str]) -> str:
    """*text* of a notebook's cell whose links lead from the report in *folder*: to the *labs* and
    the glossary in it, else to the clone's files.
    """

    def moved(link: re.Match) -> str:
        start, target, end = link.groups()
        lab = re.search(r"(?:^|/)(\d\d)_\w+\.ipynb$", target)
        if lab and lab[1] in labs:
            return f"{start}#lab-{lab[1]}{end}"
        file, _, fragment = target.partition("#")
        # os.path: a picture's data may stand in the place of a name, too long for one
        if "://" in target or not file or not os.path.exists(ROOT / "notebooks" / file):
            return link[0]
        path = (ROOT / "notebooks" / file).resolve()
        if path.suffix == ".png" and path.parent == ROOT / "docs":
            data = base64.b64encode(path.read_bytes()).decode()
            return f"{start}data:image/png;base64,{data}{end}"
        if path == ROOT / "docs" / "GLOSSARY.md":
            return f"{start}#glossary{end}"
        fragment = f"#{fragment}" if fragment else ""
        if not folder.is_relative_to(ROOT):
            return f"{start}{path.as_uri()}{fragment}{end}"
        # from one place of the clone to another, so that the clone may be moved
        return f"{start}{quote(Path(os.path.relpath(path, folder)).as_posix())}{fragment}{end}"

    return re.sub(r"(\]\(|^\[[^\]\n]+\]: )([^)\s]+)(\)|$)", moved, text, flags=re.MULTILINE)
