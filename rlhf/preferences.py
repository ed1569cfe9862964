"""Preference pairs as token ids."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rlhf.batches import cut_response
from rlhf.tokenizer import encode_prompt, encode_response


class Pair(NamedTuple):
    """One preference as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    label: float
    """P(chosen is better); 0.5 is a tie."""


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[dict[str, Any]], *, max_tokens: int
) -> list[Pair]:
    """Token ids of pairs; long responses are cut, pairs with prompts that leave no room for one are dropped."""
    found = []
    for record in records:
        prompt = encode_prompt(tokenizer, record["prompt"])
        chosen, rejected = (
            cut_response(prompt, encode_response(tokenizer, record[side]), max_tokens=max_tokens)
            for side in ("chosen", "rejected")
        )
        if chosen is not None and rejected is not None:
            found.append(Pair(prompt, chosen, rejected, float(record["label"])))
    return found
