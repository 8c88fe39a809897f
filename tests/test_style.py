"""What ruff says of the whole repository, and addresses that must not be in it."""

import re
import subprocess
import sys

import pytest

from labkit.profiles import ROOT

# in pieces, so that this file does not contain them
REGISTRIES = [".".join(parts) for parts in (("py" + "pi", "org"), ("python" + "hosted", "org"), ("ana" + "conda", "org"))]
REGISTRIES += [".".join(parts) for parts in (("np" + "mjs", "org"), ("jf" + "rog", "io"), ("pkgs.dev." + "azure", "com"))]
TORCH = "download.py" + "torch.org"
INDEX = re.compile(r"https?://\S*/sim" + r"ple\b")


def texts() -> dict[str, str]:
    """Path -> text of every file that git tracks or would add; what is not UTF-8 (a picture) is left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
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
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"ruff {' '.join(command)} .\n{done.stdout[-6000:]}{done.stderr[-2000:]}", pytrace=False)


def test_no_file_names_a_package_registry():
    found = []
    for name, text in texts().items():
        for number, line in enumerate(text.splitlines(), 1):
            if any(host in line for host in REGISTRIES) or INDEX.search(line):
                found.append(f"{name}, line {number}: {line.strip()[:160]}")
            # the one exception: pip's own index has no CPU build of torch
            if line.count(TORCH) != line.count(f"{TORCH}/whl/cpu") and not re.search(rf'"{TORCH}" in found', line):
                found.append(f"{name}, line {number}: {line.strip()[:160]}")
    assert not found, "\n".join(found)


def test_no_lock_holds_an_address():
    locks = sorted((ROOT / "locks").iterdir())
    assert locks
    found = [f"{path.name}: {line}" for path in locks for line in path.read_text().splitlines() if "://" in line]
    assert not found, "\n".join(found)


def test_the_docs_are_finished_and_their_links_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "data" / "README.md"]:
        text = path.read_text()
        assert "@@" not in text, path
        links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
        assert not [link for link in links if link and not (path.parent / link).exists()], path
