import pytest

from tasks.planned_stage import Reason


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (Reason(kind="new", name="sft"), "has never run"),
        (Reason(kind="dependency", name="a", old="1", new=None), "a changed (1 -> absent)"),
        (Reason(kind="output", name="a", new="missing"), "output a is missing"),
        (Reason(kind="upstream", name="a", new="sft"), "runs if a of sft changes"),
    ],
)
def test_a_reason_is_a_sentence(reason: Reason, sentence: str) -> None:
    assert str(reason) == sentence
