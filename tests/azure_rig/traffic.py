"""Requests that reach the rig: what is remembered of them, and which are to go wrong."""

import re
import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Record:
    """One request that arrived: `sent` bytes of its body; `status` stays 0 without an answer."""

    method: str
    host: str
    path: str
    query: str = ""
    status: int = 0
    sent: int = 0
    fault: str = ""

    @property
    def target(self) -> str:
        return self.path + (f"?{self.query}" if self.query else "")


@dataclass
class Fault:
    """What is to go wrong with which requests; `fired` counts how often it did (Traffic.fault)."""

    action: str
    method: str | None
    host: str | None
    path: str | None
    times: int
    skip: int
    args: dict
    fired: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def meets(self, request: Record) -> bool:
        return (
            self.fired < self.times
            and self.method in (None, request.method)
            and self.host in (None, request.host)
            and (self.path is None or re.search(self.path, request.target) is not None)
        )


class Traffic:
    """Records and faults of a rig."""

    def __init__(self):
        self.requests: list[Record] = []  # what reached Azure's hosts, or the identity service
        self.refused: list[
            str
        ] = []  # hosts that a client wanted and the proxy did not let it reach
        self._faults, self._lock = [], threading.Lock()

    def fault(
        self, action: str, method=None, host=None, path=None, times: int = 1, skip: int = 0, **args
    ) -> Fault:
        """Breaks the next *times* requests that match, after the first *skip* of them.

        *path* is a regular expression, searched in path?query. The actions, and their *args*:
        drop            the connection is reset before anything is done
        drop_response   all is done, then the connection is reset instead of an answer
        status          the service's kind of error: code, error (its name), message, headers
        stall           nothing happens for `seconds`, then the connection is reset
        cut_body        the connection is reset after `after` bytes of the request's body, or
                        of the response's if it has none
        slow            bodies pass at `rate` bytes a second, both ways
        """
        needed = {"cut_body": "after", "slow": "rate"}.get(action)
        if action not in ("drop", "drop_response", "status", "stall", "cut_body", "slow") or (
            needed and needed not in args
        ):
            raise ValueError(f"no such fault: {action} {args}")
        fault = Fault(action, method, host, path, times, skip, args)
        with self._lock:
            self._faults.append(fault)
        return fault

    def record(self, request: Record, breakable: bool) -> Fault | None:
        """Notes a request that came in, and tells which fault it meets."""
        with self._lock:
            self.requests.append(request)
            for fault in self._faults if breakable else ():
                if fault.meets(request):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.fired += 1
                    request.fault = fault.action
                    return fault
        return None

    def release(self):
        """Ends all faults, and lets go of whoever waits in one."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.over.set()

    def summary(self) -> str:
        """What was asked for, on one page: equal requests are counted, signatures left out."""
        seen, sent = Counter(), Counter()
        for r in self.requests:
            path = re.sub("^.*/Microsoft.MachineLearningServices", "...", r.path)
            path = path if len(path) <= 90 else f"{path[:40]}...{path[-47:]}"
            line = f"{r.status or r.fault or 'broken'} {r.method} {r.host}{path}"
            seen[line] += 1
            sent[line] += r.sent
        lines = [
            f"{n:5} x {line}" + (f"  {sent[line]:,} bytes" if sent[line] else "")
            for line, n in seen.items()
        ]
        if len(lines) > 50:
            lines[40:] = [f"  and {len(lines) - 40} more kinds of requests"]
        foreign = [f"REFUSED: {host} ({n} x)" for host, n in Counter(self.refused).items()]
        return "\n".join([f"Azure rig: {len(self.requests)} requests", *lines, *foreign])
