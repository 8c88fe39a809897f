"""What installs packages: uv with pip's settings, or pip where uv cannot be had or fails."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from labkit.errors import LabError
from labkit.progress import Progress

# Several times as fast as pip. In no lock: where it cannot be had, pip installs the lock alone.
UV = "uv==0.13.9"
WHEEL = "--only-binary=uv"  # to build it takes a compiler of Rust, and longer than pip saves
CPU_INDEX = ("--extra-index-url", "https://download.pytorch.org/whl/cpu")
OFFLINE = (
    "Without a network: run './lab setup --download DIR' on a machine that has one (same "
    "system and Python version), copy DIR here, and run './lab setup --wheels DIR'."
)
# uv's variable, its other name, pip's setting, and what uv expects between two values
SETTINGS = (
    ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "index-url", " "),
    ("UV_INDEX", "UV_EXTRA_INDEX_URL", "extra-index-url", " "),
    ("UV_FIND_LINKS", "", "find-links", ","),
    ("UV_INSECURE_HOST", "", "trusted-host", " "),
    ("UV_HTTP_TIMEOUT", "", "timeout", " "),
    ("UV_HTTP_TIMEOUT", "", "default-timeout", " "),
    ("UV_HTTP_RETRIES", "", "retries", " "),
    ("SSL_CERT_FILE", "", "cert", " "),
    ("SSL_CLIENT_CERT", "", "client-cert", " "),
    ("HTTP_PROXY", "http_proxy", "proxy", " "),
    ("HTTPS_PROXY", "https_proxy", "proxy", " "),
)


class Installer:
    """pip of the environment *python*; from :meth:`use_uv` on uv, which takes the same arguments,
    and pip again where uv fails.

    *wheels* is a folder that alone is asked. ``sources`` are the arguments that say where to look,
    one after the other.
    """

    def __init__(self, python: Path, wheels: Path | None, progress: Progress):
        self.python, self.progress = python, progress
        self.sources = [("--no-index", "--find-links", str(wheels))] if wheels else [(), CPU_INDEX]
        # both add the links of their configuration to those they are given
        unset = ("PIP_", "UV_") if wheels else ()
        self.env = {
            key: value
            for key, value in os.environ.items()
            if key != "PYTHONPATH" and not key.startswith(unset)
        } | {
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_USE_PEP517": "1",
            "PIP_USER": "0",
            "PYTHONUNBUFFERED": "1",
        }
        if wheels:
            self.env |= {"PIP_CONFIG_FILE": os.devnull, "UV_NO_CONFIG": "1", "UV_OFFLINE": "1"}
        self._use_pip()

    def use_uv(self, cache: Path) -> None:
        """Fetches uv, which does from now on what is asked.

        It has pip's settings, of which it reads none by itself; its own come first. What it
        fetches is unpacked in *cache*, and linked from there into the environment.
        """
        command = ["install", "--no-deps", WHEEL, *self.sources[0], UV]
        lines, code = self._call("fetch uv", command, PIP_RETRIES="1")
        if code:
            self._say_why_pip("uv cannot be had", lines)
            return
        settings = self._pip_settings()
        for name, other, setting, joint in SETTINGS:
            value = self.env.get(other) or joint.join(settings.get(setting, "").split())
            if value and not self.env.get(name):  # uv, too, takes an empty variable for none
                self.env[name] = value
        # as in pip: any index may have the version, not only the first one that knows the package
        self.env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
        self.env.setdefault("UV_SYSTEM_CERTS", "1")
        self.env.setdefault("UV_CACHE_DIR", str(cache))
        self.env["UV_PYTHON"] = str(self.python)
        self.name, self.command = "uv", [self.python, "-P", "-m", "uv", "pip"]
        if settings.get("no-index", "").lower() in ("1", "true", "t", "yes", "y", "on"):
            self.options = ["--no-index"]

    def run(self, what: str, arguments: list[str], **settings: str) -> None:
        """Does what *arguments* say, with *settings* in the environment, and waits for the end;
        *what* is shown meanwhile. LabError shows the end of the output where it failed.
        """
        lines, code = self._call(what, arguments, **settings)
        if code and self._falls_back(lines):
            lines, code = self._call(what, arguments, **settings)
        if code:
            raise LabError(
                f"pip failed (exit {code}). Run './lab setup' again when its complaint is "
                f"mended. {OFFLINE}{tail(lines)}"
            )

    def find_torch(self, pin: str) -> tuple[str, tuple[str, ...]]:
        """The version of torch, with its build, that would be installed for *pin*, and the source
        that has it: the first with a build for the CPU, else the first with any.

        Raises LabError where there is none.
        """
        found, lines = [], []
        for source in self.sources:
            version, lines = self._probe(pin, source)
            if "+cpu" in version:
                return version, source
            if version:
                found.append((version, source))
        if found:
            return found[0]
        if self._falls_back(lines):
            return self.find_torch(pin)
        raise LabError(
            f"pip finds no torch {pin} for Python {sys.version.split()[0]} on this system. "
            f"{OFFLINE}{tail(lines)}"
        )

    def _probe(self, pin: str, source: tuple[str, ...]) -> tuple[str, list[str]]:
        command = ["install", "--dry-run", "--no-deps", *source, f"torch=={pin}"]
        version = rf"({re.escape(pin)}(?:(?:\+|%2B)\w+)?)"
        lines = []
        with self._start(command, PIP_RETRIES="1", UV_HTTP_RETRIES="1") as process:
            for line in process.stdout:
                lines.append(public(line))
                # the wheel that pip is about to fetch, even in a dry run; or uv's result
                match = re.search(rf"\btorch-{version}-\S+\.whl|\+ torch=={version}$", line)
                if match:
                    process.send_signal(signal.SIGINT)
                    return (match[1] or match[2]).replace("%2B", "+"), lines
        return "", lines

    def _use_pip(self) -> None:
        self.name, self.command, self.options = "pip", [self.python, "-P", "-m", "pip"], []

    def _falls_back(self, lines: list[str]) -> bool:
        """Whether it was uv that failed, saying *lines*; from now on it is pip."""
        if self.name == "pip":
            return False
        self._say_why_pip("uv failed", lines)
        self._use_pip()
        return True

    def _say_why_pip(self, what: str, lines: list[str]) -> None:
        errors = [line for line in lines if line.lower().startswith("error")] or lines[-1:]
        why = errors[0].strip() if errors else "it said nothing"
        self.progress.line(f"{what}, so pip installs, which takes longer ({why})")

    def _start(self, arguments: list[str], **settings: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*self.command, *arguments, *self.options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self.env | settings,
        )

    def _call(self, what: str, arguments: list[str], **settings: str) -> tuple[list[str], int]:
        lines = [""]
        self.progress.show(what, detail=lambda: lines[-1].strip())
        with self._start(arguments, **settings) as process:
            lines.extend(map(public, process.stdout))
        return lines[1:], process.returncode

    def _pip_settings(self) -> dict[str, str]:
        listed = subprocess.run(
            [*self.command, "config", "list"], capture_output=True, text=True, env=self.env
        ).stdout.splitlines()
        found = {}
        for scope in ("global.", "install.", ":env:."):  # the later ones win
            for line in listed:
                if line.startswith(scope):
                    name, _, value = line.removeprefix(scope).partition("=")
                    # pip passes over what is empty
                    found[name] = ast.literal_eval(value) or found.get(name, "")
        return found


def public(line: str) -> str:
    """*line* without names and passwords in addresses: uv and pip hide those of whole addresses,
    and not of one that they cannot read.
    """
    return re.sub(r"://[^\s'\"`]*@", "://****@", line)


def tail(lines: list[str], count: int = 15) -> str:
    """The end of an output, as a paragraph below an error."""
    last = "".join(lines).rstrip().splitlines()[-count:]
    return "\nThe end of the output:\n" + "\n".join(last) if last else ""
