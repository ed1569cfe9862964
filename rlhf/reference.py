"""What the frozen reference says: beside a policy on sampled responses, and once and for all on preference pairs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf import distributed
from rlhf.batches import Batch, collate, sorted_batches
from rlhf.device import autocast
from rlhf.kl import full_kl
from rlhf.logprobs import entropy, gather_logprobs, response_logits, response_logprobs, scatter_response
from rlhf.preferences import Pair
from rlhf.row_blocks import in_row_blocks

LOGIT_BUDGET = 2**26
"""Most logits of one model that are held at once while two policies are compared (256 MB in fp32)."""


class Comparison(NamedTuple):
    """The policy beside the frozen reference on the sampled tokens; 0 outside the response, no gradient."""

    logprobs: Tensor
    """log pi(token), nats. [B, T]"""
    ref_logprobs: Tensor
    """The same under the reference. [B, T]"""
    entropy: Tensor
    """Entropy of the policy where the token was drawn, nats. [B, T]"""
    kl: Tensor
    """KL(policy || reference) there, summed over the whole vocabulary, nats. [B, T]"""


@torch.no_grad()
def compare_with_reference(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    batch: Batch,
    forbidden: Tensor,
    *,
    temperature: float,
    rows: int,
) -> Comparison:
    """Log-probabilities under policy and reference, entropy and exact KL at every sampled token.

    Old log-probabilities come from here, from the forward pass that training uses, and not from the generator, whose
    kernels may round differently. The comparison needs the policy's logits anyway, so they cost nothing.

    Args:
        policy: the policy that sampled.
        reference: the frozen one it started from; shares its vocabulary.
        batch: prompts and responses. [B, T]
        forbidden: True at tokens that are never sampled. [V] bool
        temperature: that of the sampling; divides the logits of both.
        rows: rows of one forward pass; fewer are taken where the logits would exceed `LOGIT_BUDGET`.

    Returns:
        Four measurements for each response token.
    """
    most = LOGIT_BUDGET // (batch.input_ids.shape[1] * len(forbidden))

    def compare(part: Batch) -> Tensor:
        ids = part.input_ids[part.response_mask]
        ours, theirs = response_logits(policy, part), response_logits(reference, part)
        columns = (
            gather_logprobs(ours, ids, temperature=temperature, forbidden=forbidden),
            gather_logprobs(theirs, ids, temperature=temperature, forbidden=forbidden),
            entropy(ours, temperature=temperature, forbidden=forbidden),
            full_kl(ours, theirs, temperature=temperature, forbidden=forbidden),
        )
        return torch.stack([scatter_response(column, part.response_mask) for column in columns], dim=-1)

    return Comparison(*in_row_blocks(compare, batch, max(1, min(rows, most))).unbind(dim=-1))


def pair_logprobs(
    policy: PreTrainedModel, pairs: Sequence[Pair], forbidden: Tensor, *, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of whole responses, both sides in one batch so that both see the same arithmetic.

    Args:
        policy: a causal language model; gradient flows.
        pairs: B preferences.
        forbidden: True at tokens that are never sampled. [V] bool
        pad_id: id written into the padding.

    Returns:
        Of the chosen and of the rejected responses, summed over their tokens, nats. [B], [B]
    """
    prompts = [pair.prompt for pair in pairs]
    responses = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    batch = collate([*prompts, *prompts], responses, pad_id=pad_id).to(policy.device)
    sums = response_logprobs(policy, batch, temperature=1.0, forbidden=forbidden).logprobs.sum(dim=1)
    return sums[: len(pairs)], sums[len(pairs) :]


@torch.no_grad()
def all_pair_logprobs(
    policy: PreTrainedModel, pairs: Sequence[Pair], forbidden: Tensor, *, pad_id: int, rows: int, precision: str
) -> Tensor:
    """`pair_logprobs` of a whole data set, without gradient, each rank computing its share.

    A frozen reference never changes its mind, so one pass over the data replaces one pass in every epoch, and no
    second model has to stay in memory.

    Args:
        policy: a causal language model.
        pairs: all pairs, the same on every rank; may be none.
        forbidden: True at tokens that are never sampled. [V] bool
        pad_id: id written into the padding.
        rows: pairs of one forward pass.
        precision: number format, see `device.autocast`.

    Returns:
        Nats, on the CPU: chosen first, rejected second. [number of pairs, 2] float32
    """
    found = torch.zeros(len(pairs), 2, device=policy.device)
    mine = distributed.share(range(len(pairs)))
    lengths = [len(pairs[row].prompt) + max(len(pairs[row].chosen), len(pairs[row].rejected)) for row in mine]
    for part in sorted_batches(lengths, rows):
        index = [mine[row] for row in part]
        with autocast(policy.device, precision):
            sides = pair_logprobs(policy, [pairs[row] for row in index], forbidden, pad_id=pad_id)
        found[index] = torch.stack(sides, dim=1).float()
    if distributed.world_size() > 1:
        torch.distributed.all_reduce(found)
    return found.cpu()
