"""Conversations as people store them, turned into chat messages: lists of turns, transcripts, single texts.

A transcript is the "Human: ... Assistant: ..." text of Bai et al. 2022, https://arxiv.org/abs/2204.05862, in which
pairs are two whole conversations that share everything but the last answer.
"""

import re
from typing import Any

from rlhf.data.records import Message, RowError

ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}
"""What the usual formats call the speakers."""

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: object) -> bool:
    """Whether a text is a conversation written out as "Human:" and "Assistant:" turns."""
    if not isinstance(text, str):
        return False
    return text.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in text


def split_transcript(text: str) -> list[Message]:
    """Split a transcript into messages, one for each "Human:" or "Assistant:" that begins a paragraph."""
    _, *parts = _TURN.split("\n\n" + text.lstrip("\n"))
    return [
        {"role": _SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def merge_neighbours(messages: list[Message]) -> list[Message]:
    """Join turns of one speaker in a row, which many chat templates refuse."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1] = {**message, "content": f"{merged[-1]['content']}\n\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def as_prompt(value: object, field: str = "prompt") -> list[Message]:
    """A prompt as messages: from a list of turns, a transcript that waits for the assistant, or plain words.

    Raises:
        RowError: it is neither text nor a list of turns.
    """
    if not isinstance(value, str):
        return as_messages(value, field)
    if is_transcript(value):
        messages = split_transcript(value)
        return merge_neighbours(messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages)
    return [{"role": "user", "content": value}]


def as_messages(value: object, field: str) -> list[Message]:
    """A list of turns as messages; both {"role", "content"} and {"from", "value"} are understood.

    Raises:
        RowError: not a list of turns, an unknown speaker (tools included), or a turn that is not text.
    """
    if not isinstance(value, list) or not value:
        raise RowError(field, value, "not a list of messages")
    return [_message(turn, field, index) for index, turn in enumerate(value)]


def as_answer(value: object, field: str) -> str:
    """An answer as text: plain, a single turn, or a list that holds the one turn of the assistant.

    Raises:
        RowError: not text, or several turns where one was wanted.
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise RowError(field, None, "missing field")
    messages = as_messages(value if isinstance(value, list) else [value], field)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise RowError(field, value, "not one turn of the assistant")
    return messages[0]["content"]


def last_answer(messages: list[Message], field: str) -> tuple[list[Message], str]:
    """Split a conversation into what came before its last answer and that answer.

    Raises:
        RowError: the last turn is not the assistant's, or nothing comes before it.
    """
    if messages[-1]["role"] != "assistant":
        raise RowError(field, messages[-1]["content"], "does not end with the assistant")
    if len(messages) == 1:
        raise RowError(field, messages[-1]["content"], "has no prompt before the answer")
    return messages[:-1], messages[-1]["content"]


def common_prompt(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected answer of two conversations that should differ in their last turn only.

    Raises:
        RowError: they part earlier, so that the two answers answer different questions.
    """
    prompt, better = last_answer(chosen, "chosen")
    other_prompt, worse = last_answer(rejected, "rejected")
    if prompt != other_prompt:
        raise RowError("rejected", worse, "the conversations part before the last answer")
    return prompt, better, worse


def _message(turn: Any, field: str, index: int) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"{field}[{index}]", turn, "not a message")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in ROLE_NAMES:
        raise RowError(f"{field}[{index}]", role, "unknown role")
    if not isinstance(content, str):
        raise RowError(f"{field}[{index}]", content, "not text")
    return {"role": ROLE_NAMES[role], "content": content}
