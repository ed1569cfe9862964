"""One answer of a policy to one conversation, for people who try a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.device import autocast, generator
from rlhf.errors import BadInput
from rlhf.evaluation.answers import Policy
from rlhf.generation import generate
from rlhf.models import context_length
from rlhf.tokenizer import decode_response, encode_prompt, pad_of

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer."""

    text: str
    ended: bool
    """False where it was cut at the longest length."""
    tokens: int
    """Length, stop token included."""
    forgotten: int
    """Messages at the beginning of the conversation that the context had no room for."""


def reply(
    policy: Policy, messages: Messages, *, temperature: float, max_new_tokens: int, greedy: bool, seed: int
) -> Reply:
    """Answer the last message of a conversation.

    A conversation longer than the context loses its oldest turns; a system message at its beginning stays.

    Args:
        policy: what answers.
        messages: the conversation; the last message is the user's.
        temperature: divides the logits; above 0. Without effect on a greedy answer.
        max_new_tokens: longest answer, in tokens; shortened to half the context of the model.
        greedy: take the likeliest token at each step.
        seed: of the sample.

    Returns:
        The answer.

    Raises:
        BadInput: the last message does not fit into the context, or an argument is out of range.
    """
    if not temperature > 0 or max_new_tokens < 1:
        raise BadInput(
            f"temperature is {temperature} and the longest answer {max_new_tokens} tokens, wanted more than 0 of both; "
            "for the likeliest answer use --greedy"
        )
    context = context_length(policy.model) or 2**31
    longest = min(max_new_tokens, max(1, context // 2))
    ids, forgotten = _fitted(policy, messages, context - longest)
    with autocast(policy.model.device, "auto"):
        found = generate(
            policy.model,
            [ids],
            max_new_tokens=longest,
            temperature=temperature,
            stop_ids=policy.stops,
            forbidden=policy.forbidden,
            pad_id=pad_of(policy.tokenizer),
            generator=generator(seed),
            greedy=greedy,
        )
    answer = found.responses[0]
    text = decode_response(policy.tokenizer, answer, stops=policy.stops)
    return Reply(text=text, ended=found.ended[0], tokens=len(answer), forgotten=forgotten)


def _fitted(policy: Policy, messages: Messages, room: int) -> tuple[list[int], int]:
    """Ids of the conversation without as many of its oldest turns as it takes, and how many messages were left out."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = list(messages[len(system) :])
    # A turn is a question with its answer, so the rest begins with a question again.
    for start in range(0, len(turns), 2):
        ids = encode_prompt(policy.tokenizer, [*system, *turns[start:]])
        if len(ids) <= room:
            return ids, start
    raise BadInput(f"the message has more tokens than the {room} that the model's context has room for; shorten it")
