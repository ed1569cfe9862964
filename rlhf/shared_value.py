"""A value head on the policy's trunk: one model, one forward pass, log-probabilities and values together.

The head is zero at the start, so the first values are 0 and pull the trunk nowhere; a random one would give advantages
of noise until it has learnt (Ziegler et al. 2019, section 2.2, https://arxiv.org/abs/1909.08593).

Warm-up: with `train_trunk=False` the trunk runs without gradient and only the head learns, so the policy stays what it
was to the last bit while the values find their level.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.lm_head import TokenBatch, response_rows
from rlhf.logprobs import TokenLogprobs, logprobs_of_rows, scatter_response

HEAD = "value_head"
"""Name of the head; `engine.prepare(rates={HEAD: ...})` gives it a learning rate of its own."""


class PolicyWithValue(nn.Module):
    """A causal language model and a linear head that reads a value from the state in which a token is chosen.

    The value at token t is w . h(t - 1) + b, with h the last hidden state, and w and b 0 at the start.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        """Put a zero head beside a policy; the policy itself is not changed and not copied."""
        super().__init__()
        self.policy = policy
        head: Any = policy.get_output_embeddings()  # type: ignore[no-untyped-call]
        with torch.random.fork_rng(devices=[]):
            # What the output matrix reads is what the value head reads.
            self.value_head = nn.Linear(head.weight.shape[1], 1).to(policy.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of the policy."""
        return self.policy(*args, **kwargs)


def policy_of(module: Any) -> PreTrainedModel:
    """The causal language model of what an engine trains: what is sampled from, compared and saved.

    Args:
        module: a policy, or one with a value head.
    """
    policy: PreTrainedModel = module.policy if isinstance(module, PolicyWithValue) else module
    return policy


def policy_and_values(
    model: PolicyWithValue,
    batch: TokenBatch,
    *,
    temperature: float,
    forbidden: Tensor | None,
    with_entropy: bool = False,
    train_trunk: bool = True,
) -> tuple[TokenLogprobs, Tensor]:
    """Log-probabilities of the response tokens and values of the states they were chosen in, by one forward pass.

    Args:
        model: policy and head; gradient flows into both.
        batch: ids and masks; padding may be on either side. [B, T]
        temperature: divides the logits. > 0
        forbidden: True at ids that are never sampled. [V] bool, or None
        with_entropy: also return the entropy of each distribution.
        train_trunk: False for warm-up: gradient flows into the head alone, and log-probabilities carry none.

    Returns:
        What `logprobs.response_logprobs` gives, bit for bit; and values aligned as `rollout.state_values` has them,
        reward units, fp32, 0 outside the response. [B, T]

    Raises:
        ValueError: as `logprobs.response_logprobs`.
    """
    with torch.set_grad_enabled(train_trunk and torch.is_grad_enabled()):
        rows = response_rows(model.policy, batch, with_states=True)
        logprobs = logprobs_of_rows(
            rows, batch, temperature=temperature, forbidden=forbidden, with_entropy=with_entropy
        )
    states = rows.states
    if states is None:
        raise ValueError(f"{type(model.policy).__name__} gives no hidden states, so a value head has nothing to read")
    # Only the head leaves autocast: in bf16 a value has three digits.
    with torch.autocast(states.device.type, enabled=False):
        values: Tensor = model.value_head(states.to(model.value_head.weight.dtype)).squeeze(-1)
    return logprobs, scatter_response(values, batch.response_mask)
