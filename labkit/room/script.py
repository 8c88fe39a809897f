"""The set-up script of a room's instances: setup.sh, with the values of an event above it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError

SECRET = re.compile(r"//[^/@]*@")  # a name or a token before the host


@dataclass(frozen=True)
class Setup:
    """What an instance is set up with; *bundle* and *lab* (where to catch up to) may be ""."""

    repository: str
    ref: str
    bundle: str = ""
    fingerprint: str = ""
    lab: str = ""

    def check(self) -> None:
        """Raises LabError for what an instance could not fetch, or should not read."""
        for address in (self.repository, *filter(None, [self.bundle])):
            if not address.startswith("https://") or SECRET.search(address):
                raise LabError(
                    f"'{SECRET.sub('//...@', address.partition('?')[0])}' is no address for the "
                    "instances: https, without a name or a token. They fetch from it without "
                    "anybody's sign-in, and all attendees can read it. Name another with "
                    f"--{'repository' if address == self.repository else 'bundle'}."
                )
        if not re.fullmatch(r"[\w./-]+", self.ref) or self.ref.startswith("-"):
            raise LabError(
                f"'{self.ref}' is no commit, tag or branch that the instances can check out. Name "
                "one with --ref, and push it first."
            )
        if bool(self.bundle) != bool(re.fullmatch("[0-9a-f]+", self.fingerprint)):
            raise LabError(
                "a bundle needs its fingerprint, and a fingerprint its bundle. './lab bundle' "
                "prints it: --bundle ADDRESS --fingerprint HEX."
            )
        if self.lab and not self.bundle:
            raise LabError("--catch-up NN takes from a bundle. Name it with --bundle.")

    def script(self) -> str:
        """The whole script, in bash."""
        values = {name: shlex.quote(value) for name, value in vars(self).items()}
        head = "".join(f"{name}={value}\n" for name, value in values.items())
        body = Path(__file__).with_name("setup.sh").read_text(encoding="utf-8")
        return f"#!/usr/bin/env bash\n{head}{body}"
