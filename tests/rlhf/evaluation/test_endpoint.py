from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import BadInput, StageFailed
from rlhf.evaluation.chat_completions import Access
from rlhf.evaluation.endpoint import FAILURES_IN_A_ROW, Comparison, EndpointJudge, parse_verdict
from tests.rlhf.evaluation.completions_server import Answer, Fault, serving

PROMPT = [{"role": "user", "content": "Where is it?"}]
PAIRS = [Comparison(PROMPT, "long answer", "short"), Comparison(PROMPT, "so", "longer words")]


def longer(a: str, b: str, number: int) -> Answer:
    """A judge with a taste: the longer reply."""
    return f"I compared both.\nVerdict: {'A' if len(a) > len(b) else 'B'}"


def judge(url: str, work: Path, **settings: Any) -> EndpointJudge:
    access = Access(url=url, model="m", key="k", pause=0.001, attempts=settings.pop("attempts", 3), timeout=5.0)
    return EndpointJudge(access, work=work, **{"parallel": 2, **settings})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Both are fine. Verdict: A", 1.0),
        ("**Verdict:** B", 0.0),
        ("verdict: tie.", 0.5),
        ("Verdict: A at first sight.\nVerdict: B", 0.0),  # the last one counts
        ("A", 1.0),
        (" `TIE`\n", 0.5),
        ("A is better", None),
        ("Verdict: Both", None),
        ("Verdict: Beta", None),
        ("", None),
    ],
)
def test_verdicts_in_words(text: str, value: float | None) -> None:
    assert parse_verdict(text) == value


def test_both_orders_are_asked_and_agree(tmp_path: Path) -> None:
    with serving(longer) as server:
        labels, account = judge(server.url, tmp_path).compare(PAIRS)
        asked = [request["messages"][1]["content"] for request in server.requests]
    assert labels == [1.0, 0.0]
    assert sum("<reply_a>\nshort\n" in text for text in asked) == 1
    assert sum("<reply_b>\nshort\n" in text for text in asked) == 1
    assert "<conversation>\nuser: Where is it?\n</conversation>" in asked[0]
    assert (account.questions, account.comparisons, account.inconsistent, account.said_first) == (4, 2, 0, 2)
    assert (account.prompt_tokens, account.completion_tokens) == (40, 12)


def test_a_judge_that_likes_the_first_place_gives_ties(tmp_path: Path) -> None:
    with serving(lambda a, b, number: "Verdict: A") as server:
        labels, account = judge(server.url, tmp_path).compare(PAIRS)
    assert labels == [0.5, 0.5]
    assert (account.inconsistent, account.said_first, account.ties) == (2, 4, 0)


def test_a_tie_in_one_order_is_half_a_vote(tmp_path: Path) -> None:
    with serving(lambda a, b, number: "Verdict: TIE" if a == "short" else longer(a, b, number)) as server:
        labels, account = judge(server.url, tmp_path).compare(PAIRS[:1])
    assert labels == [0.75]
    assert (account.ties, account.inconsistent) == (1, 0)


def test_an_answer_without_a_verdict_gives_no_label(tmp_path: Path) -> None:
    with serving(lambda a, b, number: "Hm." if "short" in (a, b) else longer(a, b, number)) as server:
        labels, account = judge(server.url, tmp_path).compare(PAIRS)
    assert labels == [None, 0.0]
    assert (account.unparsed, account.failed, account.comparisons) == (2, 0, 1)
    assert account.prompt_tokens == 40  # they were paid for


def test_failures_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    with serving(lambda a, b, number: Fault(503) if a == "short" else longer(a, b, number)) as server:
        labels, account = judge(server.url, tmp_path).compare(PAIRS)
    assert labels == [None, 0.0]
    assert account.failed == 1


def test_retries_are_counted(tmp_path: Path) -> None:
    with serving(lambda a, b, number: Fault(429) if number == 1 else longer(a, b, number)) as server:
        labels, account = judge(server.url, tmp_path, parallel=1).compare(PAIRS)
    assert labels == [1.0, 0.0]
    assert account.retries == 1


def test_an_interrupted_run_asks_only_what_is_missing(tmp_path: Path) -> None:
    with serving(lambda a, b, number: Fault(400) if number > 2 else longer(a, b, number)) as server:
        labels, _ = judge(server.url, tmp_path, parallel=1).compare(PAIRS)
        assert labels == [1.0, None]
    file = tmp_path / "verdicts.jsonl"
    file.write_bytes(file.read_bytes() + b'{"key": "abc", "verd')  # cut off by a crash
    with serving(longer) as server:
        labels, account = judge(server.url, tmp_path).compare(PAIRS)
        assert len(server.requests) == 2
    assert labels == [1.0, 0.0]
    assert (account.kept, account.failed, account.prompt_tokens) == (2, 0, 40)
    assert len(file.read_text().splitlines()) == 4
    with serving(longer) as server:  # now nothing is missing
        assert judge(server.url, tmp_path).compare(PAIRS)[0] == [1.0, 0.0]
        assert server.requests == []


def test_another_guideline_is_another_question(tmp_path: Path) -> None:
    with serving(longer) as server:
        judge(server.url, tmp_path).compare(PAIRS)
        judge(server.url, tmp_path, guideline="The funnier reply wins.").compare(PAIRS)
        assert len(server.requests) == 8
        assert "The funnier reply wins." in server.requests[-1]["messages"][0]["content"]


def test_a_server_that_is_down_ends_the_run_soon(tmp_path: Path) -> None:
    many = [Comparison(PROMPT, f"answer {number}", "other") for number in range(50)]
    with serving(lambda a, b, number: Fault(503)) as server:
        with pytest.raises(StageFailed, match="run the same command again"):
            judge(server.url, tmp_path, attempts=1).compare(many)
        assert len(server.requests) <= FAILURES_IN_A_ROW + 2  # those under way


def test_failures_between_answers_do_not_end_the_run(tmp_path: Path) -> None:
    many = [Comparison(PROMPT, f"answer {number}", "other") for number in range(20)]
    with serving(lambda a, b, number: Fault(400) if number % 2 else longer(a, b, number)) as server:
        labels, account = judge(server.url, tmp_path, parallel=1).compare(many)
    assert labels == [None] * 20
    assert account.failed == 20 > FAILURES_IN_A_ROW


def test_a_wrong_key_ends_the_run(tmp_path: Path) -> None:
    with serving(longer, key="right") as server, pytest.raises(BadInput, match="check RATCHET_JUDGE_URL"):
        judge(server.url, tmp_path).compare(PAIRS)


def test_settings_out_of_range(tmp_path: Path) -> None:
    for settings in ({"guideline": " "}, {"parallel": 0}):
        with pytest.raises(BadInput, match="endpoint"):
            judge("http://h/v1", tmp_path, **settings)
