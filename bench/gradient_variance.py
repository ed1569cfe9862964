"""How noisy is the policy gradient of each estimator of advantages? Measured on the same samples for all of them.

    noise = E |g - mean g|^2 / |mean g|^2

over independent batches of rollouts of one policy. 1 means that a batch's gradient is half signal; a batch n times as
large has 1 / n of it. The estimators differ by constants and scales only, so the number does not depend on those.
At the starting policy no token is charged for its divergence, so the reward lies on the last token and reward-to-go is
the full return; a policy that has learnt shows the difference.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf.advantages import rewards_to_go, shape_rewards
from rlhf.batches import Batch
from rlhf.config import load_section
from rlhf.device import choose_device, make_reproducible
from rlhf.logprobs import response_logprobs
from rlhf.losses.policy_gradient import reinforce_loss
from rlhf.losses.value import clipped_value_loss, explained_variance
from rlhf.models import load_policy
from rlhf.policy_gradient_slots import estimate
from rlhf.ppo_config import Config
from rlhf.reference import compare_with_reference
from rlhf.roles import Roles, load_roles
from rlhf.rollout import finish_scores, sample_responses, state_values
from rlhf.row_blocks import in_row_blocks
from rlhf.showcase import Question, read_questions
from rlhf.streams import prompt_indices, random_source

GROUP = 4
ESTIMATORS: dict[str, dict[str, Any]] = {
    "full return": {"advantage": "full_return", "baseline": "none"},
    "reward to go": {"advantage": "reward_to_go", "baseline": "none"},
    "reward to go - mean": {"advantage": "reward_to_go", "baseline": "mean"},
    "reward to go - value": {"advantage": "reward_to_go", "baseline": "value"},
    "GAE 0.95": {"advantage": "gae", "gae_lambda": 0.95},
    "leave one out (4)": {"advantage": "leave_one_out"},
    "group relative (4)": {"advantage": "group_relative"},
    "group centred (4)": {"advantage": "group_centred"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A batch of rollouts as far as estimators read it."""

    batch: Batch
    rewards: Tensor
    logprobs: Tensor
    place: Tensor


def measure(
    project: Path,
    params: Mapping[str, Any],
    policy: Path,
    *,
    batches: int,
    value_batches: int,
    rollouts: int,
    seed: int,
) -> dict[str, Any]:
    """Noise of every estimator at one policy.

    Args:
        project: a finished project.
        params: its parameters; the section `ppo` says how rollouts are made.
        policy: folder of the policy; the reference is `sft` always.
        batches: independent batches of rollouts.
        value_batches: batches that the value model is fitted to before.
        rollouts: responses of a batch, four to each prompt.
        seed: of prompts and samples.

    Returns:
        `estimators`: name -> {noise, low, high} (a jackknife interval); `explained_variance` of the value model.
    """
    make_reproducible(seed)
    settings = {**params["ppo"], "rollouts": rollouts, "minibatch": rollouts, "group_size": GROUP, "whiten": False}
    config = load_section({"ppo": settings}, "ppo", Config)
    models = project / "data/models"
    roles = load_roles(models / "sft", models / "reward", device=choose_device())
    actor = load_policy(policy, device=roles.policy.device)
    limit = min(config.max_prompt_tokens, roles.room(config.max_new_tokens))
    questions, _ = read_questions(project / "data/validated/prompts/train.jsonl", roles.tokenizer, max_tokens=limit)
    samples = _samples(actor, roles, questions, config, seed)
    explained = _fit_values(roles, samples, config, value_batches)
    gradients: dict[str, list[Tensor]] = {name: [] for name in ESTIMATORS}
    estimators = [load_section({"ppo": settings | changed}, "ppo", Config) for changed in ESTIMATORS.values()]
    rows = config.micro_batch or config.step_rollouts
    for _ in range(batches):
        sample = next(samples)
        with torch.no_grad():
            values = in_row_blocks(lambda part: state_values(_value_model(roles), part), sample.batch, rows)
        advantages = [
            estimate(
                chosen, rewards=sample.rewards, values=values, mask=sample.batch.response_mask, place=sample.place
            ).advantages
            for chosen in estimators
        ]
        for name, gradient in zip(ESTIMATORS, _gradients(actor, roles, sample, advantages, config), strict=True):
            gradients[name].append(gradient)
    found = {name: noise(_gram(rows_of)) for name, rows_of in gradients.items()}
    return {"batches": batches, "explained_variance": explained, "estimators": found}


def noise(gram: NDArray[np.float64]) -> dict[str, float]:
    """Relative variance of gradients from their inner products, with a 95 % jackknife interval on its logarithm.

    The squared mean of K gradients holds 1 / K of their variance, which is taken off.

    Args:
        gram: inner products of the gradients of K batches. [K, K]

    Returns:
        `noise`, `low` and `high`; infinite where the mean is lost in the noise.
    """

    def relative(some: NDArray[np.float64]) -> float:
        count = len(some)
        variance = (np.trace(some) - some.sum() / count) / (count - 1)
        signal = some.sum() / count**2 - variance / count
        return float(variance / signal) if signal > 0 else float("inf")

    count, whole = len(gram), relative(gram)
    kept = [np.delete(np.delete(gram, out, axis=0), out, axis=1) for out in range(count)]
    logs = np.log([relative(some) for some in kept])
    if not (np.isfinite(logs).all() and np.isfinite(whole)):
        return {"noise": whole, "low": 0.0, "high": float("inf")}
    error = float(np.sqrt((count - 1) / count * ((logs - logs.mean()) ** 2).sum()))
    return {"noise": whole, "low": whole * float(np.exp(-1.96 * error)), "high": whole * float(np.exp(1.96 * error))}


def _samples(actor: Any, roles: Roles, questions: list[Question], config: Config, seed: int) -> Iterator[Sample]:
    """Endless batches of fresh rollouts, each with prompts of its own."""
    count, rows, number = config.rollouts // GROUP, config.micro_batch or config.step_rollouts, 0
    while True:
        window = prompt_indices(len(questions), start=number * count, length=count, seed=seed)
        asked = [questions[index].ids for index in window for _ in range(GROUP)]
        batch, _, ended, place = sample_responses(
            actor, asked, max_new_tokens=config.max_new_tokens, temperature=config.temperature, stops=roles.stops,
            forbidden=roles.forbidden, pad_id=roles.pad_id, source=random_source(seed, number, 1),
        )  # fmt: skip
        with torch.no_grad():
            scores = finish_scores(
                in_row_blocks(roles.score, batch, rows), ended, missing_eos_penalty=config.missing_eos_penalty,
                reward_clip=config.reward_clip,
            )  # fmt: skip
        old = compare_with_reference(
            actor, roles.reference, batch, roles.forbidden, temperature=config.temperature, rows=rows
        )
        rewards = shape_rewards(scores, old.logprobs, old.ref_logprobs, batch.response_mask, kl_coef=config.kl_coef)
        yield Sample(batch=batch, rewards=rewards, logprobs=old.logprobs, place=place)
        number += 1


def _fit_values(roles: Roles, samples: Iterator[Sample], config: Config, batches: int) -> float:
    """Fit the value model to the policy's own returns; the explained variance of the last batches before each fit."""
    model = _value_model(roles)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.value_learning_rate)
    explained = []
    for _ in range(batches):
        sample = next(samples)
        mask = sample.batch.response_mask
        returns = rewards_to_go(sample.rewards, mask, gamma=config.gamma)
        values = state_values(model, sample.batch)
        explained.append(float(explained_variance(values.detach(), returns, mask)))
        loss = clipped_value_loss(values, values.detach(), returns, mask, clip_range=None).loss
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        optimizer.zero_grad()
    return float(np.mean(explained[-5:])) if explained else float("nan")


def _gradients(actor: Any, roles: Roles, sample: Sample, advantages: list[Tensor], config: Config) -> list[Tensor]:
    """Gradient of the mean of A log pi over the tokens of a batch, for each A; one forward pass for all, [W] each."""
    total = float(sample.batch.response_mask.sum())
    rows, count = config.micro_batch or config.step_rollouts, len(sample.batch.input_ids)
    weights = list(actor.parameters())
    found = [torch.zeros(sum(weight.numel() for weight in weights)) for _ in advantages]
    for start in range(0, count, rows):
        part = sample.batch.rows(start, min(start + rows, count))
        where = (slice(start, start + rows), slice(part.input_ids.shape[1]))
        now = response_logprobs(actor, part, temperature=config.temperature, forbidden=roles.forbidden).logprobs
        for number, some in enumerate(advantages):
            loss = reinforce_loss(now, sample.logprobs[where], some[where], part.response_mask, total_tokens=total).loss
            slopes = torch.autograd.grad(loss, weights, retain_graph=number + 1 < len(advantages))
            found[number] += torch.cat([slope.flatten().cpu() for slope in slopes])
    return found


def _gram(gradients: list[Tensor]) -> NDArray[np.float64]:
    stacked = torch.stack(gradients).double()
    return np.asarray((stacked @ stacked.T).cpu().numpy(), dtype=np.float64)


def _value_model(roles: Roles) -> Any:
    assert roles.value_model is not None
    return roles.value_model
