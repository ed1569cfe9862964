"""Sampling responses from a policy, with the log-probability of every sampled token.

The distribution that is sampled is the one that training scores: softmax(logits / temperature) over the tokens that
are not forbidden, nothing else (no top-k, no top-p, no repetition penalty, no minimum length), because a policy
gradient is only right for the distribution that the samples came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.errors import BadInput, StageFailed
from rlhf.kv_cache import attends_fully, make_cache
from rlhf.logprobs import log_softmax
from rlhf.models import context_length

BELOW_ONE = 1.0 - 2.0**-40
COMPACT_BELOW = 0.9
"""Finished rows are dropped when at most this share of the batch is unfinished: each drop copies the cache once."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Sampled responses, in the order of the prompts."""

    responses: list[list[int]]
    """Sampled ids, with the stop token where one was sampled."""
    logprobs: list[list[float]]
    """log pi(token) of each sampled id under the sampling distribution, nats."""
    ended: list[bool]
    """False where the response was cut at max_new_tokens."""


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: Sequence[int],
    forbidden: Tensor | None,
    pad_id: int,
    generator: torch.Generator | None,
    greedy: bool = False,
    uniforms: Tensor | None = None,
    compact: bool = True,
) -> Generation:
    """Sample one response to each prompt.

    Every row has its own uniform number for every step, drawn before the first step, so what one row samples does not
    depend on when others finish, and the generator always advances by B * max_new_tokens draws.

    Args:
        model: causal language model in eval mode; call inside `device.autocast` for bf16.
        prompts: token ids of B prompts, none empty.
        max_new_tokens: longest response, in tokens.
        temperature: logits are divided by it; above 0.
        stop_ids: tokens that end a response.
        forbidden: True at tokens that are never sampled, `models.forbidden_ids`. [V] bool
        pad_id: id written into the left padding.
        generator: source of the uniforms; not needed when greedy or when `uniforms` is given.
        greedy: take the likeliest token; log-probabilities are still those of the sampling distribution.
        uniforms: numbers in [0, 1) to use instead of drawing, for samples that belong to a prompt and not to its
            place in a batch; see `row_uniforms`. [B, max_new_tokens] float64
        compact: drop finished rows from the batch; False only to show that it changes nothing.

    Raises:
        BadInput: prompt and response together do not fit into the model's context.
        StageFailed: the model's logits are not finite.
        ValueError: no prompts, an empty prompt, or neither generator nor uniforms.
    """
    _check(model, prompts, max_new_tokens, temperature)
    device = model.device
    draws = None if greedy else _columns(uniforms, generator, len(prompts), max_new_tokens).to(device)
    decoder = _Decoder(model, prompts, max_new_tokens, pad_id)
    banned = None if forbidden is None else forbidden.to(device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    rows = torch.arange(len(prompts), device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    tokens = torch.full((max_new_tokens, len(prompts)), pad_id, device=device)
    logprobs = torch.zeros(max_new_tokens, len(prompts), device=device)
    lengths = torch.zeros(len(prompts), dtype=torch.int64, device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)

    logits = decoder.prefill()
    for step in range(max_new_tokens):
        scores = log_softmax(logits, temperature=temperature, forbidden=banned)
        chosen = scores.argmax(dim=-1) if draws is None else _invert(scores, draws[step, rows])
        tokens[step, rows] = chosen
        logprobs[step, rows] = scores.gather(1, chosen.unsqueeze(1)).squeeze(1)
        stopped = torch.isin(chosen, stops) & alive
        lengths[rows] += alive.to(torch.int64)
        ended[rows] |= stopped
        alive &= ~stopped
        left = int(alive.sum())
        if left == 0 or step + 1 == max_new_tokens:
            break
        if compact and left <= COMPACT_BELOW * len(rows):
            keep = alive.nonzero().squeeze(1)
            rows, chosen, alive = rows[keep], chosen[keep], alive[keep]
            decoder.keep(keep)
        logits = decoder.decode(chosen)
    return _collect(tokens, logprobs, lengths, ended)


def row_uniforms(seeds: Sequence[int], max_new_tokens: int) -> Tensor:
    """Uniform numbers from one seed per row, so that a row's sample is the same in any batch.

    Args:
        seeds: one per prompt, such as a hash of (seed, prompt id); taken modulo 2**63.
        max_new_tokens: numbers per row.

    Returns:
        Numbers in [0, 1). [B, max_new_tokens] float64
    """
    source = torch.Generator()
    rows = [
        torch.rand(max_new_tokens, generator=source.manual_seed(seed % 2**63), dtype=torch.float64) for seed in seeds
    ]
    return torch.stack(rows)


def _columns(uniforms: Tensor | None, generator: torch.Generator | None, rows: int, steps: int) -> Tensor:
    """The uniform numbers below 1, given or drawn, column by column in memory since a step reads one column."""
    if uniforms is None:
        if generator is None:
            raise ValueError("generate: neither generator nor uniforms was given, and greedy is False")
        uniforms = torch.rand(rows, steps, generator=generator, dtype=torch.float64, device=generator.device)
    return (uniforms * BELOW_ONE).t().contiguous()


class _Decoder:
    """The model's forward passes over left-padded rows: the prompts once, then a token at a time."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, pad_id: int
    ) -> None:
        width = max(len(prompt) for prompt in prompts)
        ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        self.model = model
        self.input_ids = torch.tensor(ids, device=model.device)
        sizes = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        self.mask = torch.arange(width + max_new_tokens, device=model.device) >= (width - sizes).unsqueeze(1)
        self.position = sizes
        self.width = width
        self.cache = make_cache(model, width + max_new_tokens)
        # A ready four-dimensional mask is used as it is, which saves building one in each step; a model with several
        # kinds of attention needs several masks, so it builds its own from the two-dimensional one.
        self.ready_mask = attends_fully(model) and model.config._attn_implementation == "sdpa"

    def prefill(self) -> Tensor:
        """Logits after each prompt, of shape [B, V]."""
        mask = self.mask[:, : self.width]
        # Positions count real tokens: padding must not shift learned position embeddings.
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return self._forward(self.input_ids, mask, positions)

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each row, of shape [B, V]."""
        self.width += 1
        mask = self.mask[:, : self.width]
        positions = self.position.unsqueeze(1)
        self.position = self.position + 1
        return self._forward(tokens.unsqueeze(1), mask[:, None, None, :] if self.ready_mask else mask, positions)

    def keep(self, indices: Tensor) -> None:
        """Drop every row that is not named."""
        self.mask, self.position = self.mask[indices], self.position[indices]
        cache: Any = self.cache
        cache.batch_select_indices(indices)

    def _forward(self, input_ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        result = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = result.logits[:, -1]
        return logits


def _invert(scores: Tensor, uniforms: Tensor) -> Tensor:
    """The token of each row at which the cumulative distribution passes its uniform number.

    In float64, because summing 150,000 small fp32 probabilities would lose the last ones.
    """
    cumulative = scores.to(torch.float64).exp_().cumsum(dim=-1)
    target = (uniforms * cumulative[:, -1]).unsqueeze(1)
    # right=True passes over tokens of probability 0, whose cumulative value equals that of the token before. The clamp
    # is for NaN alone, which would give an index beyond the end before anybody could say why.
    return torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=scores.shape[-1] - 1)


def _collect(tokens: Tensor, logprobs: Tensor, lengths: Tensor, ended: Tensor) -> Generation:
    if not bool(torch.isfinite(logprobs).all()):
        raise StageFailed(
            "the policy gives probabilities that are not numbers, so nothing can be sampled from it; its weights hold "
            "NaN or infinity, so start from another model, or train with a lower learning_rate or precision: float32"
        )
    columns, values, sizes = tokens.t().tolist(), logprobs.t().tolist(), lengths.tolist()
    return Generation(
        responses=[row[:size] for row, size in zip(columns, sizes, strict=True)],
        logprobs=[row[:size] for row, size in zip(values, sizes, strict=True)],
        ended=ended.tolist(),
    )


def _check(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float) -> None:
    if not prompts or not all(prompts):
        raise ValueError("generate: got no prompts or an empty prompt, wanted at least one token in each")
    if max_new_tokens < 1 or not temperature > 0:
        raise ValueError(f"generate: max_new_tokens {max_new_tokens} and temperature {temperature} must be above 0")
    context, longest = context_length(model), max(len(prompt) for prompt in prompts)
    if context is not None and longest + max_new_tokens > context:
        raise BadInput(
            f"a prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, together more than the model's "
            f"context of {context}; shorten or drop long prompts, or lower max_new_tokens"
        )
