"""Log-probabilities of both sides of preference pairs: of one batch, and once and for all of a whole data set."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf import distributed
from rlhf.batches import collate, sorted_batches
from rlhf.device import autocast
from rlhf.logprobs import response_logprobs
from rlhf.preferences import Pair


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
