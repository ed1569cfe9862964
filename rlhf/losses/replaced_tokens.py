"""Telling a response's own tokens from swapped ones, token by token: a second, dense task for the reward model."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlhf.losses.bradley_terry import at_least_float32
from rlhf.masking import masked_sum, zero_outside
from rlhf.shapes import require_rank, require_same_shape


class ReplacedTokenLoss(NamedTuple):
    """Loss and diagnostics; the latter carry no gradient."""

    loss: Tensor
    """What to minimise: nats per judged token. scalar"""
    accuracy: Tensor
    """Share of judged tokens whose score has the right sign (a share of it when `total_tokens` is given). scalar"""


def replaced_token_loss(
    token_scores: Tensor, original: Tensor, judged: Tensor, *, total_tokens: float | None = None
) -> ReplacedTokenLoss:
    """Logistic loss that wants scores of a response's own tokens above 0 and of swapped tokens below.

        L = -mean over judged tokens of log sigma(+h) for an original token, log sigma(-h) for a swapped one

    A preference is one bit for a whole response; this is one bit for each token that could have been wrong, which is
    what it takes to learn that an order number in the answer must be the one in the question.

    Source: the discriminator of Clark et al. 2020 (ELECTRA), eq. 2, https://arxiv.org/abs/2003.10555

    Args:
        token_scores: h, the head's output at each token; gradient flows. [B, T]
        original: True where the token is the response's own, False where it was swapped. [B, T] bool
        judged: True at tokens that were candidates for a swap. [B, T] bool
        total_tokens: judged tokens of the whole batch, when this is one of its micro-batches.

    Returns:
        Loss and diagnostics; both 0 when there is no judged token.

    Raises:
        ValueError: shapes differ.
    """
    require_rank(2, token_scores=token_scores)
    require_same_shape(token_scores=token_scores, original=original, judged=judged)
    total = float(judged.sum()) if total_tokens is None else total_tokens
    sign = torch.where(original, 1.0, -1.0)
    # Cleaned before the arithmetic, or a NaN under the mask comes back through the gradient as 0 * NaN.
    signed = zero_outside(at_least_float32(token_scores), judged) * sign
    right = 0.5 + 0.5 * torch.sign(signed.detach())
    # With nothing judged the sum is 0 and keeps its graph, so that every rank has a backward pass to run.
    return ReplacedTokenLoss(
        loss=masked_sum(softplus(-signed), judged) / max(total, 1.0),
        accuracy=masked_sum(right, judged) / max(total, 1.0),
    )
