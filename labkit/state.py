"""What the labs remember between two commands: small JSON files that nobody has to trust.

A file that was cut off, emptied by a power cut, edited or left by another program counts as
absent. That is said once, and costs the step that it told about.
"""

import functools
import json
import stat
import sys
from dataclasses import asdict
from pathlib import Path

from labkit.errors import LabError
from labkit.files import write_text

# for the dataclasses of such files, as __pydantic_config__
STRICT = {"extra": "forbid", "allow_inf_nan": False}
LARGEST = 16 * 2**20  # bytes; those that labkit writes have a few thousand
NAMED = 3  # files that are named; a run folder of another version has dozens
_told: set[Path] = set()


def read_state(path: Path, kind):
    """What the file *path* holds, as *kind*, a dataclass or another type that pydantic knows.

    None where there is no such file, or where it holds something else, which is printed.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise ValueError("it is no file, or a large one")
        return parse_state(path.read_bytes(), kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LabError) as error:  # pydantic's is a ValueError
        if path not in _told:
            _told.add(path)
            # a name or a value may hold anything, a terminal's escape sequences too
            said = f"{ascii(str(path))[1:-1]} is unreadable ({_why(error)}), and counts as absent"
            if len(_told) > NAMED:
                said = (
                    "further such files are not named. Where another version of the labs has left "
                    "them, this one makes anew what they told of"
                )
            if len(_told) <= NAMED + 1:
                print(said, file=sys.stderr)
        return None


def parse_state(text: bytes, kind):
    """What the JSON *text* holds, as *kind*; ValueError or LabError for anything else."""
    return _adapter(kind).validate_json(text)


def write_state(path: Path, value) -> None:
    """Puts the dataclass *value* in the place of the file *path*, for :func:`read_state`.

    Raises LabError, and leaves the file as it is, for a value that could not be read again.
    """
    try:
        text = json.dumps(asdict(value), indent=1)
        _adapter(type(value)).validate_json(text)
    except (TypeError, ValueError, LabError) as error:
        raise LabError(
            f"{path} was not written, because it could not be read again ({_why(error)}). Record "
            'figures as Estimates of plain numbers, Estimate(3.5, unit="ms"), and take texts for '
            "names."
        ) from None
    write_text(path, text)


def _why(error: Exception) -> str:
    why = error.errors()[0]["msg"] if hasattr(error, "errors") else str(error)
    return ascii(" ".join(why.split()))[1:-1][:120]


@functools.cache
def _adapter(kind):
    import pydantic  # here, because ./lab setup runs before it is installed

    return pydantic.TypeAdapter(kind)
