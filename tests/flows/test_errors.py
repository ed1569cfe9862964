from flows.errors import CommandError


def test_a_command_error_is_a_usage_error_unless_told_otherwise() -> None:
    assert CommandError("no such stage").exit_code == 2
    assert CommandError("the gate said no", 1).exit_code == 1
    assert CommandError("no such stage").sentence == "no such stage"
    assert str(CommandError("no such stage")) == "no such stage"
