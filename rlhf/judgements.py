"""Single judgements as token ids: an answer and whether it was found good."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rlhf.batches import cut_response
from rlhf.pair_logprobs import Answer
from rlhf.preferences import Pair
from rlhf.tokenizer import encode_prompt, encode_response


class Judgement(NamedTuple):
    """One judged answer as token ids."""

    prompt: list[int]
    response: list[int]
    good: bool


def encode_judgements(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Mapping[str, Any]], *, max_tokens: int
) -> list[Judgement]:
    """Token ids of judgement records (`prompt`, `response`, `good`); those that are too long are left out.

    Args:
        tokenizer: the policy's.
        records: as validated.
        max_tokens: longest prompt + response, tokens; nobody has judged half an answer.
    """
    encoded = (
        Judgement(encode_prompt(tokenizer, row["prompt"]), encode_response(tokenizer, row["response"]), row["good"])
        for row in records
    )
    return [one for one in encoded if len(one.prompt) + len(one.response) <= max_tokens]


def judgements_of_pairs(pairs: Sequence[Pair]) -> list[Judgement]:
    """Each pair as two judgements: the answer that the label prefers is good, the other one is bad.

    Args:
        pairs: preferences; a tie says nothing about either answer and gives none.

    Returns:
        Chosen and rejected answer of the first pair, then of the second, ...
    """
    return [
        Judgement(pair.prompt, response, good)
        for pair in pairs
        if pair.label != 0.5
        for response, good in ((pair.chosen, pair.label > 0.5), (pair.rejected, pair.label < 0.5))
    ]


def mismatched(judgements: Sequence[Judgement], *, max_tokens: int) -> list[Answer]:
    """Each prompt of a batch with the answer that was given to the next other prompt.

    With as many prompts as judgements this shifts the answers by one place, as the paper does. Neighbours with the same
    prompt (the two halves of a pair) are passed over, since their answers do fit.

    Source: Ethayarajh et al. 2024, section 4.2, https://arxiv.org/abs/2402.01306

    Args:
        judgements: of the whole batch, in its order.
        max_tokens: longest prompt + answer, tokens; a longer answer is cut.

    Returns:
        One for each judgement; none when all have the same prompt.
    """
    found = []
    count = len(judgements)
    for place, one in enumerate(judgements):
        others = (judgements[(place + shift) % count] for shift in range(1, count))
        other = next((other for other in others if other.prompt != one.prompt), None)
        response = None if other is None else cut_response(one.prompt, other.response, max_tokens=max_tokens)
        if response is not None:
            found.append(Answer(one.prompt, response))
    return found
