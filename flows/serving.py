"""OpenAI's chat completions over HTTP for one model: FastAPI does the protocol's mechanics, uvicorn the sockets."""

import asyncio
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flows.chat_protocol import ChatRequest, Limits, Refusal, Told, parsed
from tasks.answering import Answer, Piece, TooLong
from tasks.followed_model import FollowedModel, Loaded

RETRY_SECONDS = "1"
LOOK_SECONDS = 0.5
"""How often it is looked whether a client is still there."""


class Numbers:
    """What /metrics tells, in Prometheus' form."""

    def __init__(self) -> None:
        """Make the counters, apart from those of any other server in this process."""
        own = self.registry = CollectorRegistry()
        self.requests = Counter("ratchet_requests", "Requests by outcome.", ["status"], registry=own)
        self.tokens = Counter("ratchet_tokens", "Tokens read and written.", ["kind"], registry=own)
        self.seconds = Histogram("ratchet_request_seconds", "From request to last token.", registry=own)
        self.waiting = Gauge("ratchet_requests_waiting", "Requests that wait or are being answered.", registry=own)
        self.exchanges = Counter("ratchet_model_exchanges", "How often the alias has moved.", registry=own)
        self.model = Gauge("ratchet_model", "1 for the model being served.", ["name", "weights"], registry=own)

    def tell(self, loaded: Loaded) -> None:
        """Name the model that is served now."""
        self.model.clear()
        self.model.labels(loaded.name, loaded.fingerprint).set(1)


class Turns:
    """One answer at a time, so that each gets the whole processor; the others wait, but not without end."""

    def __init__(self, limits: Limits, numbers: Numbers) -> None:
        """Prepare; there is one thread that generates."""
        self._limits, self._numbers, self._count, self._lock = limits, numbers, 0, threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")

    def begin(self, model: FollowedModel, asked: ChatRequest) -> tuple[Loaded, Answer]:
        """Queue a request.

        Raises:
            Refusal: too many wait, or the conversation is too long.
        """
        if self._count >= self._limits.waiting:
            said = f"{self._count} requests are waiting; come back in a moment"
            raise Refusal(429, said, code="rate_limit_exceeded", kind="rate_limit_error")
        loaded, options = model.current, asked.options(self._limits)
        try:
            messages = [message.plain() for message in asked.messages]
            ids, answer = loaded.answerer.prepare(messages, _Bridge(asyncio.get_running_loop()))
        except TooLong as error:
            raise Refusal(400, str(error), code="context_length_exceeded") from error
        self._change(1)

        def work() -> None:
            try:
                if not answer.cancelled.is_set():
                    loaded.answerer.run(ids, answer, options)
            finally:
                self._change(-1)

        self._pool.submit(work)
        return loaded, answer

    def close(self) -> None:
        """Wait for the answer that is being made."""
        self._pool.shutdown(wait=True)

    def _change(self, by: int) -> None:
        with self._lock:  # requests come on one thread and end on another
            self._count += by
            self._numbers.waiting.set(self._count)


def make_app(model: FollowedModel, limits: Limits, *, key: str | None = None) -> FastAPI:
    """Build the application.

    Args:
        model: what answers; followed for as long as the application runs.
        limits: what it takes on.
        key: what clients have to send as a bearer token; None lets everybody in.
    """
    numbers = Numbers()
    turns = Turns(limits, numbers)
    numbers.tell(model.current)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        model.start(limits.every)
        yield
        model.stop()
        turns.close()

    def exchanged(loaded: Loaded) -> None:
        numbers.exchanges.inc()
        numbers.tell(loaded)

    model.on_change = exchanged
    app = FastAPI(title="Ratchet", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        numbers.requests.labels(str(error.status)).inc()
        headers = {"Retry-After": RETRY_SECONDS} if error.status == 429 else None
        return JSONResponse(error.document, status_code=error.status, headers=headers)

    _add_pages(app, model, numbers, key)
    _add_completions(app, model, limits, turns, numbers, key)
    return app


def _add_pages(app: FastAPI, model: FollowedModel, numbers: Numbers, key: str | None) -> None:
    """What can be read: state, numbers, names."""

    @app.get("/health")
    async def health() -> dict[str, Any]:
        now = model.current
        return {"status": "ok", "model": now.name, "weights": now.fingerprint, "since": now.since,
                "reference": model.reference, "problem": model.problem}  # fmt: skip

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(numbers.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        _require(request, key)
        names = dict.fromkeys((model.reference, model.current.name))
        entries = [
            {"id": name, "object": "model", "created": int(model.current.since), "owned_by": "ratchet"}
            for name in names
        ]
        return {"object": "list", "data": entries}


def _add_completions(
    app: FastAPI, model: FollowedModel, limits: Limits, turns: Turns, numbers: Numbers, key: str | None
) -> None:
    """What answers."""

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        _require(request, key)
        asked = parsed(await _body(request, limits))
        if asked.model not in (model.reference, model.current.name):
            said = f"model {asked.model!r} is not served here; wanted {model.reference}"
            raise Refusal(404, said, code="model_not_found")
        began = time.monotonic()
        loaded, answer = turns.begin(model, asked)
        told = Told(asked, loaded, answer)
        if asked.stream:
            return StreamingResponse(_streamed(told, numbers, began), media_type="text/event-stream")
        try:
            text = "".join([piece async for piece in _pieces(answer, request)])
        except RuntimeError as error:
            raise Refusal(500, f"the model could not answer: {error}", code="failed", kind="server_error") from error
        _count(numbers, answer, began)
        return JSONResponse(told.whole(text))


def _require(request: Request, key: str | None) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
        raise Refusal(401, "the key is missing or wrong", code="invalid_api_key", kind="authentication_error")


async def _body(request: Request, limits: Limits) -> bytes:
    """Read the request, but no more of it than is allowed."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.body_bytes:
            raise Refusal(413, f"the request has more than {limits.body_bytes} bytes", code="request_too_large")
    return body


class _Bridge:
    """Brings pieces from the thread that generates to the loop that answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[Piece] = asyncio.Queue()

    def put(self, piece: Piece) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)

    async def get(self) -> Piece:
        return await self._queue.get()


async def _pieces(answer: Answer, request: Request | None = None) -> AsyncIterator[str]:
    """Yield an answer's texts; the generation ends when the client has gone."""
    assert isinstance(answer.pieces, _Bridge)  # `Turns.begin` has put it there
    try:
        while True:
            waiting = asyncio.ensure_future(answer.pieces.get())
            while request is not None and not (await asyncio.wait([waiting], timeout=LOOK_SECONDS))[0]:
                if await request.is_disconnected():
                    answer.cancelled.set()
            piece = await waiting
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise RuntimeError(str(piece)) from piece
            yield piece
    finally:
        answer.cancelled.set()


async def _streamed(told: "Told", numbers: Numbers, began: float) -> AsyncIterator[bytes]:
    yield told.event({"role": "assistant", "content": ""})
    try:
        async for piece in _pieces(told.answer):
            yield told.event({"content": piece})
    except RuntimeError as error:
        refusal = Refusal(500, f"the model could not answer: {error}", code="failed", kind="server_error")
        yield f"data: {json.dumps(refusal.document)}\n\n".encode()
        return
    yield told.event({}, finish=told.answer.finish_reason)
    if told.asked.stream_options and told.asked.stream_options.include_usage:
        yield told.event(None)
    yield b"data: [DONE]\n\n"
    _count(numbers, told.answer, began)


def _count(numbers: Numbers, answer: Answer, began: float) -> None:
    numbers.requests.labels("200").inc()
    numbers.tokens.labels("prompt").inc(answer.prompt_tokens)
    numbers.tokens.labels("completion").inc(answer.completion_tokens)
    numbers.seconds.observe(time.monotonic() - began)
