"""The page of a night, read in a minute on a phone: Markdown, and from that HTML."""

import html
import re
from pathlib import Path

from labkit.errors import plain
from labkit.files import write_text
from labkit.night.nights import Night, Row
from labkit.night.parts import Part
from labkit.progress import clock

MEANS = {
    # cause -> where to look first
    "disk": "The disk was full, or took nothing. Free space on the runner; nothing else is wrong.",
    "memory": "A process was killed, most often for want of memory: compare peak memory below.",
    "network": "A server was not reached. Run the night again before you look any further.",
    "dependency": "A package is missing, or another one than the lock's.",
    "notebook": "A cell failed by itself: the executed notebook has the traceback.",
    "test": "A test failed: its log has the traceback.",
    "command": "A command failed: its log has the rest.",
    "time": "A part ran past its time: its log says how far it came.",
    "regression": "It runs, and is worse than before: see the figures.",
}
HEADLINES = ("sizes_mb.onnx_int4", "eval_loss.onnx_int4_adapter", "tokens_per_s.onnx_int4_adapter")
STYLE = """
body { font: 17px/1.45 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 1.6rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; padding: .3rem .5rem .3rem 0; border-bottom: 1px solid #ccc;
         vertical-align: top }
td:not(:first-child) { white-space: nowrap } td:first-child, p, li { overflow-wrap: anywhere }
td:last-child { white-space: normal } .anchor-link { display: none }
a { color: #0b57a4 }
@media (max-width: 34rem) {  /* a phone, upright: the name of a figure is read, too */
  td:not(:first-child) { white-space: normal } td:first-child { min-width: 8.5rem } }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #161616 } a { color: #8ec5ff } th, td { border-color: #444 } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"


def write_page(
    folder: Path, night: Night, rows: list[Row], parts: dict[str, Part], *, compared: int
) -> tuple[Path, Path]:
    """Writes night.md and night.html into *folder*; *compared* is how many nights there are."""
    text = markdown(folder, night, rows, parts, compared=compared)
    from nbconvert.filters import markdown2html

    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(verdict(night, parts))}</title><style>{STYLE}</style></head><body>"
    )
    paths = folder / "night.md", folder / "night.html"
    write_text(paths[0], text)
    write_text(paths[1], f"{head}{markdown2html(text)}</body></html>\n")
    return paths


def verdict(night: Night, parts: dict[str, Part]) -> str:
    """The night in one line: its causes, the most frequent ones first."""
    causes = [one.cause for one in night.failures if decides(one.part, parts)]
    if not causes:
        return "The night was good"
    counted = sorted(set(causes), key=lambda cause: (-causes.count(cause), causes.index(cause)))
    named = ", ".join(f"{cause} ({causes.count(cause)})" for cause in counted)
    return f"The night failed: {named}"


def decides(part: str, parts: dict[str, Part]) -> bool:
    """Whether the night has failed where *part* has."""
    return part not in parts or parts[part].decides


def markdown(
    folder: Path, night: Night, rows: list[Row], parts: dict[str, Part], *, compared: int
) -> str:
    """The page as Markdown, with links to what lies in *folder*."""
    commit = re.sub("^([0-9a-f]{12})[0-9a-f]+", r"\1", night.commit)
    lines = [
        f"# {safe(verdict(night, parts))}",
        "",
        safe(f"{night.at} UTC, commit {commit}"),
    ]
    lines += ["", safe(night.machine), ""]
    for title, of in (("What failed", True), ("May fail", False)):
        failures = [one for one in night.failures if decides(one.part, parts) == of]
        if failures:
            lines += [f"## {title}", ""]
        for cause in dict.fromkeys(one.cause for one in failures):
            lines += [f"**{safe(cause)}**: {MEANS.get(cause, '')}", ""]
            same = [one for one in failures if one.cause == cause]
            lines += [f"- {_failure(one)}" for one in same[:10]]
            lines += [f"- and {len(same) - 10} more"] * (len(same) > 10) + [""]
    lines += ["## Figures", "", *_figures(night, rows, compared), "", "## Parts", ""]
    lines += ["| part | ended | took | log |", "|---|---|---|---|"]
    failed = {one.part for one in night.failures}
    for name, part in parts.items():
        if name not in night.seconds:  # it was not asked for
            continue
        how = "well" if name not in failed else "failed" if part.decides else "failed, and may"
        log = _link(folder, f"logs/{name}.log", name)
        lines.append(f"| {safe(part.what)} | {how} | {clock(night.seconds[name])} | {log} |")
    links = [
        _link(folder, path.relative_to(folder).as_posix(), path.name)
        for pattern in ("runs/*/report.html", "runs/*/notebooks/*.ipynb", "sbom-*.json")
        for path in sorted(folder.glob(pattern))
    ]
    if links:
        lines += ["", "## Executed notebooks, and what is in the packages", ""]
    return "\n".join([*lines, *(f"- {link}" for link in links if link), ""])


def _failure(one) -> str:
    where = f"{safe(one.where)}: " if one.where else ""
    return f"{safe(one.part)}: {where}{safe(one.what)}"


def _figures(night: Night, rows: list[Row], compared: int) -> list[str]:
    if not rows:
        if not night.figures:
            return ["None: the labs have not come that far."]
        few = f"Not compared: {compared} good nights are known on this machine, and 3 are needed."
        figures = {name: night.figures[name] for name in HEADLINES if name in night.figures}
        return [few, ""] + [
            f"- {safe(name)}: {figure.mean:,.4g} {safe(figure.unit)}"
            for name, figure in figures.items()
        ]
    told = [row for row in rows if row.verdict != "as before" or row.name in HEADLINES]
    lines = ["| figure | now | before | change |", "|---|---|---|---|"]
    lines += [
        f"| {safe(row.name)} | {row.now:,.4g} {safe(row.unit)} | {row.median:,.4g} "
        f"| {row.change:+.1%}, {row.verdict}; noise {row.band:.0%} |"
        for row in sorted(
            [*(r for r in rows if r.name == "all steps together"), *told],
            key=lambda row: row.verdict != "worse",
        )
    ]
    same = len(rows) - len(told)
    before = f"Before: the median of the last good nights. As before: {same} more."
    return [*dict.fromkeys(lines), "", before]


def _link(folder: Path, name: str, text: str) -> str:
    return f"[{safe(text)}]({name.replace(' ', '%20')})" if (folder / name).exists() else ""


def safe(text: str) -> str:
    """*text* as Markdown that shows just it, on one line."""
    line = html.escape(plain(" ".join(str(text).split())), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", line)
