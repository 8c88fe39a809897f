"""The one error that labkit raises for something its user can mend."""


class LabError(RuntimeError):
    """Says in one paragraph what happened and what to do next."""

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: an attendee needs the paragraph, not forty frames of ours.
        return [f"LabError: {self}"]
