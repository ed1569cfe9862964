import json
import pickle
from pathlib import Path

import pytest

from tasks.failures import Failure, StageError, failure_file, forget_failure, read_failure


def note(root: Path, text: str) -> None:
    path = failure_file(root, "sft")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_note_is_read_and_forgotten(tmp_path: Path) -> None:
    note(tmp_path, json.dumps({"stage": "sft", "exit_code": 2, "kind": "bad_input", "sentence": " a.jsonl: empty "}))
    found = read_failure(tmp_path, "sft")
    assert found == Failure(stage="sft", exit_code=2, kind="bad_input", sentence="a.jsonl: empty")
    forget_failure(tmp_path, "sft")
    forget_failure(tmp_path, "sft")
    assert read_failure(tmp_path, "sft") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "failed"}'])
def test_a_torn_note_is_no_note(tmp_path: Path, text: str) -> None:
    note(tmp_path, text)
    assert read_failure(tmp_path, "sft") is None


@pytest.mark.parametrize(
    ("kind", "exit_code", "retryable"),
    [("bad_input", 2, False), ("failed", 1, False), ("cancelled", 1, False), ("signal", 1, True), ("busy", 1, True)],
)
def test_only_what_may_pass_is_tried_again(kind: str, exit_code: int, retryable: bool) -> None:
    error = StageError(Failure(stage="sft", exit_code=1, kind=kind, sentence="no"))  # type: ignore[arg-type]
    assert (error.exit_code, error.retryable, error.sentence) == (exit_code, retryable, "sft: no")
    assert pickle.loads(pickle.dumps(error)).failure == error.failure
