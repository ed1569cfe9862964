"""What a reward signal may look at: a response as text, and what is known of the prompt that it answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from transformers import PreTrainedTokenizerBase

from rlhf.batches import Batch
from rlhf.tokenizer import decode_response


class Answer(NamedTuple):
    """A response as text, with what is known of the prompt."""

    messages: Sequence[Mapping[str, str]]
    text: str
    meta: Mapping[str, Any]
    tokens: int
    """Length as the policy sampled it, the end token included."""
    ended: bool
    """Whether it ended by itself, and was not cut."""


TextFunction: TypeAlias = Callable[[Answer], float]
"""A rule, or a function of the user's own."""


def response_texts(batch: Batch, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> list[str]:
    """The text of each response of a batch, up to its end.

    Args:
        batch: prompts and responses. [B, T]
        tokenizer: the policy's.
        stops: tokens that end a response.
    """
    ids, mask = batch.input_ids.tolist(), batch.response_mask.tolist()
    rows = [[token for token, inside in zip(*row, strict=True) if inside] for row in zip(ids, mask, strict=True)]
    return [decode_response(tokenizer, row, stops=stops) for row in rows]
