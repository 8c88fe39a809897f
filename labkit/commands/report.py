"""report.html: the headline figures and all executed notebooks, on one page that needs no network."""

import re
import time
from pathlib import Path

from labkit import course
from labkit.figures import Estimate, number
from labkit.files import read_json, write_text
from labkit.products import Products
from labkit.profiles import ROOT

WIDGET = "application/vnd.jupyter.widget-view+json"
PLAIN_PAGE = (
    # without the scripts that the page would load from elsewhere
    "{% extends 'lab/index.html.j2' %}{% block html_head_js %}{% endblock %}"
    "{% block jupyter_widgets %}{% endblock %}{% block html_head_js_mathjax %}{% endblock %}"
    "{% block html_head_js_mermaidjs %}{% endblock %}"
)
HEADLINES = (
    # what is said -> before, after: (section, figure) each
    ("size", ("sizes_mb", "base_fp16"), ("sizes_mb", "onnx_int4")),
    ("held-out loss", ("eval_loss", "base"), ("eval_loss", "onnx_int4_adapter")),
    ("speed", ("tokens_per_s", "transformers_bf16"), ("tokens_per_s", "onnx_int4_adapter")),
    ("answers in our style", ("answers_style", "without"), ("answers_style", "with")),
)


def write_report(products: Products) -> Path | None:
    """Joins the executed notebooks into report.html in the run folder; None where there is none."""
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    folder = products.folder
    paths = {n: folder / "notebooks" / course.notebook_path(n).name for n in course.LABS}
    paths = {n: path for n, path in paths.items() if path.exists()}
    if not paths:
        return None
    title = f"On-device lab, profile {folder.name}"
    cells = [nbformat.v4.new_markdown_cell(_first_page(title, folder, list(paths)))]
    for lab, path in paths.items():
        notebook = nbformat.read(path, as_version=4)
        cells += [nbformat.v4.new_markdown_cell(f'<a id="lab-{lab}"></a>\n\n---'), *notebook.cells]
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index}"  # two notebooks may share an id
        if cell.cell_type == "markdown":
            cell.source = _with_links(cell.source, folder)
        else:
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
    exporter.embed_images = True
    html, _ = exporter.from_notebook_node(joined, {"metadata": {"path": str(ROOT / "notebooks")}})
    write_text(folder / "report.html", html)
    return folder / "report.html"


def _first_page(title: str, folder: Path, labs: list[str]) -> str:
    """Title, headline figures, contents."""
    summary, rows = read_json(folder / "summary.json"), []
    for what, *ends in HEADLINES:
        try:
            before, after = (Estimate(**summary[section][name]) for section, name in ends)
        except KeyError:  # that lab has not run
            continue
        rows.append(f"| {what} | {before} | {after} |")
    table = "\n".join(["| | before | after |", "|---|---|---|", *rows]) if rows else ""
    contents = "\n".join(f"- [Lab {lab}: {course.LABS[lab].name}](#lab-{lab})" for lab in labs)
    machine = summary.get("machine", {})
    where = f"{machine.get('processor', '')}, {machine.get('threads', '')} threads"
    minutes = sum(summary.get("seconds", {}).get("labs", {}).values()) / 60
    took = f"{time.strftime('%Y-%m-%d %H:%M')}, {where}, {number(minutes)} minutes in all"
    return f"# {title}\n\n{took}\n\n{table}\n\n{contents}"


def _with_links(text: str, folder: Path) -> str:
    """*text* of a notebook's cell whose links lead from the report: to its own labs, else to the
    clone's files.
    """

    def moved(link: re.Match) -> str:
        target = link[1]
        if lab := re.fullmatch(r"(\d\d)_\w+\.ipynb", target):
            return f"](#lab-{lab[1]})"
        path = (ROOT / "notebooks" / target.partition("#")[0]).resolve()
        if "://" in target or target.startswith("#") or not path.exists():
            return link[0]
        if path.suffix == ".png":  # is embedded
            return link[0]
        return f"]({path.as_uri()})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, text)
