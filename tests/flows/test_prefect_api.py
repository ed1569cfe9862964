import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.prefect_api import ServerAway, ServerRefused, ask, flow_run_state, set_state
from flows.server import free_port


class Server(BaseHTTPRequestHandler):
    """Answers by the path: a code, or what it was sent."""

    def answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        code = int(self.path.rpartition("/")[2]) if self.path.rpartition("/")[2].isdigit() else 200
        said = {
            "login": self.headers.get("Authorization"),
            "sent": json.loads(sent or b"null"),
            "state_type": "RUNNING",
        }
        self.send_response(code)
        self.end_headers()
        if code != 204:
            self.wfile.write(json.dumps(said).encode())

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), Server) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{http.server_port}/api/")
        yield
        http.shutdown()
        thread.join()


def test_questions_and_answers() -> None:
    assert ask("/flow_runs/filter", {"a": 1})["sent"] == {"a": 1}
    assert ask("/204") is None
    assert flow_run_state("x") == "RUNNING"
    set_state("task_runs", "x", "CRASHED", "why")


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("/x")["login"] is None
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:it")
    assert ask("/x")["login"] == "Basic bWU6aXQ="
    monkeypatch.setenv("PREFECT_API_KEY", "k")
    assert ask("/x")["login"] == "Bearer k"


def test_away_and_refused_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerRefused, match="HTTP 404"):
        ask("/404")
    with pytest.raises(ServerAway, match="HTTP 503"):
        ask("/503")
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    with pytest.raises(ServerAway, match="refused"):
        ask("/x")
