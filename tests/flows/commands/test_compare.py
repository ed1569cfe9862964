"""`ratchet compare`."""

import json
import shutil
from pathlib import Path

import pytest

from flows.cli import main
from tests.flows.commands.models_project import write_models_project


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models_project(tmp_path_factory.mktemp("compare") / "project")


def compare(root: Path, *words: str) -> int:
    return main(["compare", "--root", str(root), "--max-new-tokens", "5", *words])


def test_two_models_on_held_out_prompts_judged(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(root, "sft", "ppo", "--n", "2", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in document["prompts"]] == ["p201", "p202"]
    assert sum(document["judged"].values()) == 2
    assert {row["winner"] for row in document["prompts"]} <= {"a", "b", "tie"}

    assert compare(root, "sft", "ppo", "--n", "2") == 0
    shown = capsys.readouterr().out
    assert "user: Order 201." in shown
    assert f"by the judge: sft {document['judged']['a']}, ppo {document['judged']['b']}" in shown


def test_without_a_judge_nobody_judges(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(root, tmp_path / "project")
    shutil.rmtree(copy / "data/models/judge")
    assert compare(copy, "sft", "ppo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["judged"] is None
    assert compare(copy, "sft", "ppo") == 0
    assert "nobody judged" in capsys.readouterr().out


def test_own_prompts_as_text_or_json(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.txt"
    talk = [{"role": "system", "content": "Plus member."}, {"role": "user", "content": "Order 9."}]
    path.write_text(f"Order 7.\n\n{json.dumps({'prompt': 'Order 8.'})}\n{json.dumps({'prompt': talk, 'id': 'z'})}\n")
    assert compare(root, "sft", "ppo", "--prompts", str(path), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["prompts"]
    assert [row["prompt"][-1]["content"] for row in rows] == ["Order 7.", "Order 8.", "Order 9."]
    assert rows[2]["prompt"][0]["role"] == "system"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there is no prompt in this file"),
        ('{"prompt": 3}\n', "prompts.txt:1: not a prompt"),
        ('{"prompt": [{"role": "assistant", "content": "x"}]}\n', "the last message is not the user's"),
        ('{"prompt": \n', "prompts.txt:1: not a prompt"),
        ("lamp " * 300, "no prompt leaves 5 tokens"),
        (None, "no such file of prompts"),
    ],
)
def test_bad_prompts_are_one_sentence(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, sentence: str
) -> None:
    path = tmp_path / "prompts.txt"
    if text is not None:
        path.write_text(text)
    assert compare(root, "sft", "ppo", "--prompts", str(path)) == 2
    assert sentence in capsys.readouterr().err


def test_numbers_out_of_range(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(root, "sft", "ppo", "--n", "0") == 2
    assert "wanted --n, --max-new-tokens and --temperature above 0" in capsys.readouterr().err
