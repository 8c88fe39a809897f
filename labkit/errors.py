"""The one error that labkit raises for something its user can mend, and how a full disk is told from other errors."""

import errno


class LabError(RuntimeError):
    """Says in one paragraph what happened and what to do next."""

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: an attendee needs the paragraph, not forty frames of ours.
        return [f"LabError: {self}"]


def disk_is_full(error: Exception) -> bool:
    """Whether *error* says that no space is left; shutil.copytree hides that in the text of an error without a number."""
    return isinstance(error, OSError) and (error.errno in (errno.ENOSPC, errno.EDQUOT) or f"[Errno {errno.ENOSPC}]" in str(error))
