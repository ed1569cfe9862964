"""A client of the chat-completions protocol that many model servers speak: one question, one answer, its cost.

What can pass by itself (a busy server, a timeout, a broken reply) is tried again with growing pauses; what cannot (a
wrong key, a wrong address) ends at once. The key is sent and nowhere else: it is in no message, no log and no file,
even where a server sends it back.
"""

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import httpx

from rlhf.errors import BadInput

log = logging.getLogger(__name__)

URL, MODEL, KEY = "RATCHET_JUDGE_URL", "RATCHET_JUDGE_MODEL", "RATCHET_JUDGE_KEY"
PATH = "/chat/completions"
REFUSED = {401, 403, 404, 405}
"""Statuses that every other request would get, too: the key, the address or the model is wrong."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts, at most, whatever the server asks for."""
SHOWN = 200
"""Characters of a server's complaint that are shown."""


class NoAnswer(Exception):
    """One question got no answer; others may."""


class Completion(NamedTuple):
    """One answer and what it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    retries: int
    """Attempts before this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Where and how to ask."""

    url: str
    """Up to and without /chat/completions; no user name or password in it."""
    model: str
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token; None for servers that want none."""
    timeout: float = 60.0
    """Seconds without a byte from the server before an attempt counts as failed."""
    attempts: int = 6
    """Of one question, at least 1."""
    pause: float = 1.0
    """Seconds before the second attempt; doubled before each further one."""
    max_tokens: int = 1024
    """Longest answer."""

    def __post_init__(self) -> None:
        """Check what can be checked without asking.

        Raises:
            BadInput: not an http address, a secret in it, or a number out of range.
        """
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise BadInput(f"{URL}: not an address ({error}); wanted one such as https://host/v1") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise BadInput(f"{URL}: wanted an address such as https://host/v1, with http or https and a host")
        if url.userinfo or url.query:
            raise BadInput(f"{URL}: holds a user name or a query, which may be secret; put the key into {KEY}")
        if not self.model.strip():
            raise BadInput(f"{MODEL} is empty; name the model that the server should answer with")
        if not (self.timeout > 0 and self.attempts >= 1 and self.pause >= 0):
            raise BadInput(f"timeout {self.timeout}, attempts {self.attempts}: wanted more than 0 seconds and tries")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise BadInput(f"{KEY}: holds a character that no HTTP header can carry (a line break?); set it again")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **settings: Any) -> Self:
        """Take address, model and key from environment variables.

        Args:
            environment: usually `os.environ`.
            **settings: the other fields.

        Raises:
            BadInput: a variable is missing or cannot be used.
        """
        found = {name: environment.get(name, "").strip() for name in (URL, MODEL, KEY)}
        for name in (URL, MODEL):
            if not found[name]:
                raise BadInput(
                    f"{name} is not set; an endpoint needs {URL} (such as https://host/v1), {MODEL}, and {KEY} where "
                    "the server wants a key"
                )
        return cls(url=found[URL], model=found[MODEL], key=found[KEY] or None, **settings)

    @property
    def address(self) -> str:
        """The whole address of a request."""
        bare = self.url.rstrip("/")
        return bare if bare.endswith(PATH) else bare + PATH


class ChatClient:
    """Asks one server; safe to share among threads. A context manager."""

    def __init__(self, access: Access, *, stop: threading.Event | None = None) -> None:
        """Prepare connections; nothing is sent yet.

        Args:
            access: the server.
            stop: once it is set, no further attempt is made and no pause is sat out.
        """
        self.access, self._stop = access, stop or threading.Event()
        headers = {"Authorization": f"Bearer {access.key}"} if access.key else {}
        self._client = httpx.Client(timeout=access.timeout, headers=headers)
        # The library would log a line for every request, and on debug level what it sends.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, messages: list[dict[str, str]]) -> Completion:
        """Get one answer, drawn at temperature 0.

        Args:
            messages: the conversation, as {"role", "content"}.

        Raises:
            NoAnswer: all attempts failed, or the server refuses this question; says why.
            BadInput: the server refuses every question (its key, its address or its model is wrong).
        """
        body = {
            "model": self.access.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.access.max_tokens,
        }
        why, pause = "", self.access.pause
        for attempt in range(self.access.attempts):
            if self._stop.wait(min(pause, LONGEST_PAUSE) if attempt else 0.0):
                raise NoAnswer(why or "stopped")
            pause = self.access.pause * 2.0**attempt
            try:
                reply = self._client.post(self.access.address, json=body)
            except httpx.TimeoutException:
                why = f"no reply within {self.access.timeout:g} s"
                continue
            except httpx.TransportError as error:
                why = self._public(f"{type(error).__name__}: {error}")
                continue
            if reply.status_code == 200:
                try:
                    return _completion(reply, attempt)
                except (ValueError, KeyError, IndexError, TypeError) as error:
                    why = f"a reply that is no chat completion ({type(error).__name__})"
                    continue
            why = f"status {reply.status_code}: {self._public(reply.text)}"
            if reply.status_code in REFUSED:
                raise BadInput(f"{self.access.address} refuses ({why}); check {URL}, {MODEL} and {KEY}")
            if reply.status_code != 429 and reply.status_code < 500:
                raise NoAnswer(why)
            pause = max(pause, _asked_pause(reply))
        raise NoAnswer(f"{why}; {self.access.attempts} attempts")

    def _public(self, text: str) -> str:
        """A server's words on one line, without the key, which some servers repeat."""
        words = " ".join(text.split())
        return (words.replace(self.access.key, "(key)") if self.access.key else words)[:SHOWN]


def _completion(reply: httpx.Response, retries: int) -> Completion:
    document = reply.json()
    text = document["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("content is not text")
    usage = document.get("usage") or {}
    prompt, completion = (usage.get(f"{kind}_tokens") or 0 for kind in ("prompt", "completion"))
    return Completion(text, int(prompt), int(completion), retries)


def _asked_pause(reply: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not say, or says a date."""
    try:
        seconds = float(reply.headers.get("Retry-After", "0"))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
