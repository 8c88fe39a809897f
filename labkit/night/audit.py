"""Known weaknesses of what the locks pin, and a list of what is in them.

    python -m labkit.night.audit DIR [arguments for pip-audit]

Asks pip-audit about each lock, and writes sbom-LOCK.json (CycloneDX) for each into DIR. Exit
status 1 where a weakness is known that no exception of locks/audit.json names, where an exception
has run out, or where a package could not be asked about: pip-audit itself says "no known
vulnerabilities" of those.
"""

import datetime
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError, plain
from labkit.extras import extra_packages
from labkit.profiles import ROOT
from labkit.state import STRICT, parse_state

EXCEPTIONS = ROOT / "locks" / "audit.json"


@dataclass(frozen=True)
class Excepted:
    """A weakness *id* (or its alias) of a *package* that is known and borne, *until* a date as
    YYYY-MM-DD, and *why*.
    """

    __pydantic_config__ = STRICT

    id: str
    package: str
    until: datetime.date
    why: str


def exceptions(path: Path = EXCEPTIONS) -> list[Excepted]:
    """What locks/audit.json holds; LabError where it holds something else."""
    try:
        return parse_state(path.read_bytes(), list[Excepted])
    except (OSError, ValueError) as error:
        raise LabError(
            f"{path} is no list of exceptions, each with id, package, until and why ({error})."
        ) from None


def problems(found: list[dict], excepted: list[Excepted], today: datetime.date) -> list[str]:
    """A line for each of what pip-audit *found* (its "dependencies") that must be looked at."""
    lines, used = [], set()
    if unknown := [package for package in found if "skip_reason" in package]:
        lines.append(
            f"{len(unknown)} of {len(found)} packages could not be asked about, the first: "
            f"{unknown[0]['skip_reason']}"
        )
    for package in found:
        name = package["name"]
        for weakness in package.get("vulns", ()):
            ids = {weakness["id"], *weakness.get("aliases", ())}
            named = [one for one in excepted if one.package == name and one.id in ids]
            used.update(named)
            if any(one.until >= today for one in named):
                continue
            ran_out = f", its exception ran out on {named[0].until}" if named else ""
            mended = ", ".join(weakness.get("fix_versions", ())) or "no version"
            lines.append(
                f"{name} {package['version']}: known weakness {weakness['id']}, mended in "
                f"{mended}{ran_out}"
            )
    return lines + [
        f"{one.package}: the exception {one.id} is of no use any more: take it out of "
        f"{EXCEPTIONS.name}"
        for one in excepted
        if one not in used
    ]


def audit(lock: Path, packages: Path, *arguments: str) -> list[dict]:
    """pip-audit's "dependencies" of a *lock*; *packages* is the folder that pip-audit lies in.

    Raises LabError with the end of what it says where it fails.
    """
    done = _call(
        packages,
        *("pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"),
        *("--format", "json", "--progress-spinner", "off", *arguments),
    )
    try:  # its status is 1 where it has found something, too
        return json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        raise LabError(
            f"pip-audit has failed on {lock.name} (exit status {done.returncode}):\n"
            f"{done.stderr[-1500:]}"
        ) from None


def write_sbom(lock: Path, packages: Path, out: Path) -> None:
    """Writes what a *lock* pins to *out*, as a CycloneDX bill of materials in JSON."""
    done = _call(
        packages,
        *("cyclonedx_py", "requirements", str(lock), "--output-reproducible"),
        *("--output-format", "JSON", "--output-file", str(out)),
    )
    if done.returncode:
        raise LabError(f"no bill of materials of {lock.name}:\n{done.stderr[-1500:]}")


def _call(packages: Path, module: str, *arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(packages), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def main(out: Path, *arguments: str) -> int:
    """Audits every lock; the exit status."""
    packages = extra_packages("audit")
    found: dict[tuple[str, str], dict] = {}
    for lock in sorted((ROOT / "locks").glob("*.txt")):
        for package in audit(lock, packages, *arguments):
            found[package["name"], package.get("version", "")] = package
        write_sbom(lock, packages, out / f"sbom-{lock.stem}.json")
    lines = problems(list(found.values()), exceptions(), datetime.date.today())
    for line in lines:
        print(f"error: {plain(line)}")
    print(f"{len(found)} packages of all locks, {len(lines)} to be looked at")
    return int(bool(lines))


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
    except LabError as error:
        sys.exit(f"error: {error}")
