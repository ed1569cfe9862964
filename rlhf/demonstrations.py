"""Demonstrations as token ids: encoding, batching, and how well a policy predicts held-out ones."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf import distributed
from rlhf.batches import Batch, collate, cut_response, sorted_batches
from rlhf.device import autocast
from rlhf.logprobs import response_logprobs
from rlhf.token_store import Coded, stored
from rlhf.tokenizer import encode_prompts, encode_responses, pad_of


class Example(NamedTuple):
    """One demonstration as token ids."""

    prompt: list[int]
    response: list[int]


class Encoded(NamedTuple):
    """Demonstrations as token ids, and what happened to those that are too long."""

    examples: Sequence[Example]
    counts: dict[str, int]


def encode(tokenizer: PreTrainedTokenizerBase, records: Sequence[dict[str, Any]], *, max_tokens: int) -> Encoded:
    """Token ids of demonstrations; responses that are too long are cut, prompts that are too long dropped.

    Args:
        tokenizer: the policy's.
        records: demonstrations.
        max_tokens: longest prompt + response.
    """

    def coded(rows: Sequence[dict[str, Any]], counts: Counter[str]) -> Iterator[Coded]:
        prompts = encode_prompts(tokenizer, [record["prompt"] for record in rows])
        responses = encode_responses(tokenizer, [record["response"] for record in rows])
        for prompt, response in zip(prompts, responses, strict=True):
            kept = cut_response(prompt, response, max_tokens=max_tokens)
            if kept is not None:
                counts.update(truncated=len(kept) < len(response), tokens=len(kept))
                yield Coded([prompt, kept])

    examples, counted = stored(
        tokenizer, records, coded, lambda one: Example(*one.ids), settings=["demonstrations", max_tokens]
    )
    counts = {
        "records": len(examples), "tokens": counted.get("tokens", 0), "truncated": counted.get("truncated", 0),
        "dropped": len(records) - len(examples),
    }  # fmt: skip
    return Encoded(examples, counts)


def to_batch(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Right-padded batch of demonstrations."""
    prompts, responses = [example.prompt for example in examples], [example.response for example in examples]
    return collate(prompts, responses, pad_id=pad_of(tokenizer))


@torch.no_grad()
def held_out_loss(
    policy: PreTrainedModel,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    forbidden: Tensor,
    *,
    rows: int,
    precision: str,
) -> float:
    """Mean negative log-likelihood per response token, nats; its exponential is the perplexity.

    Args:
        policy: causal language model; no gradient.
        examples: all examples, the same on every rank; each rank computes its share.
        tokenizer: the policy's.
        forbidden: True at tokens that are never sampled. [V] bool
        rows: examples per forward pass.
        precision: number format, see `device.autocast`.

    Returns:
        The mean over all tokens of all ranks.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("held_out_loss: got no examples, wanted at least one")
    sums = {"nll": 0.0, "tokens": 0.0}
    mine = distributed.share(examples)
    for part in sorted_batches([len(example.prompt) + len(example.response) for example in mine], rows):
        batch = to_batch([mine[row] for row in part], tokenizer).to(policy.device)
        with autocast(policy.device, precision):
            logprobs = response_logprobs(policy, batch, temperature=1.0, forbidden=forbidden).logprobs
        sums["nll"] -= float(logprobs.sum(dtype=torch.float64))
        sums["tokens"] += float(batch.response_mask.sum())
    sums = distributed.reduce_sum(sums)
    return sums["nll"] / sums["tokens"]
