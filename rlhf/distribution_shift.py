"""How far the policy has moved from the one that sampled, and how much of the samples that leaves.

Samples are used again with the weight pi_now / pi_sampled. The more uneven the weights, the fewer samples really count:
the effective sample size says how many samples of the present policy would estimate a mean as well.

Source: Kong 1992, "A note on importance sampling using standardized weights", University of Chicago, technical report
348 (N_eff = N / (1 + variance of the normalised weights)).
"""

import torch
from torch import Tensor

from rlhf import distributed
from rlhf.kl import LOG_RATIO_LIMIT, kl_k3
from rlhf.masking import masked_sum, zero_outside
from rlhf.shapes import require_rank, require_same_shape

RESPONSE_LIMIT = 300.0
"""Largest |log weight| of a response: e^300 squared is still finite in float64."""


def effective_share(weights: float, squares: float, count: float) -> float:
    """Effective sample size as a share of the samples.

        (sum w)^2 / (N sum w^2)

    Args:
        weights: sum of the weights.
        squares: sum of their squares.
        count: N, how many there are, above 0.

    Returns:
        1 for equal weights, 1 / N when one weight is all; 0 when all weights are 0.

    Raises:
        ValueError: count is not positive.
    """
    if not count > 0:
        raise ValueError(f"count is {count} but there must be a sample")
    return weights**2 / (count * squares) if squares > 0 else 0.0


@torch.no_grad()
def weight_sums(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """Sums of importance weights and of their squares, over tokens and over whole responses.

        w_token = exp(logprobs - old_logprobs),    w_response = product of w_token over its tokens

    Args:
        logprobs: under the policy now, nats. [B, T]
        old_logprobs: under the policy that sampled, nats. [B, T]
        mask: True where the policy sampled the token. [B, T] bool

    Returns:
        Sums that add up over micro-batches and ranks: `tokens`, `token_weights`, `token_squares`, `responses`,
        `response_weights`, `response_squares`.

    Raises:
        ValueError: shapes differ.
    """
    require_rank(2, logprobs=logprobs)
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, mask=mask)
    log_ratio = zero_outside(logprobs, mask).double() - zero_outside(old_logprobs, mask).double()
    tokens = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    responses = log_ratio.sum(dim=1).clamp(-RESPONSE_LIMIT, RESPONSE_LIMIT).exp()
    present = mask.any(dim=1)
    columns = {
        "tokens": mask.sum(), "token_weights": masked_sum(tokens, mask), "token_squares": masked_sum(tokens**2, mask),
        "responses": present.sum(), "response_weights": masked_sum(responses, present),
        "response_squares": masked_sum(responses**2, present),
    }  # fmt: skip
    return {name: float(value) for name, value in columns.items()}


def effective_sizes(sums: dict[str, float]) -> dict[str, float]:
    """Effective shares of tokens and of responses from the summed results of `weight_sums`.

    Args:
        sums: over all micro-batches and ranks.

    Returns:
        `ess_tokens` and `ess_responses`, each in (0, 1]; 0 when there was nothing.
    """
    return {
        f"ess_{name}s": effective_share(sums[f"{name}_weights"], sums[f"{name}_squares"], max(sums[f"{name}s"], 1.0))
        for name in ("token", "response")
    }


@torch.no_grad()
def mean_step_kl(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> float:
    """KL(policy that sampled || policy), mean over the tokens of all ranks.

    The tokens come from the first argument of this KL, so its k3 reads the ratio the other way round than towards the
    reference: (r - 1) - log r with r = policy / policy that sampled.

    Args:
        logprobs: under the policy now, nats. [B, T]
        old_logprobs: under the policy that sampled, nats. [B, T]
        mask: True where the policy sampled the token. [B, T] bool

    Returns:
        Nats per token, at least 0.

    Raises:
        ValueError: shapes differ.
    """
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, mask=mask)
    per_token = kl_k3(zero_outside(old_logprobs, mask), zero_outside(logprobs, mask))
    sums = distributed.reduce_sum({"kl": float(masked_sum(per_token.double(), mask)), "tokens": float(mask.sum())})
    return sums["kl"] / max(sums["tokens"], 1.0)
