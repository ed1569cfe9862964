import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.conversations import (
    as_answer,
    as_messages,
    as_prompt,
    common_prompt,
    is_transcript,
    last_answer,
    merge_neighbours,
    split_transcript,
)
from rlhf.data.records import RowError


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


TURN = st.text(st.characters(categories=["L", "N"], include_characters=" ,."), min_size=1).map(str.strip).filter(bool)


def test_a_transcript_is_split_at_its_speakers() -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nSecond paragraph.\n\nHuman: Bye\n\nAssistant: See you"
    assert is_transcript(text)
    assert split_transcript(text) == [
        user("Hi"),
        assistant("Hello.\n\nSecond paragraph."),
        user("Bye"),
        assistant("See you"),
    ]


@given(st.lists(st.tuples(TURN, TURN), min_size=1, max_size=4))
def test_splitting_undoes_writing(turns: list[tuple[str, str]]) -> None:
    text = "".join(f"\n\nHuman: {asked}\n\nAssistant: {said}" for asked, said in turns)
    wanted = [message for asked, said in turns for message in (user(asked), assistant(said))]
    assert split_transcript(text) == wanted


def test_a_speaker_inside_a_line_is_no_turn() -> None:
    assert split_transcript("\n\nHuman: say Human: twice\n\nAssistant: no")[0] == user("say Human: twice")


@pytest.mark.parametrize("text", ["Human: but nothing else", "plain words", "", None, ["x"]])
def test_other_things_are_no_transcripts(text: object) -> None:
    assert not is_transcript(text)


def test_prompts_of_every_form() -> None:
    assert as_prompt("plain") == [user("plain")]
    assert as_prompt("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:") == [user("a"), assistant("b"), user("c")]
    assert as_prompt([{"role": "user", "content": "a"}]) == [user("a")]
    assert as_prompt([{"from": "human", "value": "a"}]) == [user("a")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "not a list of messages"),
        ({}, "not a list of messages"),
        (["a"], "not a message"),
        ([{"role": "tool", "content": "x"}], "unknown role"),
        ([{"role": "user", "content": ["image"]}], "not text"),
        ([{"role": "user"}], "not text"),
    ],
)
def test_what_is_no_conversation(value: object, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        as_messages(value, "prompt")
    assert caught.value.reason == reason


def test_answers_of_every_form() -> None:
    assert as_answer("x", "chosen") == "x"
    assert as_answer({"from": "gpt", "value": "x"}, "chosen") == "x"
    assert as_answer([assistant("x")], "chosen") == "x"
    with pytest.raises(RowError, match="not one turn"):
        as_answer([user("x")], "chosen")
    with pytest.raises(RowError, match="missing"):
        as_answer(None, "chosen")


def test_conversations_must_part_at_the_last_answer() -> None:
    chosen, rejected = [user("a"), assistant("b")], [user("a"), assistant("c")]
    assert common_prompt(chosen, rejected) == ([user("a")], "b", "c")
    with pytest.raises(RowError, match="part before"):
        common_prompt(chosen, [user("x"), assistant("c")])
    with pytest.raises(RowError, match="does not end with the assistant"):
        common_prompt(chosen, [user("a")])
    with pytest.raises(RowError, match="no prompt"):
        last_answer([assistant("b")], "chosen")


def test_turns_of_one_speaker_are_joined() -> None:
    assert merge_neighbours([user("a"), user("b"), assistant("c")]) == [user("a\n\nb"), assistant("c")]
