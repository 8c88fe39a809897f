"""The model of the labs behind OpenAI's interface: one base in memory, an adapter for each name.

:mod:`engine` is the model and its thread, :mod:`http` the interface.
"""

from tornado.web import HTTPError


class RefusedError(HTTPError):
    """A request that is not answered: its HTTP *status*, and what the client is told of it."""

    def __init__(self, status: int, message: str, *, param: str = "", code: str = ""):
        super().__init__(status)
        self.message, self.param, self.code = message, param or None, code or None
