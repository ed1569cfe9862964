"""Log-probabilities of whole answers, alone or in preference pairs: of one batch, and of a whole data set."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf import distributed
from rlhf.batches import collate, sorted_batches
from rlhf.device import autocast
from rlhf.logprobs import response_logprobs
from rlhf.preferences import Pair


class Answer(NamedTuple):
    """A prompt and what was answered, as token ids."""

    prompt: list[int]
    response: list[int]


def answer_logprobs(policy: PreTrainedModel, answers: Sequence[Answer], forbidden: Tensor, *, pad_id: int) -> Tensor:
    """Log-probabilities of whole responses.

    Args:
        policy: a causal language model; gradient flows.
        answers: B prompts and responses.
        forbidden: True at tokens that are never sampled. [V] bool
        pad_id: id written into the padding.

    Returns:
        Sums over the tokens of each response, nats. [B]
    """
    prompts, responses = [answer.prompt for answer in answers], [answer.response for answer in answers]
    batch = collate(prompts, responses, pad_id=pad_id).to(policy.device)
    return response_logprobs(policy, batch, temperature=1.0, forbidden=forbidden).logprobs.sum(dim=1)


def pair_logprobs(
    policy: PreTrainedModel, pairs: Sequence[Pair], forbidden: Tensor, *, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both sides, in one batch so that both see the same arithmetic.

    Args:
        policy: a causal language model; gradient flows.
        pairs: B preferences.
        forbidden: True at tokens that are never sampled. [V] bool
        pad_id: id written into the padding.

    Returns:
        Of the chosen and of the rejected responses, summed over their tokens, nats. [B], [B]
    """
    chosen = [Answer(pair.prompt, pair.chosen) for pair in pairs]
    rejected = [Answer(pair.prompt, pair.rejected) for pair in pairs]
    sums = answer_logprobs(policy, [*chosen, *rejected], forbidden, pad_id=pad_id)
    return sums[: len(pairs)], sums[len(pairs) :]


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

    def compute(index: list[int]) -> Tensor:
        return torch.stack(pair_logprobs(policy, [pairs[row] for row in index], forbidden, pad_id=pad_id), dim=1)

    lengths = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    found = torch.zeros(len(pairs), 2, device=policy.device)
    return _fill(found, compute, lengths, rows=rows, precision=precision)


def all_answer_logprobs(
    policy: PreTrainedModel, answers: Sequence[Answer], forbidden: Tensor, *, pad_id: int, rows: int, precision: str
) -> Tensor:
    """`answer_logprobs` of many answers, without gradient, each rank computing its share.

    Args:
        policy: a causal language model.
        answers: all of them, the same on every rank; may be none.
        forbidden: True at tokens that are never sampled. [V] bool
        pad_id: id written into the padding.
        rows: answers of one forward pass.
        precision: number format, see `device.autocast`.

    Returns:
        Nats, on the CPU. [number of answers] float32
    """

    def compute(index: list[int]) -> Tensor:
        return answer_logprobs(policy, [answers[row] for row in index], forbidden, pad_id=pad_id)

    lengths = [len(answer.prompt) + len(answer.response) for answer in answers]
    found = torch.zeros(len(answers), device=policy.device)
    return _fill(found, compute, lengths, rows=rows, precision=precision)


@torch.no_grad()
def _fill(
    found: Tensor, compute: Callable[[list[int]], Tensor], lengths: Sequence[int], *, rows: int, precision: str
) -> Tensor:
    """Put `compute` of this rank's indices into a table of zeros, and add up the tables of all ranks."""
    mine = distributed.share(range(len(lengths)))
    parts = [[mine[row] for row in part] for part in sorted_batches([lengths[row] for row in mine], rows)]
    with autocast(found.device, precision):
        for index in parts:
            found[index] = compute(index).float()
        # As many forward passes on every rank: a model whose weights are split answers only when all of them ask.
        for _ in range(math.ceil(math.ceil(len(lengths) / distributed.world_size()) / rows) - len(parts)):
            compute([0])
    if distributed.world_size() > 1:
        distributed.start()
        torch.distributed.all_reduce(found)
    return found.cpu()
