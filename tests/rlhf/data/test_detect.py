import json
from pathlib import Path

import pytest

from rlhf.data.detect import detect
from rlhf.data.readers import READERS
from rlhf.errors import BadInput


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_detection_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "Q", "response": "A"}, {"prompt": "Q", "response": "B"})
    detected = detect(path)
    assert detected.format == "demonstration"
    assert detected.why == "2 of 2 rows have prompt, response (or completion)"


def test_a_few_broken_rows_do_not_mislead(tmp_path: Path) -> None:
    good = {"prompt": "Q", "response": "A"}
    # The row without a response looks like a prompt; the majority decides.
    path = write(tmp_path / "a.jsonl", {"prompt": "Q"}, "{broken", good, good)
    assert detect(path).format == "demonstration"


def test_a_format_can_be_forced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "Q", "response": "A"})
    assert detect(path, "prompt").format == "prompt"
    with pytest.raises(BadInput, match="unknown format 'promt'; known formats are comparison"):
        detect(path, "promt")


def test_unknown_columns_are_named_with_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        detect(write(tmp_path / "a.jsonl", {"question": "Q", "answer": "A"}))
    assert "question, answer" in str(caught.value)
    assert all(name in str(caught.value) for name in READERS)


def test_a_judgement_is_no_demonstration(tmp_path: Path) -> None:
    good, bad = ({"prompt": "Q", "completion": "A", "label": label} for label in (True, False))
    assert detect(write(tmp_path / "a.jsonl", good, bad)).format == "judgement"
    assert detect(write(tmp_path / "b.jsonl", {**bad, "label": "human"})).format == "demonstration"


def test_several_answers_are_a_ranking_and_no_prompt(tmp_path: Path) -> None:
    plain = {"prompt": "Q", "responses": ["A", "B"], "ranks": [2, 1]}
    scored = {"instruction": "Q", "completions": [{"response": "A", "overall_score": 3.0}]}
    assert detect(write(tmp_path / "a.jsonl", plain)).format == "ranking"
    assert detect(write(tmp_path / "b.jsonl", scored)).format == "scored_completions"


def test_rows_that_are_no_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none of the first 100 rows is a JSON object"):
        detect(write(tmp_path / "a.jsonl", "plain words", "more of them"))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["oasst_en100/en_100_tree.jsonl", "ORIGINS.md"])
def test_real_files_of_other_kinds_are_refused(shared: Path, name: str) -> None:
    with pytest.raises(BadInput):
        detect(shared / "data" / name)
