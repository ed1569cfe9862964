from rlhf.errors import BadInput, StageFailed


def test_bad_input_and_failure_have_the_documented_exit_codes() -> None:
    assert (BadInput.exit_code, StageFailed.exit_code) == (2, 1)
