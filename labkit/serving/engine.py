"""One model in memory that writes several answers at once, with an adapter for each."""

import asyncio
import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from labkit.answers import room_for_answer
from labkit.errors import LabError
from labkit.serving import RefusedError
from labkit.tokenizer import load_tokenizer

BASE = "base"  # the name of the model without an adapter


@dataclass
class Question:
    """What is asked, and what is noted while the answer is written.

    *prompt* is what the model reads, chat template included; *options* are GenAI's for its search.
    """

    model: str
    prompt: str
    limit: int | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    schema: str = ""
    stop: tuple[str, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "length"
    left: bool = False  # whether nobody waits for the answer any more
    events: asyncio.Queue = field(default_factory=asyncio.Queue)

    def leave(self) -> None:
        """Ends the answer: it is written no further, and its place is free."""
        self.left = True
        self.events.put_nowait(None)


class Engine:
    """The model in *folder* with its *adapters* (name -> file), ready to answer.

    At most *active* answers are written at a time, a token of each in turn, and at most *places*
    questions are inside. One thread owns all that is GenAI's: its adapters bear no second one. No
    answers are written in batches: those of a batch begin together, and have one adapter.
    Raises LabError where a file is missing or damaged, or an adapter is that of another model.
    """

    def __init__(
        self, folder: Path, adapters: Mapping[str, Path], *, active: int = 10, places: int = 40
    ):
        import onnxruntime_genai as og

        self.names, self.active, self.places, self.inside = [BASE, *adapters], active, places, 0
        self.tokenizer = load_tokenizer(folder)
        try:
            self._model = og.Model(str(folder))
            self._tokenizer = og.Tokenizer(self._model)
            self._adapters = og.Adapters(self._model)
            for name, path in adapters.items():
                self._adapters.load(str(path), name)
            search = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
            self.max_length = int(search["search"]["max_length"])
            self._stops = set(map(int, self._tokenizer.eos_token_ids))
            for name in self.names:  # reads a token with each, and writes one
                self._start(name, [min(self._stops)], 1, {}).generate_next_token()
        except Exception as error:  # GenAI's own are of no common kind
            why = " ".join(str(error).split())[-200:]
            raise LabError(
                f"ONNX Runtime GenAI cannot load the model in {folder} with its adapters "
                f"{', '.join(adapters)}: a file is missing or damaged, or an adapter is that of "
                f"another model (...{why}). Make them again: run lab 04."
            ) from error
        self._folder, self._trials = folder, ThreadPoolExecutor(1)
        self._closing = False
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; answers that are being written stay unfinished."""
        self._trials.shutdown(wait=False, cancel_futures=True)
        self._closing = True
        self._waiting.put(None)
        self._thread.join()

    async def answer(self, question: Question) -> AsyncIterator[str]:
        """Yields "" when the prompt has been read, then pieces of the answer.

        Raises RefusedError where there is no place, and for what cannot be answered.
        """
        if self.inside >= self.places:
            raise RefusedError(
                429,
                f"All {self.places} places are taken. Ask again in a moment.",
                code="rate_limit_exceeded",
            )
        self.inside += 1
        loop = asyncio.get_running_loop()
        try:
            if question.schema:
                trial = self._folder, question.schema
                if why := await loop.run_in_executor(self._trials, fault_of_schema, *trial):
                    raise _refused_schema(why)
            self._waiting.put((question, loop))
            while (event := await question.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            question.left = True
            self.inside -= 1

    def _work(self) -> None:
        """Takes one question in, writes one token of each answer, and so on."""
        writing: list[tuple[Question, asyncio.AbstractEventLoop, Iterator[str]]] = []
        while not self._closing:
            if len(writing) < self.active and (new := self._next(wait=not writing)):
                writing.append((*new, self._write(new[0])))
            for one in list(writing):
                question, loop, pieces = one
                try:
                    event = None if question.left else next(pieces, None)
                except Exception as error:  # GenAI's own are of no common kind
                    event = error.with_traceback(None)  # which would keep the generator
                    if question.schema and not isinstance(error, RefusedError):
                        event = _refused_schema(str(error))  # found in no trial of a few tokens
                loop.call_soon_threadsafe(question.events.put_nowait, event)
                if not isinstance(event, str):
                    writing.remove(one)
                    pieces.close()

    def _next(self, *, wait: bool) -> tuple[Question, asyncio.AbstractEventLoop] | None:
        """The next question that somebody still waits for; None where there is none."""
        with contextlib.suppress(queue.Empty):
            while new := self._waiting.get(block=wait):
                if not new[0].left:
                    return new
        return None

    def _write(self, question: Question) -> Iterator[str]:
        """Yields "", then once a token what may be shown of the answer, which may be nothing."""
        ids = self._tokenizer.encode(question.prompt)
        try:
            limit = room_for_answer(ids, self.max_length, question.limit)
        except LabError as error:
            raise RefusedError(
                400, str(error), param="messages", code="context_length_exceeded"
            ) from None
        generator = self._start(question.model, ids, limit, question.options, question.schema)
        question.prompt_tokens = len(ids)
        yield ""
        pieces, text, shown = self._tokenizer.create_stream(), "", 0
        while not generator.is_done():
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            question.completion_tokens += 1
            if token in self._stops:
                question.finish_reason = "stop"
                break
            text += pieces.decode(token)
            end, stopped = showable(text, question.stop)
            yield text[shown:end]
            if stopped:
                question.finish_reason = "stop"
                return
            shown = end
        yield text[shown:]

    def _start(self, name, ids, limit, options, schema=""):
        """A generator that has read *ids*, and may write *limit* tokens."""
        import onnxruntime_genai as og

        settings = og.GeneratorParams(self._model)
        # a cache of that size, not of the longest answer's
        settings.set_search_options(max_length=len(ids) + limit, **options)
        if schema:
            settings.set_guidance("json_schema", schema)
        generator = og.Generator(self._model, settings)
        if name != BASE:
            generator.set_active_adapter(self._adapters, name)
        generator.append_tokens(ids)
        return generator


TRIAL = """
import contextlib, resource, sys
import onnxruntime_genai as og
model = og.Model(sys.argv[1])
ids = og.Tokenizer(model).encode("Hi")
taken = resource.getrusage(resource.RUSAGE_SELF)
with open("/proc/self/statm") as file:
    pages = int(file.read().split()[0])
for kind, most in (
    (resource.RLIMIT_CPU, int(taken.ru_utime + taken.ru_stime) + 3),
    (resource.RLIMIT_AS, pages * resource.getpagesize() + 2**29),
    (resource.RLIMIT_CORE, 0),
):
    with contextlib.suppress(ValueError, OSError):  # a lower one holds
        resource.setrlimit(kind, (most, most))
try:
    settings = og.GeneratorParams(model)
    settings.set_search_options(max_length=len(ids) + 9)
    settings.set_guidance("json_schema", sys.stdin.read())
    generator = og.Generator(model, settings)
    generator.append_tokens(ids)
    written = 0
    while not generator.is_done():
        generator.generate_next_token()
        written += 1
    if written == 1:  # the end alone, which is no JSON
        print("no text satisfies it")
except Exception as error:
    print(" ".join(str(error).split())[:300] or type(error).__name__)
"""


@lru_cache(maxsize=64)
def fault_of_schema(folder: Path, schema: str) -> str:
    """Why the model in *folder* cannot be held to a JSON *schema*; "" where it can.

    A schema is a program, too: one with an array of 10**9 items takes all time and memory before
    its first token. It is tried for a few tokens in a process of its own, with an end to both.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", TRIAL, str(folder)],
        input=schema,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or ("it takes too much time or memory" if done.returncode else "")


def _refused_schema(why: str) -> RefusedError:
    return RefusedError(400, f"The JSON schema cannot be used: {why}.", param="response_format")


def showable(text: str, stop: tuple[str, ...]) -> tuple[int, bool]:
    """(letters of *text* that may be shown, whether one of the texts in *stop* ends it there).

    What may be the beginning of one is held back.
    """
    if found := [at for one in stop if (at := text.find(one)) >= 0]:
        return min(found), True
    held = (n for one in stop for n in range(1, len(one)) if text.endswith(one[:n]))
    return len(text) - max(held, default=0), False
