from rlhf.errors import BadInput, StageFailed, one_line, secret_in


def test_bad_input_and_failure_have_the_documented_exit_codes() -> None:
    assert (BadInput.exit_code, StageFailed.exit_code) == (2, 1)


def test_printable_text_stays_as_it_is() -> None:
    assert one_line("data/raw/é  文.jsonl: wrong") == "data/raw/é  文.jsonl: wrong"
    assert str(BadInput("a\nb\x1b[2J\ud800")) == "a b\\x1b[2J\\ud800"


def test_endless_words_are_cut() -> None:
    assert one_line(f"no file {'a' * 5000}; check it") == f"no file {'a' * 120}...; check it"
    assert one_line("b" * 499) == "b" * 499


def test_secrets_are_named_and_never_shown() -> None:
    assert secret_in("hf_" + "x" * 20) == "an access token"
    assert secret_in("s3://key:word@host/x") == "a password in an address"
    assert secret_in("https://host:8080/path@v1 hf_model sk-learn") is None
    assert one_line("at https://me:word@host:1/x") == "at https://(secret)@host:1/x"
