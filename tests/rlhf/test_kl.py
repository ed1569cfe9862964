"""KL estimators against sums over a small vocabulary worked by hand, and the controllers."""

import math

import pytest
import torch
from torch import Tensor

import rlhf.logprobs
from rlhf.kl import AdaptiveKl, FixedKl, StepKl, full_kl, kl_k1, kl_k2, kl_k3

ATOL = 1e-6
P = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
# 0.5 ln 2 + 0.25 ln 1 + 0.25 ln 0.5 = 0.5 ln 2 - 0.25 ln 2 = 0.25 ln 2
KL_P_Q = 0.25 * math.log(2)


def test_estimators_by_hand() -> None:
    logprobs, ref_logprobs = torch.log(torch.tensor([0.5, 0.2])), torch.log(torch.tensor([0.25, 0.4]))
    ln2 = math.log(2)
    # log p - log q: ln 2 and -ln 2
    assert kl_k1(logprobs, ref_logprobs).tolist() == pytest.approx([ln2, -ln2], abs=ATOL)
    # (ln 2)^2 / 2 for both
    assert kl_k2(logprobs, ref_logprobs).tolist() == pytest.approx([ln2**2 / 2, ln2**2 / 2], abs=ATOL)
    # r = 1/2: 0.5 - 1 + ln 2 = 0.1931; r = 2: 2 - 1 - ln 2 = 0.3069
    assert kl_k3(logprobs, ref_logprobs).tolist() == pytest.approx([ln2 - 0.5, 1 - ln2], abs=ATOL)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_k1_and_k3_are_unbiased(estimator: object) -> None:
    assert callable(estimator)
    # The expectation over tokens of p, exactly, as a sum weighted by p.
    assert float((P * estimator(P.log(), Q.log())).sum()) == pytest.approx(KL_P_Q, abs=1e-12)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k2, kl_k3])
def test_equal_policies_have_no_kl(estimator: object) -> None:
    assert callable(estimator)
    assert estimator(P.log(), P.log()).tolist() == [0, 0, 0]


def gradient_in_expectation(estimator: object, logits: Tensor) -> Tensor:
    """Gradient of an estimator used as a loss, tokens drawn from the (fixed) policy, by exact expectation."""
    assert callable(estimator)
    leaf = logits.clone().requires_grad_()
    logprobs = torch.log_softmax(leaf, 0)
    (logprobs.exp().detach() * estimator(logprobs, Q.log())).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def test_only_k2_has_the_gradient_of_the_kl_when_used_as_a_loss() -> None:
    leaf = P.log().requires_grad_()
    logprobs = torch.log_softmax(leaf, 0)
    (logprobs.exp() * (logprobs - Q.log())).sum().backward()
    assert leaf.grad is not None
    assert torch.allclose(gradient_in_expectation(kl_k2, P.log()), leaf.grad, atol=1e-12)
    assert torch.allclose(gradient_in_expectation(kl_k1, P.log()), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert not torch.allclose(gradient_in_expectation(kl_k3, P.log()), leaf.grad, atol=1e-2)


def test_k3_survives_a_vanishing_probability() -> None:
    logprobs = torch.tensor([-200.0]).requires_grad_()
    estimate = kl_k3(logprobs, torch.tensor([0.0]))
    estimate.sum().backward()
    # log r = 200 is held at 20: e^20 - 1 - 20
    assert estimate.item() == pytest.approx(math.exp(20) - 21, rel=1e-6)
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()


def test_k3_keeps_its_digits_for_policies_that_are_nearly_equal() -> None:
    # r = e^0.001: 1 + d + d^2/2 + d^3/6 - 1 - d = 5.00166708e-7; exp(x) - 1 in float32 would give about 4.7e-7
    assert kl_k3(torch.tensor([0.0]), torch.tensor([1e-3])).item() == pytest.approx(5.0016671e-7, rel=1e-3)


def test_the_published_but_wrong_formula_is_not_a_kl() -> None:
    # sum of exp(log q)(log q - log p) over tokens that p sampled: here in expectation over p, against KL(p || q)
    wrong = float((P * (Q * (Q.log() - P.log()))).sum())
    # 0.5*0.25*ln(1/2) + 0 + 0.25*0.5*ln 2 = 0, although p and q differ
    assert wrong == pytest.approx(0, abs=1e-12)
    assert KL_P_Q > 0.17


def test_full_kl_by_hand() -> None:
    found = full_kl(P.log()[None], Q.log()[None], forbidden=None, temperature=1.0)
    assert found.tolist() == pytest.approx([KL_P_Q], abs=1e-12)
    shifted = full_kl(P.log()[None], P.log()[None] + 3, forbidden=None, temperature=1.0)
    assert shifted.item() == pytest.approx(0, abs=ATOL)


def test_full_kl_reads_what_is_sampled_only() -> None:
    # Without the last id: p = (2/3, 1/3), q = (1/2, 1/2); 2/3 ln 4/3 + 1/3 ln 2/3
    forbidden = torch.tensor([False, False, True])
    leaf = P.log()[None].clone().requires_grad_()
    found = full_kl(leaf, Q.log()[None], forbidden=forbidden, temperature=1.0)
    assert found.item() == pytest.approx(2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3), abs=1e-12)
    found.sum().backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    assert leaf.grad[0, 2] == 0


def test_full_kl_at_a_temperature() -> None:
    # Temperature 2 takes square roots: p from (4, 1) to (2/3, 1/3), q stays (1/2, 1/2).
    p, q = torch.log(torch.tensor([[4.0, 1.0]])), torch.zeros(1, 2)
    wanted = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert full_kl(p, q, forbidden=None, temperature=2.0).item() == pytest.approx(wanted, abs=ATOL)


def test_full_kl_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    whole = full_kl(p, q, forbidden=None, temperature=1.0)
    monkeypatch.setattr(rlhf.logprobs, "CHUNK_ELEMENTS", 10)
    assert torch.allclose(full_kl(p, q, forbidden=None, temperature=1.0), whole, atol=ATOL)


def test_full_kl_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(2, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    forbidden = torch.tensor([False, True, False, False])
    assert torch.autograd.gradcheck(lambda a, b: full_kl(a, b, forbidden=forbidden, temperature=0.7), (p, q))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ref_logprobs has shape \(2,\) but logprobs has \(3,\)"):
        kl_k3(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"logits_q has shape \(1, 4\) but logits_p has \(1, 3\)"):
        full_kl(torch.zeros(1, 3), torch.zeros(1, 4), forbidden=None, temperature=1.0)


def test_adaptive_coefficient_by_hand() -> None:
    controller = AdaptiveKl(0.1, target=6.0, horizon=10_000)
    # KL 12: error 1 clipped to 0.2; 0.1 * (1 + 0.2 * 512 / 10000) = 0.101024
    controller.update(12.0, 512)
    assert controller.coef == pytest.approx(0.101024, abs=1e-12)
    # KL 6.6: error 0.1; times 1 + 0.1 * 1000 / 10000 = 1.01
    controller.update(6.6, 1000)
    assert controller.coef == pytest.approx(0.101024 * 1.01, abs=1e-12)
    # A KL below zero (k1 may be): error clipped to -0.2
    controller.update(-50.0, 10_000)
    assert controller.coef == pytest.approx(0.101024 * 1.01 * 0.8, abs=1e-12)


def test_adaptive_coefficient_rests_at_the_target_and_stays_positive() -> None:
    controller = AdaptiveKl(0.1, target=2.0, horizon=10)
    controller.update(2.0, 1000)
    assert controller.coef == 0.1
    for _ in range(50):
        controller.update(0.0, 1000)
    assert 0 < controller.coef < 1e-5


def test_controllers_continue_from_their_state() -> None:
    first = AdaptiveKl(0.1, target=2.0, horizon=100)
    first.update(5.0, 50)
    second = AdaptiveKl(0.7, target=2.0, horizon=100)
    second.load_state_dict(first.state_dict())
    first.update(1.0, 50)
    second.update(1.0, 50)
    assert second.coef == first.coef
    fixed = FixedKl(0.05)
    fixed.update(100.0, 64)
    assert fixed.coef == 0.05
    other = FixedKl(0.3)
    other.load_state_dict(fixed.state_dict())
    assert other.coef == 0.05


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        FixedKl(-0.1)
    with pytest.raises(ValueError, match="positive"):
        AdaptiveKl(0.0, target=1.0, horizon=1.0)
    with pytest.raises(ValueError, match="measured KL is nan"):
        AdaptiveKl(0.1, target=1.0, horizon=1.0).update(math.nan, 1)


def test_the_price_of_an_update_doubles_and_halves_around_its_target() -> None:
    price = StepKl(1.0, 0.03)
    # Above 0.045 it doubles, below 0.02 it halves, between them it rests.
    for kl, wanted in ((0.046, 2.0), (0.044, 2.0), (0.021, 2.0), (0.019, 1.0), (0.0, 0.5)):
        price.update(kl)
        assert price.coef == wanted, kl


def test_the_price_of_an_update_stays_within_reach() -> None:
    price = StepKl(1.0, 0.03)
    for _ in range(100):
        price.update(0.0)
    assert price.coef == 1e-6
    for _ in range(100):
        price.update(1.0)
    assert price.coef == 1e6


def test_the_price_of_an_update_continues_from_its_state_and_rests_without_a_target() -> None:
    price = StepKl(1.0, 0.03)
    price.update(1.0)
    again = StepKl(1.0, 0.03)
    again.load_state_dict(price.state_dict())
    assert again.coef == 2.0
    fixed = StepKl(0.5, None)
    fixed.update(math.nan)
    assert fixed.coef == 0.5


def test_bad_prices_of_an_update_are_refused() -> None:
    with pytest.raises(ValueError, match=r"coef 0\.0 and target 0\.1 must both be positive"):
        StepKl(0.0, 0.1)
    with pytest.raises(ValueError, match="target 0 must both"):
        StepKl(1.0, 0)
    with pytest.raises(ValueError, match="measured KL of the update is nan"):
        StepKl(1.0, 0.1).update(math.nan)
    with pytest.raises(ValueError, match="coef is -1"):
        StepKl(-1, None)
