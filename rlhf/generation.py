"""Sampling responses from a policy, with the log-probability of every sampled token.

The distribution that is sampled is the one that training scores: softmax(logits / temperature) over the tokens that
are not forbidden, nothing else (no top-k, no top-p, no repetition penalty, no minimum length), because a policy
gradient is only right for the distribution that the samples came from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.decoder import make_decoder
from rlhf.errors import BadInput, StageFailed
from rlhf.models import context_length
from rlhf.packed_weights import packed
from rlhf.sampling import choose

Finished = Callable[[int, list[int], bool], None]
"""Told of each response as it ends: index of the prompt, ids, and whether it ended by itself."""


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
    finished: Finished | None = None,
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
        finished: told of each response as soon as it is complete, while others are still being sampled.

    Raises:
        BadInput: prompt and response together do not fit into the model's context.
        StageFailed: the model's logits are not finite.
        ValueError: no prompts, an empty prompt, or neither generator nor uniforms.
    """
    _check(model, prompts, max_new_tokens, temperature)
    draws = None if greedy else _columns(uniforms, generator, len(prompts), max_new_tokens).to(model.device)
    banned = None if forbidden is None else forbidden.nonzero().squeeze(1).to(model.device)
    stops = torch.tensor(sorted(stop_ids), device=model.device)
    # Neighbours of like length need little padding, and equal prompts are computed once.
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), list(prompts[row])))
    drawn = _Drawn(order, max_new_tokens, pad_id, model.device)
    decoder = make_decoder(model, [prompts[row] for row in order], max_new_tokens=max_new_tokens, pad_id=pad_id)

    with packed(model):
        logits = decoder.prefill()
        for step in range(max_new_tokens):
            uniform = None if draws is None else draws[step, drawn.rows]
            chosen, scores = choose(logits, temperature=temperature, forbidden=banned, uniforms=uniform)
            stopped = drawn.add(step, chosen, scores, stops)
            if finished is not None:
                drawn.tell(finished, stopped)
            if drawn.left == 0 or step + 1 == max_new_tokens:
                break
            if compact and drawn.left <= decoder.drop_below * len(chosen):
                keep = drawn.keep_alive()
                chosen = chosen[keep]
                decoder.keep(keep)
            logits = decoder.decode(chosen)
    if finished is not None:
        drawn.tell(finished, drawn.alive)
    return drawn.collect()


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
    """The uniform numbers, given or drawn, column by column in memory since a step reads one column."""
    if uniforms is None:
        if generator is None:
            raise ValueError("generate: neither generator nor uniforms was given, and greedy is False")
        uniforms = torch.rand(rows, steps, generator=generator, dtype=torch.float64, device=generator.device)
    return uniforms.t().contiguous()


class _Drawn:
    """What has been sampled, step by step, and which rows go on."""

    def __init__(self, order: Sequence[int], steps: int, pad_id: int, device: torch.device) -> None:
        self.tokens = torch.full((steps, len(order)), pad_id, device=device)
        self.logprobs = torch.zeros(steps, len(order), device=device)
        self.lengths = torch.zeros(len(order), dtype=torch.int64, device=device)
        self.ended = torch.zeros(len(order), dtype=torch.bool, device=device)
        self.rows = torch.tensor(order, device=device)
        """Prompt of each row that is being computed."""
        self.alive = torch.ones(len(order), dtype=torch.bool, device=device)
        """Which of these rows go on."""
        self.left = len(order)

    def add(self, step: int, chosen: Tensor, logprobs: Tensor, stops: Tensor) -> Tensor:
        """One token of each row; those of rows that had ended before are written and not counted. Which rows end."""
        stopped = torch.isin(chosen, stops) & self.alive
        self.tokens[step, self.rows] = chosen
        self.logprobs[step, self.rows] = logprobs.to(self.logprobs.dtype)
        self.lengths[self.rows] += self.alive.to(torch.int64)
        self.ended[self.rows] |= stopped
        self.alive &= ~stopped
        self.left = int(self.alive.sum())
        return stopped

    def keep_alive(self) -> Tensor:
        """Drop the rows that have ended; indices of the others."""
        keep = self.alive.nonzero().squeeze(1)
        self.rows, self.alive = self.rows[keep], self.alive[keep]
        return keep

    def tell(self, finished: Finished, which: Tensor) -> None:
        """Hand on responses that are complete."""
        for row in self.rows[which].tolist():
            length = int(self.lengths[row])
            finished(row, self.tokens[:length, row].tolist(), bool(self.ended[row]))

    def collect(self) -> Generation:
        if not bool(torch.isfinite(self.logprobs).all()):
            raise StageFailed(
                "the policy gives probabilities that are not numbers, so nothing can be sampled from it; its weights "
                "hold NaN or infinity, so start from another model, or train with a lower learning_rate or precision: "
                "float32"
            )
        columns, values, sizes = self.tokens.t().tolist(), self.logprobs.t().tolist(), self.lengths.tolist()
        return Generation(
            responses=[row[:size] for row, size in zip(columns, sizes, strict=True)],
            logprobs=[row[:size] for row, size in zip(values, sizes, strict=True)],
            ended=self.ended.tolist(),
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
