"""Requests as clients send them, and the documents that answer."""

import json

import pytest

from flows.chat_protocol import ChatRequest, Limits, Refusal, parsed

ASK = [{"role": "user", "content": "Hello"}]


def request(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": ASK, **fields}).encode()


def test_limits_bound_what_is_asked_for() -> None:
    assert parsed(request(max_tokens=5)).options(Limits()).max_tokens == 5
    assert parsed(request(max_completion_tokens=7, max_tokens=5)).options(Limits()).max_tokens == 7
    assert parsed(request(max_tokens=10**9)).options(Limits(max_tokens=100)).max_tokens == 100
    assert parsed(request()).options(Limits(max_tokens=100)).max_tokens == 100


def test_without_a_seed_two_requests_draw_apart_and_with_one_they_agree() -> None:
    free = {parsed(request()).options(Limits()).seed for _ in range(5)}
    assert len(free) == 5
    assert parsed(request(seed=-1)).options(Limits()).seed == 2**31 - 1


def test_parts_and_newer_roles_are_understood() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    asked = parsed(request(messages=[{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]))
    assert [message.plain() for message in asked.messages] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
    ]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"stop": ""}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_refused_names_its_place(fields: dict[str, object], where: str) -> None:
    with pytest.raises(Refusal, match=where) as caught:
        parsed(request(**fields))
    assert caught.value.status == 400
    assert caught.value.document["error"]["type"] == "invalid_request_error"


def test_fields_that_change_no_answer_are_ignored() -> None:
    assert isinstance(parsed(request(user="someone", metadata={"a": "b"})), ChatRequest)
