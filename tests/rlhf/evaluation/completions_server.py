"""A small server that speaks the chat-completions protocol over real HTTP, with the faults that such servers have."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_REPLIES = re.compile(r"<reply_a>\n(.*)\n</reply_a>\n<reply_b>\n(.*)\n</reply_b>", re.DOTALL)


@dataclass(frozen=True)
class Fault:
    """An answer other than a completion."""

    status: int
    body: str = '{"error": {"message": "busy"}}'
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Sat out before anything is sent."""


Answer = str | Fault
Choose = Callable[[str, str, int], Answer]
"""From reply A, reply B and the number of the request (from 1) to what is answered."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, choose: Choose, key: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.choose, self.key = choose, key
        self.requests: list[dict[str, Any]] = []
        self.lock, self.closing = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that stopped waiting is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/chat/completions":
            return self._send(404, '{"error": {"message": "no such path"}}')
        if self.server.key is not None and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            return self._send(401, json.dumps({"error": {"message": f"not a key: {self.headers['Authorization']}"}}))
        body = json.loads(raw)
        roles = [message["role"] for message in body["messages"]]
        if not isinstance(body["model"], str) or roles[-1] != "user":
            return self._send(400, '{"error": {"message": "wrong shape"}}')
        with self.server.lock:
            self.server.requests.append(body)
            number = len(self.server.requests)
        match = _REPLIES.search(body["messages"][-1]["content"])
        answer = self.server.choose(*(match.groups() if match else ("", "")), number)
        if isinstance(answer, Fault):
            self.server.closing.wait(answer.seconds)
            return self._send(answer.status, answer.body, answer.headers)
        document = {
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
        }
        self._send(200, json.dumps(document))

    def _send(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def serving(choose: Choose, *, key: str | None = None) -> Iterator[Server]:
    """Serve until the block ends."""
    server = Server(choose, key)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
