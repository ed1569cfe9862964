"""What OpenAI's chat completions look like: requests that are understood, answers, streams and refusals."""

import json
import secrets
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tasks.answering import Answer, Options
from tasks.followed_model import Loaded

LONGEST_TEXT = 200_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one server takes on."""

    waiting: int = 32
    """Requests that may wait for their turn; more are told to come back."""
    body_bytes: int = 1_000_000
    max_tokens: int = 1024
    """Longest answer, whatever a request asks for."""
    every: float = 2.0
    """Seconds between two looks at the alias."""


class Part(BaseModel):
    """A part of a message; only texts are understood."""

    type: Literal["text"]
    text: str = Field(max_length=LONGEST_TEXT)


class Message(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=LONGEST_TEXT)] | list[Part]

    def plain(self) -> dict[str, str]:
        """As chat templates take it; `developer` is what newer clients call `system`."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """Whether a stream ends with the numbers of tokens."""

    include_usage: bool = False


StopString = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ChatRequest(BaseModel):
    """What clients send; what cannot be done is refused, what changes no answer is ignored."""

    model_config = ConfigDict(extra="ignore")
    model: str
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    n: Literal[1] = 1
    seed: int | None = None
    stop: StopString | list[StopString] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: None = None
    logprobs: Literal[False] | None = None

    def options(self, limits: Limits) -> Options:
        """As the model takes them."""
        asked = self.max_completion_tokens or self.max_tokens or limits.max_tokens
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Options(
            max_tokens=min(asked, limits.max_tokens),
            temperature=self.temperature,
            top_p=self.top_p,
            seed=secrets.randbelow(2**31) if self.seed is None else self.seed % 2**31,
            stop=tuple(stop),
        )


class Refusal(Exception):
    """A request that is not answered, in the form that OpenAI's clients understand."""

    def __init__(self, status: int, message: str, *, code: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.document = status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


def parsed(body: bytes) -> ChatRequest:
    """Read a request.

    Raises:
        Refusal: it is not one, or asks for what is not done here.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise Refusal(400, f"{where}: {first['msg']}", code="invalid_request") from error
    except RecursionError as error:
        raise Refusal(400, "body: nested too deeply", code="invalid_request") from error


class Told:
    """The documents that answer one request."""

    def __init__(self, asked: ChatRequest, loaded: Loaded, answer: Answer) -> None:
        self.asked, self.answer = asked, answer
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": loaded.name,
            "system_fingerprint": loaded.fingerprint or None,
        }

    def whole(self, text: str) -> dict[str, Any]:
        """The answer in one document."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self.answer.finish_reason, "logprobs": None}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    def event(self, delta: dict[str, str] | None, finish: str | None = None) -> bytes:
        """One event of a stream; the one without a delta carries the numbers of tokens."""
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        usage = {"usage": self._usage()} if delta is None else {}
        document = {**self._head, "object": "chat.completion.chunk", "choices": choices, **usage}
        return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()

    def _usage(self) -> dict[str, int]:
        read, written = self.answer.prompt_tokens, self.answer.completion_tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
