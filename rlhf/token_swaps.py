"""Answers with wrong facts, made without knowing what a fact is.

A token of an answer that the policy finds likely under the answer's own prompt and unlikely under another prompt is a
token that depends on the prompt: a name, a number, a remedy. Some of these are swapped for what the policy would write
under the other prompt. The result reads well and is wrong in just those places, which makes it the negative example
that random pairs of answers seldom give.
"""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.batches import collate
from rlhf.generation import row_uniforms
from rlhf.logprobs import log_softmax, response_logits, response_logprobs
from rlhf.models import context_length

MIN_GAIN = 1.5
"""A token depends on its prompt when that prompt makes it likelier by so many nats."""
SWAP_SHARE = 0.5
"""Probability that such a token is swapped; the others stay as positive examples."""
TABLE_ELEMENTS = 2**26
"""Log-probabilities that are held at once: 256 MiB in float32."""


class Swapped(NamedTuple):
    """An answer in which some tokens were swapped."""

    response: list[int]
    """Its ids, as many as before."""
    original: list[bool]
    """False where a token was swapped."""
    judged: list[bool]
    """True where a token depends on the prompt, swapped or not."""


@torch.no_grad()
def swap_tokens(
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    forbidden: Tensor,
    pad_id: int,
) -> list[Swapped]:
    """Swap tokens that depend on the prompt for what the policy would write under another prompt.

    The last token (the end of the answer) is never swapped. A row depends on its own arguments alone.

    Args:
        policy: the frozen model that was fine-tuned on such answers.
        prompts: the B prompts that the answers belong to.
        others: B other prompts.
        responses: B answers.
        seeds: one per row; it decides which tokens are swapped.
        forbidden: True at ids that are never sampled. [V] bool
        pad_id: id written into padding.

    Returns:
        B swapped answers.
    """
    limit = context_length(policy) or 2**31
    # Another prompt may be longer than the answer's own; what is cut is its beginning.
    cut = [other[-max(1, limit - len(response)) :] for other, response in zip(others, responses, strict=True)]
    longest = max((len(response) for response in responses), default=1)
    rows = max(1, TABLE_ELEMENTS // (longest * len(forbidden)))
    swapped: list[Swapped] = []
    for start in range(0, len(responses), rows):
        part = slice(start, start + rows)
        proposals = _propose(policy, prompts[part], cut[part], responses[part], forbidden, pad_id)
        coins = row_uniforms(seeds[part], longest).tolist()
        swapped += map(_swap, responses[part], proposals, coins)
    return swapped


def _propose(
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    forbidden: Tensor,
    pad_id: int,
) -> list[list[int | None]]:
    """For each token of each answer, its substitute when it depends on the prompt, else None."""
    batch = collate(prompts, responses, pad_id=pad_id).to(policy.device)
    own = response_logprobs(policy, batch, temperature=1.0, forbidden=forbidden).logprobs[batch.response_mask]
    batch = collate(others, responses, pad_id=pad_id).to(policy.device)
    table = log_softmax(response_logits(policy, batch), temperature=1.0, forbidden=forbidden)
    ids = batch.input_ids[batch.response_mask]
    gain = own - table.gather(1, ids.unsqueeze(1)).squeeze(1)
    substitute = table.argmax(dim=-1)
    depends = (gain > MIN_GAIN) & (substitute != ids)
    found = iter(zip(depends.tolist(), substitute.tolist(), strict=True))
    return [[token if chosen else None for chosen, token in islice(found, len(response))] for response in responses]


def _swap(response: Sequence[int], proposals: Sequence[int | None], coins: Sequence[float]) -> Swapped:
    """Swap about half of the tokens that have a substitute, but never the last."""
    tokens, original, judged = list(response), [True] * len(response), [False] * len(response)
    for place, proposal in enumerate(proposals[:-1]):
        if proposal is None:
            continue
        judged[place] = True
        if coins[place] < SWAP_SHARE:
            tokens[place], original[place] = proposal, False
    return Swapped(tokens, original, judged)
