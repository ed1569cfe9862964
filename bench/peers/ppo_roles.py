"""Our side of the comparison on PPO: four models and one update, as the recipe `ppo` makes it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.models import EOS, PAD
from bench.peers.ours import RATE, choosing, multiplied, our_settings
from rlhf.advantages import shape_rewards
from rlhf.batches import Batch, collate
from rlhf.engine import Engine, prepare
from rlhf.improvement import Learners
from rlhf.kl import kl_k1
from rlhf.logprobs import response_logprobs
from rlhf.models import load_policy
from rlhf.policy_gradient_slots import estimate
from rlhf.policy_update import make_objectives, take_steps
from rlhf.ppo_config import Config
from rlhf.reference import Comparison, compare_with_reference
from rlhf.reward_model import RewardModel
from rlhf.rollout import Rollout, sample_responses, state_values, whiten_globally
from rlhf.row_blocks import in_row_blocks
from rlhf.schedules import constant

ROLLOUTS, MINIBATCH, EPOCHS = 64, 16, 4
LONGEST = 48
KL_COEF, CLIP_RANGE, LAMBDA = 0.05, 0.2, 0.95


@dataclass(slots=True)
class Measured:
    """What an update computed, in row order of the peer's batch."""

    logprobs: Tensor
    """Of response tokens under the policy that sampled. [N]"""
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor
    """[B]"""
    learnt: dict[str, float]
    sampled_tokens: int
    """Of our own sampling."""
    seconds: dict[str, float] = field(default_factory=dict)
    """CPU seconds of the three parts."""


class Lane:
    """Policy, reference, reward model and value model with the recipe's engines."""

    def __init__(self, policy: Path, reward: Callable[[], RewardModel], matmul: str, *, ends: bool) -> None:
        """Load the four.

        Args:
            policy: folder of the policy, which is the reference too.
            reward: makes the reward model, which the value model starts from.
            matmul: library of the fp32 products.
            ends: whether responses may end before the longest.
        """
        self.matmul, self.stops = matmul, (EOS,) if ends else (-1,)
        schedule = constant(1, warmup_fraction=0.0, final_fraction=1.0)
        settings: dict[str, Any] = {"schedule": schedule, "max_grad_norm": 0.0, "precision": "float32"}

        def engine(model: nn.Module) -> Engine:
            return prepare(multiplied(model, matmul), learning_rate=RATE / 10, **settings)

        self.policy, self.value = engine(load_policy(policy, device="cpu")), engine(reward())
        self.reference = multiplied(load_policy(policy, device="cpu").requires_grad_(False), matmul)
        self.reward = multiplied(reward().requires_grad_(False), matmul)
        self.forbidden = torch.zeros(self.policy.module.config.vocab_size, dtype=torch.bool)
        self.config: Config = our_settings(
            "ppo", Config, rollouts=ROLLOUTS, group_size=1, minibatch=MINIBATCH, micro_batch=None, epochs=EPOCHS,
            temperature=1.0, max_new_tokens=LONGEST, warmup_updates=0, value_warmup_updates=0, advantage="gae",
            baseline="none", whiten=True, objective="clipped", clip_range=CLIP_RANGE, clip_range_high=None,
            dual_clip=None, aggregation="token_mean", value_model="separate", value_clip=CLIP_RANGE, gamma=1.0,
            gae_lambda=LAMBDA, kl_coef=KL_COEF, kl_place="reward", kl_estimator="k1", kl_controller="fixed",
            entropy_coef=0.0, target_kl=None, ptx_coef=0.0, lora_rank=0, mask_cut=False, max_grad_norm=0.0,
            precision="float32",
        )  # fmt: skip

    def update(
        self, prompts: Sequence[list[int]], responses: Sequence[list[int]], order: torch.Generator, draws: int
    ) -> Measured:
        """One update: sample, score, learn.

        Our own responses are sampled and then put aside for the peer's, of which there are as many tokens but for
        chance: so both learn from the same.

        Args:
            prompts: of the peer's batch.
            responses: the peer's.
            order: source of the minibatches.
            draws: seed of our sampling.
        """
        with choosing(self.matmul):
            began = process_time()
            drawn = sample_responses(
                self.policy.module, prompts, max_new_tokens=LONGEST, temperature=1.0, stops=self.stops,
                forbidden=self.forbidden, pad_id=PAD, source=torch.Generator().manual_seed(draws),
            )  # fmt: skip
            sampled = process_time()
            rows = row_order(prompts, responses)
            batch = collate([prompts[row] for row in rows], [responses[row] for row in rows], pad_id=PAD)
            old, scores, rollout = self._score(batch, torch.tensor(rows))
            scored = process_time()
            objectives = make_objectives(
                self.config, self.forbidden, ptx=None, update=0, kl_coef=KL_COEF, step_kl_coef=0.0
            )  # fmt: skip
            learners = Learners(policy=self.policy, value_model=self.value, train_policy=True)
            learnt = take_steps(learners, rollout, objectives, self.config, order=order)
            ended = process_time()
        back, mask = torch.tensor(rows).argsort(), batch.response_mask
        columns = (torch.cat([one[row][mask[row]] for row in back.tolist()]) for one in (*old[:2], rollout.values))
        return Measured(
            *columns, scores[back], learnt, sampled_tokens=int(drawn.batch.response_mask.sum()),
            seconds={"sample": sampled - began, "score": scored - sampled, "learn": ended - scored},
        )  # fmt: skip

    @torch.no_grad()
    def logprobs(self, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> Tensor:
        """Log-probabilities of response tokens, row by row. [N]."""
        batch = collate(prompts, responses, pad_id=PAD)
        found = response_logprobs(self.policy.module, batch, temperature=1.0, forbidden=self.forbidden)
        return found.logprobs[batch.response_mask]

    @torch.no_grad()
    def _score(self, batch: Batch, place: Tensor) -> tuple[Comparison, Tensor, Rollout]:
        """Steps 6 to 9 of the recipe."""
        mask, rows = batch.response_mask, self.config.micro_batch or self.config.step_rollouts
        old = compare_with_reference(
            self.policy.module, self.reference, batch, self.forbidden, temperature=1.0, rows=rows
        )  # fmt: skip
        scores = in_row_blocks(
            lambda part: self.reward(part.input_ids, part.attention_mask, part.response_mask), batch, rows
        )  # fmt: skip
        rewards = shape_rewards(scores, old.logprobs, old.ref_logprobs, mask, estimator=kl_k1, kl_coef=KL_COEF)
        values = in_row_blocks(partial(state_values, self.value), batch, rows)
        advantages, returns = estimate(self.config, rewards=rewards, values=values, mask=mask, place=place)
        # The peer divides by the number of tokens less one.
        count = int(mask.sum())
        advantages = whiten_globally(advantages, mask) * math.sqrt((count - 1) / count)
        rollout = Rollout(
            batch=batch, logprobs=old.logprobs, values=values, advantages=advantages, returns=returns
        )  # fmt: skip
        return old, scores, rollout


def row_order(prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> list[int]:
    """Rows of the peer's batch in our order, shortest first."""
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    return sorted(range(len(lengths)), key=lengths.__getitem__)
