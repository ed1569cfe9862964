"""`ratchet chat`."""

import io
import json
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands.chat import Messages, converse
from rlhf.evaluation.reply import Reply
from tests.flows.commands.models_project import write_models_project


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models_project(tmp_path_factory.mktemp("chat") / "project")


def chat(root: Path, *words: str) -> int:
    return main(["chat", "--root", str(root), "--max-new-tokens", "5", *words])


def test_one_prompt_gets_one_answer(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(root, "ppo", "--prompt", "My lamp is broken.", "--system", "Plus member.", "--greedy", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prompt"] == [
        {"role": "system", "content": "Plus member."},
        {"role": "user", "content": "My lamp is broken."},
    ]
    assert document["tokens"] <= 5
    assert document["temperature"] is None
    assert chat(root, "ppo", "--prompt", "My lamp is broken.", "--system", "Plus member.", "--greedy") == 0
    assert capsys.readouterr().out == document["response"] + "\n"


def test_a_seed_repeats_an_answer(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert chat(root, str(root / "data/models/sft"), "--prompt", "Order 201.", "--seed", "4", "--json") == 0
    out = capsys.readouterr().out
    half = len(out) // 2
    assert out[:half] == out[half:]


def test_a_conversation_is_kept_until_reset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def answer(messages: Messages) -> Reply:
        asked.append([message["content"] for message in messages])
        return Reply(text=f"answer {len(asked)}", ended=True, tokens=2, forgotten=0)

    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n/reset\nthree\n\n/what\n/quit\nnever read\n"))
    converse([{"role": "system", "content": "rules"}], answer)
    assert asked == [["rules", "one"], ["rules", "one", "answer 1", "two"], ["rules", "three"]]
    captured = capsys.readouterr()
    assert captured.out == "answer 1\nanswer 2\nanswer 3\n"
    assert "starting over" in captured.err
    assert "/quit leaves" in captured.err


def test_lines_of_a_file_are_turns(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second message is too long for the model: that is said, and the conversation goes on.
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Order 201.\n{'lamp ' * 300}\nOrder 201.\n"))
    assert chat(root, "sft", "--seed", "4") == 0
    assert "shorten it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing", "--prompt", "x"], "'nothing' is no model"),
        (["dpo", "--prompt", "x"], "there is no model"),
        (["judge", "--prompt", "x"], "this is a reward model"),
        (["sft", "--prompt", " "], "--prompt is empty"),
        (["sft", "--json"], "--json needs --prompt"),
        (["sft", "--prompt", "x", "--temperature", "0"], "use --greedy"),
        (["sft", "--prompt", "lamp " * 300], "shorten it"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    root: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert chat(root, *words) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert "Traceback" not in captured.err
