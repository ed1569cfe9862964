"""Trust region policy optimisation: one step, as long as a bound on the KL to the policy that sampled allows.

Among small steps s with the same KL, the one that raises the surrogate most is in the direction x of F x = g: g is the
surrogate's gradient, F the Fisher matrix of the policy, which is the curvature of the KL. F is never built; conjugate
gradient asks only for its products with vectors. A line search then checks the real surrogate and the real KL.

For models of the embedded size and one process: a step holds the logits of every response token, and a Fisher-vector
product costs about five forward passes.

Source: Schulman et al. 2015, section 6 and appendix C, https://arxiv.org/abs/1502.05477
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlhf import distributed
from rlhf.device import autocast
from rlhf.errors import BadInput
from rlhf.kl import full_kl
from rlhf.logprobs import gather_logprobs, response_logits, scatter_response
from rlhf.losses.policy_gradient import importance_sampled_loss
from rlhf.ranges import require_above_zero, require_at_least
from rlhf.rollout import Rollout
from rlhf.shapes import require_rank, require_same_shape

BACKTRACK = 0.5
"""Each backtrack makes the step shorter by this factor."""
RESIDUAL_TOLERANCE = 1e-10
"""Conjugate gradient stops when the squared residual is this share of the right side's."""


class Solution(NamedTuple):
    """What conjugate gradient found."""

    x: Tensor
    """In the type of the right side. [N]"""
    residual: float
    """|b - A x| / |b|; 0 for b = 0."""


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor], b: Tensor, *, iterations: int, tolerance: float = RESIDUAL_TOLERANCE
) -> Solution:
    """Solve A x = b for a symmetric positive definite matrix that is known by its products only.

    It is exact after N iterations but for rounding, and good after far fewer where eigenvalues cluster.

    Source: Hestenes and Stiefel 1952, https://doi.org/10.6028/jres.049.044

    Args:
        apply: from v to A v. [N] -> [N]
        b: right side. [N]
        iterations: products at most, at least 1.
        tolerance: stop when |b - A x|^2 is at most this times |b|^2; at least 0.

    Returns:
        x and how far A x is from b.

    Raises:
        ValueError: b has not one dimension, `apply` changes the shape, or a number is out of range.
    """
    require_rank(1, b=b)
    require_at_least(1, iterations=iterations)
    require_at_least(0, tolerance=tolerance)
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    start = squared = float(b @ b)
    for _ in range(iterations):
        if not squared > tolerance * start:  # also ends with a NaN
            break
        product = apply(direction)
        require_same_shape(product=product, b=b)
        curvature = float(direction @ product)
        if not curvature > 0:
            break  # rounding has used up what is left of this direction
        length = squared / curvature
        x = x + length * direction
        residual = residual - length * product
        before, squared = squared, float(residual @ residual)
        direction = residual + squared / before * direction
    return Solution(x, math.sqrt(squared / start) if start else 0.0)


def trust_region_step(
    policy: nn.Module,
    rollout: Rollout,
    *,
    max_kl: float,
    damping: float,
    cg_iterations: int = 10,
    backtracks: int = 10,
    temperature: float,
    forbidden: Tensor,
    rows: int,
    precision: str,
) -> dict[str, float]:
    """Change the weights by the longest natural-gradient step that holds KL(old || new) <= max_kl and helps.

        maximise E[r A]  subject to  E[KL(old || new)] <= max_kl,    r = new / old
        step = x sqrt(2 max_kl / x'Fx),    (F + damping I) x = gradient of E[r A]

    Both means are over response tokens (the first over those that the policy learns from), the KL is summed over the
    whole vocabulary. Of the step, of half of it, of a
    quarter and so on, the first is taken that raises E[r A] and keeps the bound; without one the weights stay as they
    were, bit for bit.

    Args:
        policy: a Hugging Face causal language model, its dropout off; weights that require no gradient stay.
        rollout: responses that this very policy sampled. [B, T]
        max_kl: bound, nats per token, above 0.
        damping: added to the diagonal of F, nats per squared unit of weight, at least 0.
        cg_iterations: Fisher-vector products of conjugate gradient, at least 1.
        backtracks: how often the step may be halved, at least 0.
        temperature: that of the sampling, above 0.
        forbidden: True at tokens that are never sampled. [V] bool
        rows: rows of one forward pass; does not change the result but for rounding.
        precision: number format of the forward passes, as in `device.autocast`.

    Returns:
        `step_kl` (nats per token) and `improvement` of E[r A] (advantage units) of the step taken, `step_fraction`
        of the full one (0: none was taken), `backtracks`, `cg_residual`, `grad_norm`, and `skipped`: 1 when a
        gradient was not finite.

    Raises:
        BadInput: there are several ranks.
        ValueError: a number is out of range, or shapes differ.
    """
    require_above_zero(max_kl=max_kl)
    require_at_least(0, damping=damping, backtracks=backtracks)
    require_at_least(1, rows=rows)
    if distributed.world_size() > 1:
        raise BadInput(
            f"objective is trust_region on {distributed.world_size()} ranks, wanted 1, since Fisher-vector products "
            "are made by one process; use launch: python, or objective: clipped"
        )
    problem = TrustRegion(policy, rollout, temperature=temperature, forbidden=forbidden, rows=rows, precision=precision)
    gradient = problem.gradient()
    report = {
        "step_kl": 0.0, "improvement": 0.0, "step_fraction": 0.0, "backtracks": 0.0, "cg_residual": 0.0,
        "grad_norm": float(gradient.norm()), "skipped": 0.0,
    }  # fmt: skip
    if report["grad_norm"] == 0:
        return report
    solution = conjugate_gradient(
        lambda vector: problem.fisher_product(vector) + damping * vector, gradient, iterations=cg_iterations
    )
    report["cg_residual"] = solution.residual
    curvature = float(solution.x @ problem.fisher_product(solution.x))
    if not (curvature > 0 and math.isfinite(curvature)):
        return report | {"skipped": 1.0}
    step = solution.x * math.sqrt(2 * max_kl / curvature)
    return report | _line_search(problem, step, max_kl=max_kl, backtracks=backtracks)


@dataclass(frozen=True, slots=True)
class _Place:
    """Weights and what they say about the rollout."""

    weights: list[Tensor]
    logits: list[Tensor]
    """Of the response tokens of each part. [N, V]"""
    surrogate: float


class TrustRegion:
    """Surrogate, its gradient and the curvature of the KL, of one policy on one rollout, in parts of some rows."""

    def __init__(
        self, policy: nn.Module, rollout: Rollout, *, temperature: float, forbidden: Tensor, rows: int, precision: str
    ) -> None:
        """See `trust_region_step`."""
        self.policy = policy
        self.weights = [weight for weight in policy.parameters() if weight.requires_grad]
        self.parts = rollout.parts(rows)
        self.tokens, self.learnt = float(rollout.batch.response_mask.sum()), float(rollout.policy_mask.sum())
        self.temperature, self.forbidden, self.precision = temperature, forbidden, precision

    def gradient(self) -> Tensor:
        """Gradient of the mean of r A. [W] float64, W weights."""
        total = self._zeros()
        with sdpa_kernel(SDPBackend.MATH):
            for part in self.parts:
                found = torch.autograd.grad(self._surrogate(part, self._logits(part)), self.weights)
                total += _flat(found)
        return total

    def fisher_product(self, vector: Tensor) -> Tensor:
        """F v: the gradient of (gradient of the mean KL) . v, at the policy itself.

        There KL(old || new) is 0 with gradient 0, and its second derivative is the Fisher matrix. The fused attention
        kernels have no second derivative, so the plain one runs here.

        Args:
            vector: of the weights that require a gradient, in their order. [W] float64

        Returns:
            The product, not damped. [W] float64
        """
        pieces = self._pieces(vector)
        total = self._zeros()
        with sdpa_kernel(SDPBackend.MATH):
            for part in self.parts:
                logits = self._logits(part)
                slopes = torch.autograd.grad(self._kl(logits.detach(), logits), self.weights, create_graph=True)
                along = sum((slope * piece).sum() for slope, piece in zip(slopes, pieces, strict=True))
                assert isinstance(along, Tensor)
                total += _flat(torch.autograd.grad(along, self.weights))
        return total

    @torch.no_grad()
    def here(self) -> _Place:
        """The policy as it is now."""
        with sdpa_kernel(SDPBackend.MATH):
            logits = [self._logits(part) for part in self.parts]
        surrogate = sum(float(self._surrogate(*pair)) for pair in zip(self.parts, logits, strict=True))
        return _Place([weight.detach().clone() for weight in self.weights], logits, surrogate)

    @torch.no_grad()
    def gain_and_kl(self, start: _Place) -> tuple[float, float]:
        """How much better the surrogate is than at `start`, and mean KL(start || now), nats per token."""
        gain, kl = -start.surrogate, 0.0
        with sdpa_kernel(SDPBackend.MATH):
            for part, old in zip(self.parts, start.logits, strict=True):
                logits = self._logits(part)
                gain += float(self._surrogate(part, logits))
                kl += float(self._kl(old, logits))
        return gain, kl

    @torch.no_grad()
    def move(self, start: _Place, step: Tensor) -> None:
        """Set the weights to those of `start` plus a step, [W]."""
        for weight, old, piece in zip(self.weights, start.weights, self._pieces(step), strict=True):
            weight.copy_(old + piece)

    @torch.no_grad()
    def restore(self, start: _Place) -> None:
        """Set the weights to exactly those of `start`."""
        for weight, old in zip(self.weights, start.weights, strict=True):
            weight.copy_(old)

    def _logits(self, part: Rollout) -> Tensor:
        with autocast(part.logprobs.device, self.precision):
            return response_logits(self.policy, part.batch)

    def _surrogate(self, part: Rollout, logits: Tensor) -> Tensor:
        """This part's share of the mean of r A over the tokens that the policy learns from."""
        mask = part.batch.response_mask
        ids = part.batch.input_ids[mask]
        values = gather_logprobs(logits, ids, temperature=self.temperature, forbidden=self.forbidden)
        found = importance_sampled_loss(
            scatter_response(values, mask), part.logprobs, part.advantages, part.policy_mask, total_tokens=self.learnt
        )
        return -found.loss

    def _kl(self, old: Tensor, new: Tensor) -> Tensor:
        """This part's share of the mean KL(old || new)."""
        return full_kl(old, new, temperature=self.temperature, forbidden=self.forbidden).sum() / self.tokens

    def _zeros(self) -> Tensor:
        return self.weights[0].new_zeros(sum(weight.numel() for weight in self.weights), dtype=torch.float64)

    def _pieces(self, vector: Tensor) -> list[Tensor]:
        """A flat vector in the shapes and types of the weights."""
        parts = torch.split(vector, [weight.numel() for weight in self.weights])
        return [part.view_as(weight).to(weight.dtype) for part, weight in zip(parts, self.weights, strict=True)]


def _line_search(problem: TrustRegion, step: Tensor, *, max_kl: float, backtracks: int) -> dict[str, float]:
    """Take the longest of the tried fractions of a step that improves and keeps the bound, or none."""
    start = problem.here()
    for tried in range(backtracks + 1):
        fraction = BACKTRACK**tried
        problem.move(start, fraction * step)
        gain, kl = problem.gain_and_kl(start)
        if gain > 0 and kl <= max_kl:  # false for NaN
            return {"step_kl": kl, "improvement": gain, "step_fraction": fraction, "backtracks": float(tried)}
    problem.restore(start)
    return {"backtracks": float(backtracks)}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
