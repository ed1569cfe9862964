import pytest

from flows.outcome import Outcome
from tasks.failures import Failure


def failure(kind: str) -> Failure:
    return Failure(stage="sft", exit_code=1, kind=kind, sentence="x")  # type: ignore[arg-type]  # the test's own words


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(), 0),
        (Outcome(failures={"a": failure("failed")}), 1),
        (Outcome(failures={"a": failure("failed"), "b": failure("bad_input")}), 2),
        (Outcome(cancelled=True, failures={"a": failure("cancelled")}), 1),
        (Outcome(cancelled=True), 1),
        (Outcome(stopped_by=15, failures={"a": failure("cancelled")}), 143),
        (Outcome(publish_error="x"), 1),
        (Outcome(gate_error="x"), 1),
    ],
)
def test_exit_codes(outcome: Outcome, code: int) -> None:
    assert outcome.exit_code == code
