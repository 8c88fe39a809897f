"""Clients that ask a server with OpenAI's interface in the same moment, and what each gets."""

import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple


class Heard(NamedTuple):
    """What one client got: the *text*, its *tokens*, milliseconds to the first piece, tokens per
    second after it, and what was *noted* when it had all.
    """

    text: str
    tokens: int
    first_ms: float
    speed: float
    noted: object


def ask_together(
    address: str, bodies: Sequence[dict], note: Callable[[], object] = lambda: None
) -> tuple[list[Heard], float]:
    """(What each client got, tokens per second of all of them), with one client a body.

    Each body is a request for chat/completions at *address*; answers are streamed. Raises
    RuntimeError with what the server says where an answer ends in an error.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # past any proxy

    def client(body: dict) -> Heard:
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        request = urllib.request.Request(
            f"{address}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        begun, told, times, tokens = time.perf_counter(), "", [], 0
        with direct.open(request, timeout=300) as response:
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise RuntimeError(f"the server says: {event['error']}")
                if not event["choices"]:
                    tokens = event["usage"]["completion_tokens"]
                elif piece := event["choices"][0]["delta"].get("content"):
                    told, times = told + piece, [*times, time.perf_counter()]
        ended = time.perf_counter()
        first, last = (times[0], times[-1]) if times else (ended, ended)
        speed = (tokens - 1) / (last - first) if last > first else 0.0  # of one piece: none
        return Heard(told, tokens, 1000 * (first - begun), speed, note())

    with ThreadPoolExecutor(len(bodies)) as clients:
        begun = time.perf_counter()
        heard = list(clients.map(client, bodies))
    return heard, sum(one.tokens for one in heard) / (time.perf_counter() - begun)
