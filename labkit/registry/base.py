"""What every registry has: register once, verify, get back. The two kinds fill in the rest."""

import abc
import contextlib
import copy
import hashlib
import random
import shlex
import time
from pathlib import Path

from azure.ai.ml.exceptions import AssetPathException
from azure.core.exceptions import AzureError, ResourceExistsError

from labkit.capture import redirect_output
from labkit.errors import LabError
from labkit.files import listing
from labkit.folders import own, remove
from labkit.registry.azure_errors import azure_errors, command_options
from labkit.registry.manifest import MANIFEST, check_manifest, check_names

TRIES = 30  # a class may register at the same moment, and each needs a number of its own


class Registry(abc.ABC):
    """Versions are texts, and a version's content never changes.

    *client* has `.models.create_or_update(asset)`, as MLClient has it; what it prints goes to the
    folder *logs*. *workspace* is (subscription, resource group, name), None for a rehearsal.
    """

    def __init__(self, client, logs: Path, workspace: tuple[str, str, str] | None):
        self.client = client
        self.logs = logs
        self.workspace = workspace

    @abc.abstractmethod
    def contents(self, name: str) -> dict[str, str | None]:
        """Version -> its content_sha256, the oldest first; None where that is not known."""

    @abc.abstractmethod
    def vouched(self, name: str, version: str) -> str | None:
        """The content_sha256 among a version's properties: not in its files, and not to be changed
        in a workspace; None where another tool made the version without one.
        """

    @abc.abstractmethod
    def files(self, name: str, version: str) -> dict[str, int]:
        """Path -> size in bytes, of a version's files."""

    @abc.abstractmethod
    def costs(self, name: str) -> list[str]:
        """What costs money or space, one line each."""

    @abc.abstractmethod
    def remove(self, name: str, version: str) -> None:
        """Deletes the files of a version; LabError where there is no such version."""

    @abc.abstractmethod
    def stop(self, compute: str) -> None:
        """Stops a compute instance; LabError where it does not stop."""

    @abc.abstractmethod
    def url(self, name: str, version: str) -> str:
        """Where a person looks at a version; no two registries have the same."""

    @abc.abstractmethod
    def fetch(self, name: str, version: str, out: Path) -> None:
        """Writes a version's files to the folder *out*, which an earlier call may have begun."""

    def progress(self, mb: float):
        """A context that shows how an upload of *mb* MB goes on."""
        return contextlib.nullcontext()

    def errors(self, doing: str):
        """A context that turns what Azure's libraries raise into one LabError."""
        return azure_errors(doing, self.workspace)

    def shell_command(self, name: str, version: str, folder: Path) -> str:
        """The command that registers *folder* from a shell."""
        model = f"--name {name} --version {version} --path {shlex.quote(str(folder))}"
        return f"az ml model create {model} \\\n    {command_options(self.workspace)}"

    def register(self, asset, create) -> str:
        """Has *create*(asset) register the folder of *asset*, a Model; returns the version.

        Without a version it gets the next free one; its content_sha256 becomes a property. Content
        that is there already is not sent again. Prints what was done, and where it can be seen.
        Raises LabError for a version with other content, a folder that differs from its manifest
        or is of another model, a name that no registry takes, a refusal of the service, and where
        the names and sizes of what is stored are not those of the manifest.
        """
        name, folder = asset.name, Path(asset.path)
        check_names(name, *([] if asset.version is None else [asset.version]))
        manifest = check_manifest(folder)
        if manifest["name"] != name:
            raise LabError(
                f"{folder} was packaged as '{manifest['name']}', not as '{name}'. "
                "Package it again under this name."
            )
        sizes = listing(folder)
        mb = sum(sizes.values()) / 1e6
        with self.errors(f"registering {name}"):
            version, done = self._send(asset, create, manifest["content_sha256"], mb)
            stored = self.files(name, version)
        if wrong := {path for path, _ in stored.items() ^ sizes.items()} - {MANIFEST}:
            raise LabError(
                f"version {version} of {name} is not what was sent: {min(wrong)} differs. "
                "Remove that version (lab 06, 'Clean up') and register again."
            )
        print(f"{name} version {version}: {mb:.1f} MB {done}\n{self.url(name, version)}")
        return version

    def download(self, name: str, version: str, out: Path) -> Path:
        """Writes a version to *out*, a new or empty folder, and returns its path.

        It appears when it is whole, and its content is computed anew and is the one that was
        registered; an interrupted call goes on where it was. Prints where nothing but the
        version's own manifest says what was registered. Raises LabError where *out* is not empty,
        or a file differs.
        """
        out = Path(out).resolve()  # a link is followed, and ".." gets a name
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise LabError(f"{out} is not empty. Delete it, or name a new folder.")
        with self.errors(f"downloading {name} {version}"):
            content, vouched = self.content(name, version), self.vouched(name, version)
            # of another registry or version nothing must be taken for a part of this one
            origin = f"{self.url(name, version)} {content}"
            key = hashlib.sha256(origin.encode()).hexdigest()[:12]
            aside = out.with_name(f".{out.name}.{key}.download")
            own(aside)
            self.fetch(name, version, aside / "model")
        try:
            check_manifest(aside / "model", vouched, name)
        except LabError as error:
            remove(aside, inside=aside)  # the next call shall not go on from there
            raise altered(name, version, error) from error
        if not vouched:
            print(
                f"version {version} of {name} has no content_sha256 among its properties (another "
                "tool made it): only the manifest in its own files vouches for them"
            )
        (aside / "model").rename(out)
        remove(aside, inside=aside)
        return out

    def content(self, name: str, version: str) -> str | None:
        """What :meth:`contents` says of a version; LabError where there is none."""
        contents = self.contents(name)
        if version not in contents:
            there = ", ".join(contents) or "none"
            raise LabError(f"the registry has no version {version} of {name}; it has: {there}.")
        return contents[version]

    def _send(self, asset, create, content: str, mb: float) -> tuple[str, str]:
        """(the version that has *content*, what was done for that)."""
        refused = {}
        for attempt in range(1, TRIES + 1):
            # asked anew each time: the answer to an earlier try may have been lost
            there = self.contents(asset.name) | refused
            same = [version for version in there if there[version] == content]
            if same and asset.version in (None, *same):
                return asset.version or same[-1], "were there already"
            sent = copy.copy(asset)  # the SDK changes it
            sent.version = asset.version or str(max([0, *map(number, there)]) + 1)
            sent.properties = {**asset.properties, "content_sha256": content}
            if sent.version in there:
                raise taken(asset.name, asset.version)
            try:
                with self.progress(mb), redirect_output(self.logs / f"06-upload-{attempt}.log"):
                    create(sent)
                return sent.version, "registered"
            except AzureError as error:
                race = isinstance(error, AssetPathException) or "Asset paths cannot" in str(error)
                # what a killed upload left behind makes the SDK's first try fail
                if attempt == TRIES or not (race or isinstance(error, ResourceExistsError)):
                    raise
                refused |= {sent.version: None} if race else {}
                print(f"try {attempt} has failed ({type(error).__name__}): once more")
                time.sleep(random.uniform(0.1, 0.5))


def taken(name: str, version: str) -> LabError:
    """The error for a version that has other content."""
    return LabError(
        f"version {version} of {name} exists with other content; nothing was sent. "
        "Leave the version out, and the next free one is taken."
    )


def altered(name: str, version: str, error: LabError) -> LabError:
    """The error for a version whose files are not those that were registered."""
    return LabError(
        f"version {version} of {name} was altered in the registry ({error}). Remove that "
        "version (lab 06, 'Clean up') and register the model again."
    )


def number(version: str) -> int:
    """A version as a number, 0 where it is another text."""
    return int(version) if version.isascii() and version.isdecimal() else 0
