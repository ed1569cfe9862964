"""What `ratchet serve` refuses before it listens; what it does then is in tests/flows/test_serving.py."""

import socket
from pathlib import Path

import pytest

from flows.cli import main

pytest_plugins = ["tests.registry_fixtures"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["policy@nobody"], "no version 'policy@nobody'"),
        (["judge@champion"], "only policies are served"),
        (["policy/1", "--host", "0.0.0.0"], "lets other machines in"),
        (["policy/1", "--host", "example.org"], "lets other machines in"),
        (["policy/1", "--port", "0"], "--port is 0"),
        (["policy/1", "--every", "nan"], "--every"),
        (["policy/1", "--waiting", "0"], "--waiting is 0"),
        (["nothing-of-that-name"], "is no model"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    published: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RATCHET_API_KEY", raising=False)
    assert main(["serve", *words, "--root", str(published)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_port_that_is_taken_is_one_sentence(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "policy/1", "--port", port, "--root", str(published)]) == 1
    assert f"127.0.0.1:{port} cannot be listened at" in capsys.readouterr().err
