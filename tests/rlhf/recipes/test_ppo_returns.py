"""The value model learns from returns as they are: whitening is for the advantages alone, and comes last."""

import torch

from rlhf.recipes import ppo
from tests.rlhf.recipes.tiny_ppo import run, write_inputs


def test_whitening_changes_the_advantages_and_leaves_the_returns_alone(tmp_path, monkeypatch):
    inputs = write_inputs(tmp_path / "inputs")
    steps, seen = ppo.take_steps, []

    def watched(learners, rollout, *rest, **named):
        seen.append(rollout)
        return steps(learners, rollout, *rest, **named)

    monkeypatch.setattr(ppo, "take_steps", watched)
    for whiten in (True, False):
        run(inputs, tmp_path / str(whiten), updates=1, warmup_updates=0, whiten=whiten)
    whitened, plain = seen
    mask = plain.batch.response_mask
    assert torch.equal(whitened.returns, plain.returns)
    assert torch.allclose(plain.returns[mask], (plain.advantages + plain.values)[mask], atol=1e-6)
    kept = whitened.advantages[mask]
    assert torch.allclose(kept.mean(), torch.tensor(0.0), atol=1e-5)
    assert not torch.allclose(kept, plain.advantages[mask], atol=1e-3)
