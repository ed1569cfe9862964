"""Head, log-softmax and look-up of response tokens in one differentiable step, in fp32.

One buffer of logits is written and then turned in place, first into log-probabilities and in the backward pass into
their gradient, where separate operations would write it six times.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlhf import matmul
from rlhf.packing import round_up

NEVER = -1e30
"""Logit of a forbidden token: its probability is 0, and 0 * -1e30 is 0 where 0 * -inf would be NaN."""


class _Fused(Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, ids: Tensor, temperature: float, forbidden: Tensor | None, spread: bool
    ) -> tuple[Tensor, Tensor | None]:
        table = matmul.multiply(rows if temperature == 1 else rows / temperature, weight)
        if forbidden is not None:
            table.index_fill_(1, forbidden.nonzero().squeeze(1), NEVER)
        table = torch.log_softmax(table, dim=-1)
        chosen = table.gather(1, ids.unsqueeze(1)).squeeze(1)
        entropy = None
        if spread:
            entropy = table.exp().mul_(table).sum(dim=1).neg_()
        if forbidden is not None:
            chosen.masked_fill_(forbidden[ids], -torch.inf)
        ctx.save_for_backward(rows, weight, ids, entropy)
        ctx.table, ctx.temperature = table, temperature
        return chosen, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, weight, ids, entropy = ctx.saved_tensors
        of_chosen, of_entropy = gradients
        table, ctx.table = ctx.table, None
        if table is None:
            raise RuntimeError("fused_head: a second backward pass through the same logits; compute them again")
        pull = torch.zeros_like(rows[:, 0]) if of_chosen is None else of_chosen
        if entropy is None or of_entropy is None:
            table.exp_().mul_(-pull.unsqueeze(1))
        else:
            share = (table + entropy.unsqueeze(1)).mul_(of_entropy.unsqueeze(1)).add_(pull.unsqueeze(1)).neg_()
            table.exp_().mul_(share)
        table.scatter_add_(1, ids.unsqueeze(1), pull.unsqueeze(1))
        need_rows, need_weight = ctx.needs_input_grad[:2]
        scale = 1 / ctx.temperature
        of_rows = matmul.multiply(table, weight.t()) if need_rows else None
        of_weight = matmul.multiply(table.t(), rows.t()) if need_weight else None
        if scale != 1:
            of_rows, of_weight = (None if one is None else one.mul_(scale) for one in (of_rows, of_weight))
        return of_rows, of_weight, None, None, None, None


def chosen_logprobs(
    rows: Tensor, weight: Tensor, ids: Tensor, *, temperature: float, forbidden: Tensor | None, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of tokens from the hidden states that predict them; differentiable once.

        log p(id) = z_id - log sum_v exp z_v,    z = rows weight^T / temperature, forbidden tokens left out

    Args:
        rows: hidden states; gradient flows. [N, H] float32
        weight: of the head; gradient flows. [V, H] float32
        ids: tokens to look up. [N] int64
        temperature: divides the logits. > 0
        forbidden: True at ids that are never sampled; their log-probability is -inf. [V] bool, or None
        with_entropy: also return the entropy of each distribution.

    Returns:
        Log-probabilities, nats [N], and entropies, nats [N] or None.

    Raises:
        ValueError: temperature is not positive, or `forbidden` does not have V entries.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature} but must be positive")
    if forbidden is not None and forbidden.shape != weight.shape[:1]:
        raise ValueError(f"forbidden has shape {tuple(forbidden.shape)} but the head has {weight.shape[0]} rows")
    count = len(ids)
    extra = round_up(count) - count  # few sizes, since a library compiles a kernel for each
    rows, ids = functional.pad(rows, (0, 0, 0, extra)), functional.pad(ids, (0, extra))
    found: tuple[Tensor, Tensor | None] = _Fused.apply(rows, weight, ids, temperature, forbidden, with_entropy)  # type: ignore[no-untyped-call]
    logprobs, entropy = found
    return logprobs[:count], None if entropy is None else entropy[:count]
