"""`ratchet serve` as a process of its own, asked by OpenAI's own client."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from mlflow import MlflowClient

from flows.server import free_port
from tests.tiny_project import wait_for

pytest_plugins = ["tests.registry_fixtures"]

REPOSITORY = Path(__file__).parents[2]
KEY = "open-sesame"
ASK: list[Any] = [{"role": "user", "content": "Hello, where is order 201?"}]


class Served:
    """A server under test."""

    def __init__(self, root: Path, *options: str, key: str = KEY) -> None:
        self.root, self.port = root, free_port()
        env = {**os.environ, "RATCHET_ROOT": str(root), "RATCHET_API_KEY": key}
        words = ["serve", "policy@champion", "--port", str(self.port), "--every", "0.2", *options]
        log = root / ".ratchet/tmp/serve.log"
        with log.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", *words], cwd=REPOSITORY, env=env, stderr=said
            )
        wait_for(lambda: self.process.poll() is not None or self.healthy(), seconds=90)
        assert self.process.poll() is None, log.read_text()
        self.client = openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=60)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def healthy(self) -> bool:
        try:
            return bool(self.health()["status"] == "ok")
        except OSError:
            return False

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/health"))
        return found

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.address + path, timeout=10) as answer:
            return str(answer.read().decode())

    def ask(self, **options: Any) -> Any:
        settings = {"model": "policy@champion", "messages": ASK, "max_tokens": 8, "seed": 1, **options}
        return self.client.chat.completions.create(**settings)


def store(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root}/.ratchet/state/mlflow.db")


@pytest.fixture(scope="module")
def served(published: Path) -> Iterator[Served]:
    store(published).set_registered_model_alias("policy", "champion", "1")
    served = Served(published)
    yield served
    served.client.close()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0


def test_the_client_gets_an_answer_with_its_numbers(served: Served) -> None:
    found = served.ask()
    assert found.model == "policy/1"
    assert found.system_fingerprint
    assert found.choices[0].finish_reason in ("stop", "length")
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert 1 <= found.usage.completion_tokens <= 8
    assert [model.id for model in served.client.models.list()] == ["policy@champion", "policy/1"]


def test_a_stream_says_the_same_as_one_document(served: Served) -> None:
    for options in ({"seed": 3}, {"temperature": 0.0}, {"seed": 5, "top_p": 0.5}):
        whole = served.ask(**options)
        chunks = list(served.ask(stream=True, stream_options={"include_usage": True}, **options))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_stop_string_ends_the_answer_before_it(served: Served) -> None:
    whole = served.ask(seed=3).choices[0].message.content
    assert len(whole) > 3
    stop = whole[2:4]
    cut = served.ask(seed=3, stop=[stop, "never said"])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in served.ask(seed=3, stop=stop, stream=True))
    assert streamed == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "wanted policy@champion"),
        ({"n": 2}, openai.BadRequestError, "n: "),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"messages": [{"role": "user", "content": "order " * 500}]}, openai.BadRequestError, "no room"),
        ({"messages": [{"role": "user", "content": "x" * 190_000}] * 6}, openai.APIStatusError, "1000000 bytes"),
        ({"messages": [{"role": "king", "content": "x"}]}, openai.BadRequestError, "role"),
    ],
)
def test_what_cannot_be_done_is_refused_in_the_protocol(
    served: Served, options: dict[str, Any], kind: type[openai.APIStatusError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        served.ask(**options)


def test_strangers_and_nonsense_are_turned_away(served: Served) -> None:
    stranger = openai.OpenAI(base_url=f"{served.address}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model="policy@champion", messages=ASK)
    for body in (b"", b"{", b"[1]", b'{"a":' * 2000, b"\xff"):
        request = urllib.request.Request(
            f"{served.address}/v1/chat/completions", data=body, headers={"Authorization": f"Bearer {KEY}"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert caught.value.code == 400
        with caught.value:
            assert "message" in json.loads(caught.value.read())["error"]


def test_a_moved_alias_changes_what_is_served_and_no_request_is_lost(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        over = time.monotonic() + 60
        answers: list[Any] = []

        def keep_asking() -> None:
            while time.monotonic() < over and not any(found.model == "policy/2" for found in answers[-3:]):
                answers.append(served.ask())

        asking = [pool.submit(keep_asking) for _ in range(4)]
        wait_for(lambda: len(answers) > 3)
        moved = time.monotonic()
        store(served.root).set_registered_model_alias("policy", "champion", "2")  # as somebody does it in the UI
        wait_for(lambda: served.health()["model"] == "policy/2")
        assert time.monotonic() - moved < 10
        for future in asking:
            future.result()  # none of them was refused or broken off
    assert {found.model for found in answers} == {"policy/1", "policy/2"}
    assert 'ratchet_model{name="policy/2"' in served.get("/metrics")
    assert "ratchet_model_exchanges_total 1.0" in served.get("/metrics")


def test_without_its_alias_the_model_stays_and_health_says_so(served: Served) -> None:
    now = served.health()["model"]
    number = now.rpartition("/")[2]
    store(served.root).delete_registered_model_alias("policy", "champion")
    wait_for(lambda: served.health()["problem"] is not None)
    assert served.ask().model == now
    store(served.root).set_registered_model_alias("policy", "champion", number)
    wait_for(lambda: served.health()["problem"] is None)


def test_too_many_at_once_are_told_to_come_back(published: Path) -> None:
    store(published).set_registered_model_alias("policy", "champion", "1")
    served = Served(published, "--waiting", "1")
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(served.ask, seed=seed) for seed in range(24)]
            errors = [future.exception() for future in asked]
        assert any(isinstance(error, openai.RateLimitError) for error in errors)
        assert any(error is None for error in errors)
        assert served.ask().model == "policy/1"
    finally:
        served.client.close()
        served.process.kill()
        served.process.wait()
