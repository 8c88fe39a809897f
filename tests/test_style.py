"""What ruff says of the whole repository, and addresses that must not be in it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.profiles import ROOT

# in pieces, so that this file does not contain them
REGISTRIES = [
    ".".join(parts)
    for parts in (("py" + "pi", "org"), ("python" + "hosted", "org"), ("ana" + "conda", "org"))
]
REGISTRIES += [
    ".".join(parts)
    for parts in (("np" + "mjs", "org"), ("jf" + "rog", "io"), ("pkgs.dev." + "azure", "com"))
]
TORCH = "download.py" + "torch.org"
INDEX = re.compile(r"https?://\S*/sim" + r"ple\b")


def texts() -> dict[str, str]:
    """Path -> text of every file that git tracks or would add; what is not UTF-8 (a picture) is
    left out.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    found = {}
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (content := path.read_bytes()):
            found[name] = content.decode(errors="replace")
    return found


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.fail(
            f"ruff {' '.join(command)} .\n{done.stdout[-6000:]}{done.stderr[-2000:]}",
            pytrace=False,
        )


def test_no_file_names_a_package_registry():
    found = []
    for name, text in texts().items():
        for number, line in enumerate(text.splitlines(), 1):
            if any(host in line for host in REGISTRIES) or INDEX.search(line):
                found.append(f"{name}, line {number}: {line.strip()[:160]}")
            # the one exception: pip's own index has no CPU build of torch
            if line.count(TORCH) != line.count(f"{TORCH}/whl/cpu"):
                found.append(f"{name}, line {number}: {line.strip()[:160]}")
    assert not found, "\n".join(found)


def test_no_lock_holds_an_address():
    locks = sorted((ROOT / "locks").iterdir())
    assert locks
    found = [
        f"{path.name}: {line}"
        for path in locks
        for line in path.read_text().splitlines()
        if "://" in line
    ]
    assert not found, "\n".join(found)


def pages() -> dict[Path, str]:
    """Path -> prose, without blocks of code: of README.md, docs/, data/README.md and the
    notebooks' markdown cells.
    """
    prose = {
        path: path.read_text()
        for path in [
            ROOT / "README.md",
            *(ROOT / "docs").glob("*.md"),
            ROOT / "data" / "README.md",
        ]
    }
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        prose[path] = "\n\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
        )
    return {
        path: re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        for path, text in prose.items()
    }


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page: "## A B, C" -> "a-b-c"."""
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    }


def test_the_pages_are_finished_and_their_links_lead_somewhere():
    prose, wrong = pages(), []
    for path, text in prose.items():
        assert "@@" not in text, path
        links = re.findall(
            r"\]\(([^)\s]+)[^)]*\)|^\[[^\]]+\]: *(\S+)|(?:href|src)=[\"']([^\"']+)",
            text,
            re.MULTILINE,
        )
        for link in map("".join, links):
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            lost = not target.exists() or (
                anchor and target.suffix == ".md" and anchor not in anchors(prose.get(target, ""))
            )
            if "://" not in link and lost:
                wrong.append(f"{path.relative_to(ROOT)}: {link}")
    assert not wrong, "\n".join(wrong)


def test_the_glossary_is_in_order_and_names_a_lab_for_each_word():
    text = (ROOT / "docs" / "GLOSSARY.md").read_text()
    entries = re.findall(r"^\*\*(.+?)\*\*(.*)", text, re.MULTILINE)
    words = [word.casefold() for word, _ in entries]
    assert words == sorted(set(words))
    assert set(re.findall(r"\[lab \d\](?!:)", text)) == set(
        re.findall(r"^(\[lab \d\]): ", text, re.MULTILINE)
    )
    assert not [
        word for word, rest in entries if not re.match(r" \(\[lab [1-6]\]\): [A-Z].*\.$", rest)
    ]
