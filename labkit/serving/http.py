"""OpenAI's interface in tornado: what a request may hold, and how answers and errors look."""

import hmac
import json
import time
import uuid
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from labkit.errors import LabError, plain
from labkit.prompts import prompt_text
from labkit.serving import RefusedError
from labkit.serving.engine import Engine, Question

LARGEST = 64 * 1024  # bytes of a request; no question that the model can read is as long
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
STRICT = ConfigDict(strict=True, allow_inf_nan=False)


class Part(BaseModel):
    model_config = STRICT
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    model_config = STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """The turn as the chat template takes it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Schema(BaseModel):
    model_config = STRICT
    schema_: dict[str, Any] = Field(alias="schema")


class Format(BaseModel):
    model_config = STRICT
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class StreamOptions(BaseModel):
    model_config = STRICT
    include_usage: bool = False


Count = Annotated[int, Field(ge=1, lt=2**31)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Request(BaseModel):
    """The body of /v1/chat/completions. What is not named here must be empty, or is in IGNORED."""

    model_config = STRICT | {"extra": "allow"}
    model: str
    messages: list[Turn] = Field(min_length=1)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Format | None = None

    def search(self) -> dict[str, float]:
        """GenAI's search options: greedy, unless a temperature is given."""
        if not self.temperature or self.temperature < 0.01:  # which GenAI would divide by
            return {}
        options = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p or 1.0}
        return options | ({} if self.seed is None else {"random_seed": self.seed % 2**31})

    def schema(self) -> str:
        """The JSON schema of the answer, as text; "" where it is free."""
        wanted = self.response_format
        if not wanted or wanted.type == "text":
            return ""
        if wanted.type == "json_object":
            return json.dumps({"type": "object"} | COMPACT)
        if not wanted.json_schema:
            raise RefusedError(400, "json_schema is missing.", param="response_format.json_schema")
        return json.dumps(wanted.json_schema.schema_ | COMPACT)


# a small model would fill the room between two marks with blanks
COMPACT = {"x-guidance": {"whitespace_flexible": False}}


def read_request(body: bytes, engine: Engine) -> tuple[Request, Question]:
    """The request in *body*, checked, and what the engine is asked; raises RefusedError."""
    if len(body) > LARGEST:
        raise RefusedError(
            413, f"A request may have {LARGEST:,} bytes; this one has {len(body):,}."
        )
    try:
        request = Request.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise RefusedError(400, f"{place or 'The body'}: {first['msg']}.", param=place) from None
    for name, value in request.model_extra.items():
        if value and name not in IGNORED:
            raise RefusedError(400, f"{name[:60]} is not supported here.", param=name[:60])
    if request.model not in engine.names:
        raise RefusedError(
            404,
            f"There is no model {request.model[:60]!r}: {', '.join(engine.names)}.",
            param="model",
            code="model_not_found",
        )
    *history, last = [turn.plain() for turn in request.messages]
    if last["role"] != "user":
        raise RefusedError(400, "The last message must be the user's.", param="messages")
    try:
        prompt = prompt_text(engine.tokenizer, {"history": history, "prompt": last["content"]})
    except LabError as error:
        raise RefusedError(400, str(error), param="messages") from None
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return request, Question(
        request.model,
        prompt,
        request.max_completion_tokens or request.max_tokens,
        request.search(),
        request.schema(),
        tuple(stop),
    )


class Handler(RequestHandler):
    """What all paths share: the token, and errors in OpenAI's form."""

    def initialize(self, engine: Engine, token: str):
        self.engine, self.token = engine, token

    def prepare(self):
        given = self.request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.token and not hmac.compare_digest(given.encode("latin-1"), self.token.encode()):
            raise RefusedError(401, "The token is missing or wrong.", code="invalid_api_key")

    def write_error(self, status_code, exc_info=(None, None, None), **_):
        error = exc_info[1]
        message = error.message if isinstance(error, RefusedError) else self._reason
        self.finish({"error": described(status_code, error, message)})

    def log_exception(self, kind, error, trace):
        if not isinstance(error, RefusedError | StreamClosedError):
            super().log_exception(kind, error, trace)


def described(status: int, error: Exception | None, message: str) -> dict:
    """An error as OpenAI's clients read it."""
    kinds = {429: "rate_limit_error", 500: "server_error"}
    return {
        "message": message,
        "type": kinds.get(status, "invalid_request_error"),
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None),
    }


class NotFound(Handler):
    def prepare(self):
        super().prepare()
        raise RefusedError(404, "There is nothing at this address: see /v1/models.")


class Models(Handler):
    """GET /v1/models and /v1/models/NAME."""

    def get(self, name: str | None = None):
        about = {"object": "model", "created": self.settings["started"], "owned_by": "labkit"}
        data = [{"id": one} | about for one in self.engine.names]
        if name is None:
            return self.finish({"object": "list", "data": data})
        if name not in self.engine.names:
            raise RefusedError(404, f"There is no model {name[:60]!r}.", code="model_not_found")
        return self.finish({"id": name} | about)


class Chat(Handler):
    """POST /v1/chat/completions."""

    question = None

    async def post(self):
        request, self.question = read_request(self.request.body, self.engine)
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        self.head["model"] = request.model
        async with aclosing(self.engine.answer(self.question)) as pieces:
            await anext(pieces, "")  # a refusal comes up to here, and has its own status
            if request.stream:
                usage = bool(request.stream_options and request.stream_options.include_usage)
                return await self.stream(pieces, usage=usage)
            text = "".join([piece async for piece in pieces])
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self.question.finish_reason}
        about = {"object": "chat.completion", "choices": [choice | {"logprobs": None}]}
        self.finish(self.head | about | {"usage": self.usage()})

    async def stream(self, pieces, *, usage: bool):
        """Sends the answer as it is written, an event a piece."""
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-cache")
        await self.send_delta({"role": "assistant", "content": ""})
        try:
            async for piece in pieces:
                if piece:
                    await self.send_delta({"content": piece})
            await self.send_delta({}, self.question.finish_reason)
            if usage:
                await self.send({"choices": [], "usage": self.usage()})
            await self.send("[DONE]")
        except StreamClosedError:
            pass
        except Exception as error:  # too late for a status
            self.log_exception(type(error), error, error.__traceback__)
            status = getattr(error, "status_code", 500)
            message = getattr(error, "message", "The answer broke off.")
            await self.send({"error": described(status, error, message)})

    async def send_delta(self, delta: dict, finish_reason: str | None = None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        await self.send({"choices": [choice | {"logprobs": None}]})

    async def send(self, event: dict | str):
        if isinstance(event, dict):
            event = json.dumps(self.head | {"object": "chat.completion.chunk"} | event)
        self.write(f"data: {event}\n\n")
        await self.flush()

    def usage(self) -> dict[str, int]:
        read, written = self.question.prompt_tokens, self.question.completion_tokens
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }

    def on_connection_close(self):
        if self.question:
            self.question.leave()


def listen(engine: Engine, host: str, port: int, token: str = "") -> int:
    """Opens *port* (0: any) of *host* for *engine*, in the running event loop; the port's number.

    Without a *token* only requests that name this machine are answered, so that no page in a
    browser reaches it under a name of its own. Raises OSError where the port cannot be opened.
    """
    shared = {"engine": engine, "token": token}
    paths = [
        (r"/v1/models(?:/([^/]+))?", Models, shared),
        (r"/v1/chat/completions", Chat, shared),
        (r".*", NotFound, shared),
    ]
    application = Application(
        started=int(time.time()), cross_origin_protection=True, log_function=say
    )
    application.add_handlers(".*" if token else r"(localhost|127(\.\d+){3}|\[::1\])", paths)
    sockets = bind_sockets(port, host)
    # a client that is slow to say what it wants holds no connection
    server = HTTPServer(
        application, max_body_size=16 * LARGEST, body_timeout=30, idle_connection_timeout=60
    )
    server.add_sockets(sockets)
    return sockets[0].getsockname()[1]


def say(handler) -> None:
    """One line for each request that was answered or refused."""
    question = getattr(handler, "question", None)
    counts = ""
    if question and question.prompt_tokens:
        counts = f" {question.model} {question.prompt_tokens}+{question.completion_tokens} tokens"
    seconds = handler.request.request_time()
    path = plain(handler.request.path)[:80]
    print(
        f"{time.strftime('%H:%M:%S')} {handler.get_status()} {path}{counts} {seconds:.2f} s",
        flush=True,
    )
