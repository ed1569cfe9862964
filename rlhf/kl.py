"""KL divergence between two policies: per-token estimators, the exact sum over the vocabulary, and its controllers.

The sampled estimators read only the token that was drawn. With x drawn from p and log r = log q(x) - log p(x):

    k1 = -log r              unbiased, can be negative, high variance; the one that belongs into a reward
    k2 = (log r)^2 / 2       biased, low variance; its gradient, unlike those of k1 and k3, is the KL's own: for losses
    k3 = (r - 1) - log r     unbiased, never negative; for monitoring

Source: Schulman 2020, http://joschu.net/blog/kl-approx.html
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf.logprobs import in_chunks, log_softmax
from rlhf.shapes import require_rank, require_same_shape

LOG_RATIO_LIMIT = 20.0
ERROR_LIMIT = 0.2
STEP_KL_FACTOR = 1.5
STEP_KL_LIMITS = (1e-6, 1e6)
"""A coefficient that was halved or doubled without end could not find back."""


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimator k1 of KL(policy || reference), for tokens that the policy sampled.

        k1 = logprobs - ref_logprobs

    Args:
        logprobs: log-probability under the policy that sampled, nats; gradient flows. [...]
        ref_logprobs: the same under the reference, nats. [...]

    Returns:
        Nats per token, of either sign. [...]

    Raises:
        ValueError: shapes differ.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimator k2 of KL(policy || reference), for tokens that the policy sampled.

        k2 = (logprobs - ref_logprobs)^2 / 2

    Its mean gradient over samples of the policy is that of the KL; k1's is zero and k3's is another divergence's.

    Args:
        logprobs: log-probability under the policy that sampled, nats; gradient flows. [...]
        ref_logprobs: the same under the reference, nats. [...]

    Returns:
        Nats per token, at least 0. [...]

    Raises:
        ValueError: shapes differ.
    """
    return 0.5 * kl_k1(logprobs, ref_logprobs) ** 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimator k3 of KL(policy || reference), for tokens that the policy sampled.

        k3 = (r - 1) - log r,    log r = clamp(ref_logprobs - logprobs, -20, 20)

    The clamp keeps one token with a vanishing probability from turning the whole batch infinite.

    Args:
        logprobs: log-probability under the policy that sampled, nats; gradient flows. [...]
        ref_logprobs: the same under the reference, nats. [...]

    Returns:
        Nats per token, at least 0. [...]

    Raises:
        ValueError: shapes differ.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    log_ratio = (ref_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    # expm1 keeps the digits that exp(x) - 1 loses near the common case of almost equal policies.
    return torch.expm1(log_ratio) - log_ratio


def full_kl(logits_p: Tensor, logits_q: Tensor, *, forbidden: Tensor | None, temperature: float) -> Tensor:
    """Exact KL(p || q) of two next-token distributions, summed over the whole vocabulary.

        KL = sum over v of p(v) (log p(v) - log q(v))

    Args:
        logits_p: scores of the policy; gradient flows. [N, V]
        logits_q: scores of the reference; gradient flows. [N, V]
        forbidden: True at ids that neither ever samples; they add nothing. [V] bool, or None
        temperature: divides both logits. > 0

    Returns:
        Nats per token, at least 0 up to rounding. [N] float32

    Raises:
        ValueError: shapes differ, `forbidden` does not fit, or temperature is not positive.
    """
    require_rank(2, logits_p=logits_p)
    require_same_shape(logits_p=logits_p, logits_q=logits_q)

    def measure(rows_p: Tensor, rows_q: Tensor) -> Tensor:
        log_p = log_softmax(rows_p, temperature=temperature, forbidden=forbidden)
        return table_kl(log_p, log_softmax(rows_q, temperature=temperature, forbidden=forbidden), forbidden)

    return in_chunks(measure, logits_p, logits_q, width=logits_p.shape[1])


def table_kl(log_p: Tensor, log_q: Tensor, forbidden: Tensor | None) -> Tensor:
    """`full_kl` from log-probabilities.

    Args:
        log_p: of the policy, from `logprobs.log_softmax`; gradient flows. [..., V]
        log_q: of the reference, as `log_p`. [..., V]
        forbidden: True at ids that neither ever samples; they add nothing. [V] bool, or None

    Returns:
        Nats. [...]
    """
    difference = log_p - log_q
    if forbidden is not None:
        # -inf minus -inf; filled before the product, so that no NaN reaches the gradient either.
        difference = difference.masked_fill(forbidden, 0.0)
    return (log_p.exp() * difference).sum(dim=-1)


class FixedKl:
    """A KL coefficient that never moves."""

    def __init__(self, coef: float) -> None:
        """Keep the coefficient.

        Args:
            coef: reward units per nat, at least 0.

        Raises:
            ValueError: coef is negative or not finite.
        """
        self.coef = _require_coefficient(coef)

    def update(self, kl: float, episodes: int) -> None:
        """Do nothing; here so that the two controllers are used alike.

        Args:
            kl: measured KL, nats per response.
            episodes: responses since the last call.
        """

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a checkpoint.

        Args:
            state: what `state_dict` returned.
        """
        self.coef = _require_coefficient(state["coef"])


class AdaptiveKl:
    """A KL coefficient steered towards a target KL, in proportion to a clipped error.

        error = clip(kl / target - 1, -0.2, 0.2)
        coef <- coef * (1 + error * min(episodes / horizon, 1))

    Without the clip one outlier batch swings the coefficient and the loop oscillates.

    Source: Ziegler et al. 2019, section 2.2, https://arxiv.org/abs/1909.08593 (there 1 / horizon is K_beta per batch).
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        """Start from a coefficient.

        Args:
            coef: first coefficient, reward units per nat, > 0 (zero could never grow).
            target: wanted KL, nats per response, > 0.
            horizon: number of episodes over which an error takes its full effect, > 0.

        Raises:
            ValueError: a number is out of its range.
        """
        if not (coef > 0 and target > 0 and horizon > 0):
            raise ValueError(f"coef {coef}, target {target} and horizon {horizon} must all be positive")
        self.coef = _require_coefficient(coef)
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        """Move the coefficient after a batch.

        Args:
            kl: measured KL, nats per response.
            episodes: responses since the last call.

        Raises:
            ValueError: kl is not finite; it would poison the coefficient for good.
        """
        if not math.isfinite(kl):
            raise ValueError(f"the measured KL is {kl}, so the KL coefficient cannot be updated")
        error = min(max(kl / self.target - 1.0, -ERROR_LIMIT), ERROR_LIMIT)
        self.coef *= 1.0 + error * min(episodes / self.horizon, 1.0)

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a checkpoint; target and horizon stay those of the configuration.

        Args:
            state: what `state_dict` returned.
        """
        self.coef = _require_coefficient(state["coef"])


class StepKl:
    """The price of leaving the policy that sampled, doubled or halved around a target after each update (PPO1).

        coef <- coef / 2   if kl < target / 1.5
        coef <- coef * 2   if kl > target * 1.5

    This is another KL than the one to the reference: it bounds one update, that one the whole run.

    Source: Schulman et al. 2017, section 4, https://arxiv.org/abs/1707.06347
    """

    def __init__(self, coef: float, target: float | None) -> None:
        """Start from a coefficient.

        Args:
            coef: first coefficient, advantage units per nat, at least 0; above 0 with a target.
            target: wanted KL(policy that sampled || policy) after an update, nats per token, > 0; None never moves.

        Raises:
            ValueError: a number is out of its range.
        """
        if target is not None and not (target > 0 and coef > 0):
            raise ValueError(f"coef {coef} and target {target} must both be positive, since coef is only multiplied")
        self.coef = _require_coefficient(coef)
        self.target = target

    def update(self, kl: float) -> None:
        """Move the coefficient after an update.

        Args:
            kl: measured KL(policy that sampled || policy), nats per token.

        Raises:
            ValueError: there is a target and kl is not finite.
        """
        if self.target is None:
            return
        if not math.isfinite(kl):
            raise ValueError(f"the measured KL of the update is {kl}, so its coefficient cannot be updated")
        if kl < self.target / STEP_KL_FACTOR:
            self.coef /= 2
        elif kl > self.target * STEP_KL_FACTOR:
            self.coef *= 2
        self.coef = min(max(self.coef, STEP_KL_LIMITS[0]), STEP_KL_LIMITS[1])

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a checkpoint; the target stays that of the configuration.

        Args:
            state: what `state_dict` returned.
        """
        self.coef = _require_coefficient(state["coef"])


def _require_coefficient(coef: float) -> float:
    if not (math.isfinite(coef) and coef >= 0):
        raise ValueError(f"coef is {coef} but must be a finite number of at least 0")
    return coef
