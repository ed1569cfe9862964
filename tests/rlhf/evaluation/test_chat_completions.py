import logging
import threading
import time
from typing import Any

import pytest

from rlhf.errors import BadInput
from rlhf.evaluation.chat_completions import KEY, MODEL, URL, Access, ChatClient, NoAnswer
from tests.rlhf.evaluation.completions_server import Answer, Fault, serving

SECRET = "top-secret-word"
HELLO = [{"role": "user", "content": "Hello"}]


def access(url: str, **settings: Any) -> Access:
    return Access(url=url, model="m", **{"pause": 0.01, "timeout": 5.0, **settings})


def in_turn(*answers: Answer) -> Any:
    """The nth request gets the nth answer, later ones the last."""
    return lambda a, b, number: answers[min(number, len(answers)) - 1]


def test_a_question_is_answered_and_counted() -> None:
    with serving(in_turn("Hi"), key=SECRET) as server, ChatClient(access(server.url, key=SECRET)) as client:
        assert client.ask(HELLO) == ("Hi", 10, 3, 0)
        asked = server.requests[0]
    assert asked == {"model": "m", "messages": HELLO, "temperature": 0, "max_tokens": 1024}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429),
        Fault(503),
        Fault(429, headers={"Retry-After": "0.02"}),
        Fault(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Fault(200, "not JSON"),
        Fault(200, '{"choices": []}'),
        Fault(200, '{"choices": [{"message": {"content": null}}]}'),
        Fault(200, "[1]"),
    ],
)
def test_what_passes_is_tried_again(fault: Fault) -> None:
    with serving(in_turn(fault, fault, "Hi")) as server, ChatClient(access(server.url)) as client:
        assert client.ask(HELLO).retries == 2
        assert len(server.requests) == 3


def test_pauses_double_and_the_server_may_ask_for_longer_ones() -> None:
    with serving(in_turn(Fault(500), Fault(500), "Hi")) as server, ChatClient(access(server.url, pause=0.1)) as client:
        began = time.monotonic()
        client.ask(HELLO)
        assert time.monotonic() - began >= 0.3  # 0.1 + 0.2
    wanted = Fault(429, headers={"Retry-After": "0.3"})
    with serving(in_turn(wanted, "Hi")) as server, ChatClient(access(server.url, pause=0.0)) as client:
        began = time.monotonic()
        client.ask(HELLO)
        assert time.monotonic() - began >= 0.3


def test_a_slow_answer_is_given_up_and_asked_again() -> None:
    slow = Fault(200, seconds=30.0)
    with serving(in_turn(slow, "Hi")) as server, ChatClient(access(server.url, timeout=0.2)) as client:
        assert client.ask(HELLO).retries == 1


def test_attempts_come_to_an_end() -> None:
    with serving(in_turn(Fault(503))) as server, ChatClient(access(server.url, attempts=3)) as client:
        with pytest.raises(NoAnswer, match=r"status 503: .*busy.*; 3 attempts"):
            client.ask(HELLO)
        assert len(server.requests) == 3


def test_a_question_that_is_refused_is_not_asked_again() -> None:
    with serving(in_turn(Fault(400, "too long"))) as server, ChatClient(access(server.url)) as client:
        with pytest.raises(NoAnswer, match="status 400: too long"):
            client.ask(HELLO)
        assert len(server.requests) == 1


def test_nobody_there() -> None:
    with serving(in_turn("Hi")) as server:
        url = server.url
    with ChatClient(access(url, attempts=2)) as client, pytest.raises(NoAnswer, match="ConnectError"):
        client.ask(HELLO)


def test_a_wrong_path_ends_at_once() -> None:
    with (
        serving(in_turn("Hi")) as server,
        ChatClient(access(server.url + "/else")) as client,
        pytest.raises(BadInput, match="status 404"),
    ):
        client.ask(HELLO)


def test_the_key_is_in_no_message_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(in_turn("Hi"), key="another") as server:
        wrong = access(server.url, key=SECRET)
        assert SECRET not in repr(wrong)
        # The server sends back what it got; only the key is taken out of its words.
        with ChatClient(wrong) as client, pytest.raises(BadInput, match=r"not a key: Bearer \(key\)") as caught:
            client.ask(HELLO)
    assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text


def test_a_set_stop_ends_pauses() -> None:
    stop = threading.Event()
    with (
        serving(lambda a, b, number: stop.set() or Fault(503)) as server,  # type: ignore[func-returns-value]
        ChatClient(access(server.url, pause=50.0), stop=stop) as client,
        pytest.raises(NoAnswer, match="503"),
    ):
        client.ask(HELLO)


@pytest.mark.parametrize("url", ["http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"])
def test_the_address_may_be_whole(url: str) -> None:
    assert access(url).address == "http://h/v1/chat/completions"


def test_the_environment_is_read() -> None:
    found = Access.from_environment({URL: "http://h/v1", MODEL: "m", KEY: f" {SECRET}\n"}, timeout=3.0)
    assert (found.url, found.model, found.key, found.timeout) == ("http://h/v1", "m", SECRET, 3.0)
    assert Access.from_environment({URL: "http://h/v1", MODEL: "m"}).key is None


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "RATCHET_JUDGE_URL is not set"),
        ({URL: "http://h/v1"}, "RATCHET_JUDGE_MODEL is not set"),
        ({URL: "h/v1", MODEL: "m"}, "wanted an address such as"),
        ({URL: "http://h:port/v1", MODEL: "m"}, "not an address"),
        ({URL: "http://me:" + SECRET + "@h/v1", MODEL: "m"}, "may be secret"),
        ({URL: f"http://h/v1?key={SECRET}", MODEL: "m"}, "may be secret"),
        ({URL: "http://h/v1", MODEL: "m", KEY: f"{SECRET}\nX: y"}, "no HTTP header can carry"),
    ],
)
def test_an_unusable_environment_is_one_sentence(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        Access.from_environment(environment)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("settings", [{"timeout": 0.0}, {"attempts": 0}, {"pause": -1.0}])
def test_numbers_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="wanted more than 0"):
        access("http://h/v1", **settings)
