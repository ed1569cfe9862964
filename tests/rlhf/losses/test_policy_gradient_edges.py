"""The objectives at the ends of their ranges, in shares of a batch, and in every refused shape."""

from functools import partial

import pytest
import torch
from torch import Tensor

from rlhf.losses.policy_gradient import (
    clipped_penalised_loss,
    clipped_policy_loss,
    importance_sampled_loss,
    penalised_loss,
    reinforce_loss,
)

CLIP = {"clip_range_low": 0.2, "clip_range_high": 0.2, "dual_clip": None}
OBJECTIVES = {
    "clipped": partial(clipped_policy_loss, **CLIP),
    "clipped_penalised": partial(clipped_penalised_loss, **CLIP, step_kl_coef=1.0),
    "penalised": partial(penalised_loss, step_kl_coef=1.0),
    "importance_sampled": importance_sampled_loss,
    "reinforce": reinforce_loss,
}
NAMES = ("logprobs", "old_logprobs", "advantages", "response_mask")


def ratio_of(*ratios: float) -> tuple[Tensor, Tensor]:
    """New and old log-probabilities with these ratios, one row."""
    new = torch.tensor([ratios], dtype=torch.float64).log()
    return new, torch.zeros_like(new)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", NAMES[1:])
def test_each_shape_is_checked(objective: str, name: str) -> None:
    tensors = {key: torch.zeros(2, 3) for key in NAMES} | {"response_mask": torch.ones(2, 3, dtype=torch.bool)}
    tensors[name] = tensors[name][:, :1]
    with pytest.raises(ValueError, match=rf"^{name} has shape \(2, 1\) but logprobs has \(2, 3\)"):
        OBJECTIVES[objective](**tensors)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_diagnostics_are_shares_of_the_whole_batch(objective: str) -> None:
    new, old = ratio_of(1.5, 0.5)
    mask = torch.ones(1, 2, dtype=torch.bool)
    whole = OBJECTIVES[objective](new, old, row(1.0, -1.0), mask)
    part = OBJECTIVES[objective](new, old, row(1.0, -1.0), mask, total_tokens=8)
    for name in ("loss", "clip_fraction", "approx_kl", "mean_ratio"):
        assert float(getattr(part, name)) == pytest.approx(float(getattr(whole, name)) / 4), name
    assert float(part.max_ratio_error) == pytest.approx(0.5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_another_aggregation_is_used_where_one_is_given(objective: str) -> None:
    new, old = ratio_of(1.5, 0.5)
    mask = torch.ones(1, 2, dtype=torch.bool)
    whole = OBJECTIVES[objective](new, old, row(1.0, -1.0), mask)
    summed = OBJECTIVES[objective](new, old, row(1.0, -1.0), mask, aggregate=lambda loss, where: loss[where].sum())
    assert float(summed.loss) == pytest.approx(2 * float(whole.loss))


def test_diagnostics_by_hand() -> None:
    # k3 of KL(old || new) is (r - 1) - ln r: 0.5 - ln 1.5 and -0.5 - ln 0.5; mean ratio (1.5 + 0.5 + 1) / 3.
    new, old = ratio_of(1.5, 0.5, 1.0)
    found = importance_sampled_loss(new, old, row(1.0, 1.0, 1.0), torch.ones(1, 3, dtype=torch.bool))
    assert float(found.approx_kl) == pytest.approx((0.0945348919 + 0.1931471806) / 3)
    assert float(found.mean_ratio) == pytest.approx(1.0)
    assert float(found.clip_fraction) == 0.0
    assert not any(value.requires_grad for value in found[1:])


@pytest.mark.parametrize(
    ("ratio", "advantage", "cut"),
    [(1.3, 1.0, 1), (1.3, -1.0, 0), (0.7, 1.0, 0), (0.7, -1.0, 1), (1.1, 1.0, 0), (0.9, -1.0, 0), (1.3, 0.0, 0),
     (0.7, 0.0, 0)],
)  # fmt: skip
def test_a_token_counts_as_clipped_where_the_bound_replaces_its_ratio(ratio: float, advantage: float, cut: int) -> None:
    new, old = ratio_of(ratio)
    found = clipped_policy_loss(new, old, row(advantage), torch.ones(1, 1, dtype=torch.bool), **CLIP)
    assert float(found.clip_fraction) == cut


def test_dual_clip_counts_the_tokens_that_it_bounds() -> None:
    # A = -1: r = 4 costs 3 instead of 4; r = 2 costs 2. With A = 1 the usual bound replaces both: 1.2 each.
    new, old = ratio_of(4.0, 2.0, 4.0, 2.0)
    dual = CLIP | {"dual_clip": 3.0}
    found = clipped_policy_loss(new, old, row(-1.0, -1.0, 1.0, 1.0), torch.ones(1, 4, dtype=torch.bool), **dual)
    assert float(found.loss) == pytest.approx((3 + 2 - 1.2 - 1.2) / 4)
    assert float(found.clip_fraction) == 0.75


def test_the_ends_of_the_ranges() -> None:
    new, old = ratio_of(0.1)
    one = torch.ones(1, 1, dtype=torch.bool)
    assert float(clipped_policy_loss(new, old, row(-1.0), one, **(CLIP | {"clip_range_low": 1.0})).loss) == (
        pytest.approx(0.1)
    )
    for changed in ({"clip_range_low": 0.0}, {"clip_range_low": 1.01}, {"clip_range_high": 0.0}):
        with pytest.raises(ValueError, match="clip_range_low is"):
            clipped_policy_loss(new, old, row(1.0), one, **(CLIP | changed))
    with pytest.raises(ValueError, match=r"dual_clip is 1\.2"):
        clipped_policy_loss(new, old, row(1.0), one, **(CLIP | {"dual_clip": 1.2}))
    assert float(penalised_loss(new, old, row(-1.0), one, step_kl_coef=0.0).loss) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"step_kl_coef is -0\.1"):
        penalised_loss(new, old, row(1.0), one, step_kl_coef=-0.1)


def test_a_ratio_that_ran_away_stays_finite_on_both_sides() -> None:
    # |log ratio| is bounded by 20, so the ratios are e^20 and e^-20.
    new, old = row(50.0, -50.0), row(0.0, 0.0)
    found = importance_sampled_loss(new, old, row(1.0, 1.0), torch.ones(1, 2, dtype=torch.bool))
    assert float(found.mean_ratio) == pytest.approx((2.718281828459045**20 + 2.718281828459045**-20) / 2)
