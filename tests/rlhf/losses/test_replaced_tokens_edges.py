"""The accuracy of a one-sided batch, a batch with nothing to judge, and each refused shape."""

import pytest
import torch

from rlhf.losses.replaced_tokens import replaced_token_loss

NAMES = ("token_scores", "original", "judged")


def test_accuracy_counts_right_signs_and_half_of_those_that_say_nothing() -> None:
    # Right, right, right, nothing, wrong: 3.5 of 5.
    scores = torch.tensor([[2.0, -1.0, 0.5, 0.0, 3.0]])
    original = torch.tensor([[True, False, True, True, False]])
    found = replaced_token_loss(scores, original, torch.ones(1, 5, dtype=torch.bool))
    assert float(found.accuracy) == pytest.approx(0.7)
    assert not found.accuracy.requires_grad


def test_with_nothing_to_judge_both_are_0_and_a_backward_pass_still_runs() -> None:
    scores = torch.tensor([[2.0, -1.0]], requires_grad=True)
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    found = replaced_token_loss(scores, nothing, nothing)
    found.loss.backward()
    assert (float(found.loss.detach()), float(found.accuracy)) == (0, 0)
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0]]


@pytest.mark.parametrize("name", NAMES)
def test_each_shape_is_checked(name: str) -> None:
    tensors = {key: torch.ones(2, 3, dtype=torch.bool) for key in NAMES} | {"token_scores": torch.ones(2, 3)}
    tensors[name] = tensors[name][:, :1]
    first, other = NAMES[0], name if name != NAMES[0] else NAMES[1]
    with pytest.raises(ValueError, match=rf"^{other} has shape \(\d, \d\) but {first} has \(\d, \d\)"):
        replaced_token_loss(**tensors)
    with pytest.raises(ValueError, match=r"^token_scores has shape \(3,\) but must have 2 dimensions"):
        replaced_token_loss(*(torch.ones(3) for _ in NAMES))
