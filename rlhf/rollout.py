"""What a policy did on a batch of prompts, and what the other three roles say about it.

Each function adds one thing: the sampled batch, its scores, its log-probabilities under policy and reference, its
values. All of them work on the ids that were sampled; nothing is decoded and encoded again on the way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf import distributed
from rlhf.batches import Batch, collate
from rlhf.generation import Finished, generate
from rlhf.kl import kl_k1
from rlhf.logprobs import scatter_response
from rlhf.losses.value import explained_variance
from rlhf.masking import VARIANCE_FLOOR, masked_sum, masked_whiten, zero_outside
from rlhf.reference import Comparison


class Sampled(NamedTuple):
    """A batch of fresh responses, shortest row first, so that neighbours need little padding."""

    batch: Batch
    captured: Tensor
    """Log-probabilities as the generator saw them, nats, 0 outside the response. [B, T] float32"""
    ended: Tensor
    """True where the response ended by a stop token, False where it was cut. [B] bool"""
    place: Tensor
    """Which of the prompts each row answers. [B] int64"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Everything that the epochs of one update read. No field carries a gradient; all but masks are float32."""

    batch: Batch
    logprobs: Tensor
    """log pi(token) under the policy that sampled, nats. [B, T]"""
    values: Tensor
    """V of the state in which the token was chosen, reward units, before the update; 0 without values. [B, T]"""
    advantages: Tensor
    """Of tokens; of all that was estimated the policy reads nothing else. [B, T]"""
    returns: Tensor
    """Targets of the value model, reward units. [B, T]"""
    ref_logprobs: Tensor | None = None
    """log pi(token) under the reference, nats, where the KL to it is part of the loss. [B, T]"""
    learn_mask: Tensor | None = None
    """Response tokens that the policy learns from; None for all of them. [B, T] bool"""

    def __len__(self) -> int:
        """Number of responses on this rank."""
        return self.batch.input_ids.shape[0]

    @property
    def policy_mask(self) -> Tensor:
        """True at the tokens that the policy learns from. [B, T] bool."""
        return self.batch.response_mask if self.learn_mask is None else self.learn_mask

    def parts(self, size: int | None) -> list["Rollout"]:
        """The rollout in row order, in parts of `size` rows; None for one part."""
        size = size or len(self)
        return [self.take(range(start, min(start + size, len(self)))) for start in range(0, len(self), size)]

    def take(self, rows: Sequence[int]) -> "Rollout":
        """Some rows as a rollout, cut to the longest of them."""
        index = torch.tensor(list(rows), device=self.batch.input_ids.device)
        width = int(self.batch.attention_mask[index].sum(dim=1).max())

        def cut(tensor: Tensor) -> Tensor:
            return tensor[index, :width]

        return Rollout(
            batch=Batch(cut(self.batch.input_ids), cut(self.batch.attention_mask), cut(self.batch.response_mask)),
            logprobs=cut(self.logprobs),
            values=cut(self.values),
            advantages=cut(self.advantages),
            returns=cut(self.returns),
            ref_logprobs=None if self.ref_logprobs is None else cut(self.ref_logprobs),
            learn_mask=None if self.learn_mask is None else cut(self.learn_mask),
        )


def sample_responses(
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    stops: Sequence[int],
    forbidden: Tensor,
    pad_id: int,
    source: torch.Generator,
    finished: Finished | None = None,
) -> Sampled:
    """Sample one response to each prompt and lay both end to end.

    Args:
        policy: what answers.
        prompts: token ids of B prompts.
        max_new_tokens: longest response, tokens.
        temperature: divides the logits, above 0.
        stops: tokens that end a response; nothing follows them.
        forbidden: True at tokens that are never sampled. [V] bool
        pad_id: id written into the padding.
        source: of the random numbers.
        finished: told of each response as soon as it is complete, while others are still being sampled.

    Returns:
        The batch on the policy's device.
    """
    drawn = generate(
        policy, prompts, max_new_tokens=max_new_tokens, temperature=temperature, stop_ids=stops, forbidden=forbidden,
        pad_id=pad_id, generator=source, finished=finished,
    )  # fmt: skip
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, drawn.responses, strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch = collate([prompts[row] for row in order], [drawn.responses[row] for row in order], pad_id=pad_id)
    captured = torch.tensor([value for row in order for value in drawn.logprobs[row]], dtype=torch.float32)
    ended = torch.tensor([drawn.ended[row] for row in order])
    device = policy.device
    aligned = scatter_response(captured, batch.response_mask).to(device)
    return Sampled(batch.to(device), aligned, ended.to(device), torch.tensor(order, device=device))


@torch.no_grad()
def finish_scores(scores: Tensor, ended: Tensor, *, missing_eos_penalty: float, reward_clip: float | None) -> Tensor:
    """Scores of whole responses, bounded, and a fixed bad score for those that were cut.

    The score of a cut response is replaced, not lowered: a reward model has seen finished replies only, and what it
    says about half of one means nothing.

    Args:
        scores: weighted sums of the signals, reward units. [B]
        ended: True where the response ended by itself. [B] bool
        missing_eos_penalty: what a cut response scores below 0, reward units; at least 0.
        reward_clip: scores are clamped to +- this; None for never.

    Returns:
        Scores, reward units: of a single reward model, standard deviations of reference replies. [B]
    """
    if reward_clip is not None:
        scores = scores.clamp(-reward_clip, reward_clip)
    return torch.where(ended, scores, torch.full_like(scores, -missing_eos_penalty))


def state_values(value_model: Callable[[Tensor, Tensor], Tensor], batch: Batch) -> Tensor:
    """Value of the state in which each response token was chosen.

    A value model says at position t what it expects after token t, so token t was chosen in the state of t - 1.

    Args:
        value_model: from ids and attention mask to one number per position; gradient flows.
        batch: prompts and responses. [B, T]

    Returns:
        Values, reward units, 0 outside the response. [B, T]
    """
    scores = value_model(batch.input_ids, batch.attention_mask)
    return zero_outside(torch.cat((torch.zeros_like(scores[:, :1]), scores[:, :-1]), dim=1), batch.response_mask)


def whiten_globally(advantages: Tensor, response_mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the response tokens of all ranks, so that results do not depend on their number.

    Args:
        advantages: this rank's. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool

    Returns:
        Whitened advantages, 0 outside the response; all 0 where no token is left. [B, T]
    """
    kept = zero_outside(advantages, response_mask).double()
    first = distributed.reduce_sum({"sum": float(kept.sum()), "count": float(response_mask.sum())})
    if first["count"] == 0:
        return torch.zeros_like(advantages)
    if distributed.world_size() == 1:
        return masked_whiten(advantages, response_mask)
    centred = kept - first["sum"] / first["count"]
    squares = distributed.reduce_sum({"squares": float(masked_sum(centred**2, response_mask))})["squares"]
    scale = (squares / first["count"] + VARIANCE_FLOOR) ** -0.5
    return zero_outside((centred * scale).to(advantages.dtype), response_mask)


def spread_globally(advantages: Tensor, mask: Tensor) -> float:
    """Standard deviation over the True positions of all ranks.

    Args:
        advantages: this rank's, before whitening. [B, T]
        mask: True where the policy learns from the token. [B, T] bool

    Returns:
        In the units of the advantages; 0 when no position is True.
    """
    kept = zero_outside(advantages, mask).double()
    sums = distributed.reduce_sum({"sum": float(kept.sum()), "count": float(mask.sum())})
    count = max(sums["count"], 1.0)
    squares = distributed.reduce_sum({"squares": float(masked_sum((kept - sums["sum"] / count) ** 2, mask))})
    return float((squares["squares"] / count) ** 0.5)


def explained_globally(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """`losses.value.explained_variance` over the response tokens of all ranks.

    Args:
        values: this rank's, reward units. [B, T]
        returns: this rank's, reward units. [B, T]
        mask: True where the policy sampled the token. [B, T] bool
    """
    if distributed.world_size() == 1:
        return float(explained_variance(values, returns, mask))
    spread, unexplained = spread_globally(returns, mask), spread_globally(returns - values, mask)
    return 1 - (unexplained / spread) ** 2 if spread > 0 else 0.0


def describe(
    old: Comparison,
    batch: Batch,
    captured: Tensor,
    *,
    rewards: Tensor,
    scores: Tensor,
    ended: Tensor,
    values: Tensor | None,
    returns: Tensor,
    signals: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """What is recorded of a rollout: means over the responses, or over the response tokens, of all ranks.

    Args:
        old: policy and reference on the sampled tokens.
        batch: prompts and responses. [B, T]
        captured: log-probabilities as the generator saw them, nats. [B, T]
        rewards: rewards of tokens, reward units. [B, T]
        scores: of responses, reward units. [B]
        ended: True where the response ended by itself. [B] bool
        values: of states, reward units; None where nothing learns values. [B, T]
        returns: targets of the value model, reward units. [B, T]
        signals: what the scores are made of, each recorded as `reward_NAME`. [B] each

    Returns:
        Metrics by name; `docs/metrics.md` explains each.
    """
    mask = batch.response_mask
    measured = {
        "reward": rewards.sum(dim=1),
        "score": scores,
        "kl": old.kl.sum(dim=1),
        "kl_k1": kl_k1(old.logprobs, old.ref_logprobs).sum(dim=1),
        "entropy": old.entropy[mask],
        "length_tokens": mask.sum(dim=1),
        "end_rate": ended,
        "sampler_gap": (captured - old.logprobs).abs()[mask],
        **{f"reward_{name}": signal for name, signal in (signals or {}).items()},
    }
    columns = {name: column for name, column in measured.items() if column is not None}
    sums = distributed.reduce_sum({name: float(column.double().sum()) for name, column in columns.items()})
    counts = distributed.reduce_sum({name: float(column.numel()) for name, column in columns.items()})
    means = {name: sums[name] / counts[name] for name in columns}
    return means if values is None else means | {"explained_variance": explained_globally(values, returns, mask)}
