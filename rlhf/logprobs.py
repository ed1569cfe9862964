"""Log-probabilities of response tokens, from logits or from a causal language model.

Float32 log-softmax never sees more than `CHUNK_ELEMENTS` logits at once, and each block is computed again in the
backward pass, so that no float32 tensor over all positions and the whole vocabulary exists.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf.fused_head import chosen_logprobs
from rlhf.lm_head import ResponseRows, TokenBatch, response_rows
from rlhf.shapes import require_rank

CHUNK_ELEMENTS = 2**24


class TokenLogprobs(NamedTuple):
    """Per-token results in the shape of the batch, 0 outside the response."""

    logprobs: Tensor
    """log p(token t | tokens before t), nats. [B, T] float32"""
    entropy: Tensor | None
    """Entropy of the distribution that token t was drawn from, nats; None when not asked for. [B, T] float32"""


def log_softmax(logits: Tensor, *, temperature: float, forbidden: Tensor | None) -> Tensor:
    """Float32 log-probabilities over the vocabulary of the distribution that is really sampled.

    Args:
        logits: scores of the head, any float type. [..., V]
        temperature: divides the logits; the same in sampling, training and evaluation. > 0
        forbidden: True at ids that are never sampled; their log-probability is -inf. [V] bool, or None

    Returns:
        Log-probabilities, nats. [..., V] float32 (float64 stays)

    Raises:
        ValueError: temperature is not positive, or `forbidden` does not have V entries.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature} but must be positive")
    # Half precision has about three digits here, the size of a whole per-token KL.
    scaled = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1:
        scaled = scaled / temperature
    if forbidden is not None:
        if forbidden.shape != logits.shape[-1:]:
            raise ValueError(f"forbidden has shape {tuple(forbidden.shape)} but logits have {tuple(logits.shape)}")
        scaled = scaled.masked_fill(forbidden, -torch.inf)
    return torch.log_softmax(scaled, dim=-1)


def gather_logprobs(logits: Tensor, ids: Tensor, *, temperature: float, forbidden: Tensor | None) -> Tensor:
    """Log-probability of one id at each position.

    Args:
        logits: scores of the head; gradient flows. [..., V]
        ids: the tokens to look up. [...] int64
        temperature: divides the logits. > 0
        forbidden: True at ids that are never sampled. [V] bool, or None

    Returns:
        Log-probabilities, nats; -inf for a forbidden id. [...] float32

    Raises:
        ValueError: shapes do not fit, or temperature is not positive.
    """
    _require_ids_fit(logits, ids)

    def look_up(rows: Tensor, row_ids: Tensor) -> Tensor:
        return _look_up(rows, row_ids, temperature=temperature, forbidden=forbidden)[0]

    vocabulary = logits.shape[-1]
    return in_chunks(look_up, logits.reshape(-1, vocabulary), ids.reshape(-1), width=vocabulary).reshape(ids.shape)


def table_entropy(table: Tensor, forbidden: Tensor | None) -> Tensor:
    """Entropy of distributions.

        H = -sum over v of p(v) log p(v)

    Args:
        table: log-probabilities, from `log_softmax`; gradient flows. [..., V]
        forbidden: True at ids that are never sampled; they add nothing. [V] bool, or None

    Returns:
        Nats, between 0 and log V. [...]
    """
    # The fill comes before the product: 0 * -inf is NaN, and it stays NaN in the gradient of a later fill.
    finite = table if forbidden is None else table.masked_fill(forbidden, 0.0)
    return -(table.exp() * finite).sum(dim=-1)


def response_logprobs(
    model: nn.Module,
    batch: TokenBatch,
    *,
    temperature: float,
    forbidden: Tensor | None,
    with_entropy: bool = False,
) -> TokenLogprobs:
    """Log-probabilities of the response tokens of a batch under a causal language model.

    Args:
        model: a Hugging Face causal language model, its dropout off; gradient flows.
        batch: ids and masks; padding may be on either side. [B, T]
        temperature: divides the logits. > 0
        forbidden: True at ids that are never sampled. [V] bool, or None
        with_entropy: also return the entropy of each distribution.

    Returns:
        Log-probabilities (and entropies), 0 outside the response. [B, T]

    Raises:
        ValueError: shapes differ, the batch has no response token, or one stands at position 0 with nothing before it.
    """
    return logprobs_of_rows(
        response_rows(model, batch), batch, temperature=temperature, forbidden=forbidden, with_entropy=with_entropy
    )


def logprobs_of_rows(
    found: ResponseRows, batch: TokenBatch, *, temperature: float, forbidden: Tensor | None, with_entropy: bool
) -> TokenLogprobs:
    """`response_logprobs` from what `lm_head.response_rows` found, for callers that read the hidden states too.

    Args:
        found: rows of the batch; gradient flows.
        batch: ids and masks. [B, T]
        temperature: divides the logits. > 0
        forbidden: True at ids that are never sampled. [V] bool, or None
        with_entropy: also return the entropy of each distribution.

    Returns:
        Log-probabilities (and entropies), 0 outside the response. [B, T]
    """
    ids = batch.input_ids[batch.response_mask]

    def look_up(block: Tensor, block_ids: Tensor) -> Tensor:
        wanted: dict[str, Any] = {"temperature": temperature, "forbidden": forbidden, "with_entropy": with_entropy}
        if found.weight is not None:
            logprobs, spread = chosen_logprobs(block, found.weight, block_ids, **wanted)
        else:
            logprobs, spread = _look_up(found.to_logits(block), block_ids, **wanted)
        return logprobs if spread is None else torch.stack((logprobs, spread), dim=1)

    values = in_chunks(look_up, found.rows, ids, width=found.vocabulary)
    if not with_entropy:
        return TokenLogprobs(scatter_response(values, batch.response_mask), None)
    return TokenLogprobs(
        scatter_response(values[:, 0], batch.response_mask), scatter_response(values[:, 1], batch.response_mask)
    )


def response_logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Logits that the response tokens of a batch were drawn from, for a KL over the whole vocabulary.

    Args:
        model: a Hugging Face causal language model; gradient flows.
        batch: ids and masks; padding may be on either side. [B, T]

    Returns:
        Logits of the model's own type, in row-major order of `batch.response_mask`. [N, V]

    Raises:
        ValueError: as `response_logprobs`.
    """
    found = response_rows(model, batch)
    return found.to_logits(found.rows)


def scatter_response(values: Tensor, response_mask: Tensor) -> Tensor:
    """Put one value per response token back into the shape of the batch.

    Args:
        values: in row-major order of the mask; gradient flows. [N]
        response_mask: True at the N response tokens. [B, T] bool

    Returns:
        The values, 0 outside the response. [B, T]

    Raises:
        ValueError: the number of values is not the number of True positions.
    """
    require_rank(1, values=values)
    count = int(response_mask.sum())
    if values.shape[0] != count:
        raise ValueError(
            f"values has shape {tuple(values.shape)} but response_mask of shape {tuple(response_mask.shape)} "
            f"has {count} True positions"
        )
    return values.new_zeros(response_mask.shape).masked_scatter(response_mask, values)


def in_chunks(function: Callable[..., Tensor], *tensors: Tensor, width: int) -> Tensor:
    """Apply a function to blocks of rows, so that a block has at most `CHUNK_ELEMENTS` logits.

    Blocks are computed again in the backward pass rather than kept.

    Args:
        function: takes a block of each tensor, gives one row of results for each row.
        *tensors: with the same number of rows. [N, ...] each
        width: logits per row.

    Returns:
        The results of all blocks in one tensor. [N, ...]
    """
    rows = max(1, CHUNK_ELEMENTS // width)
    count = tensors[0].shape[0]
    if count <= rows:
        return function(*tensors)
    blocks = [[tensor[start : start + rows] for tensor in tensors] for start in range(0, count, rows)]
    if not torch.is_grad_enabled():
        return torch.cat([function(*block) for block in blocks])
    return torch.cat([checkpoint(function, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks])


def _require_ids_fit(logits: Tensor, ids: Tensor) -> None:
    if ids.shape != logits.shape[:-1]:
        raise ValueError(f"ids have shape {tuple(ids.shape)} but logits have {tuple(logits.shape)}")


def _look_up(
    logits: Tensor, ids: Tensor, *, temperature: float, forbidden: Tensor | None, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    table = log_softmax(logits, temperature=temperature, forbidden=forbidden)
    chosen = table.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return chosen, table_entropy(table, forbidden) if with_entropy else None
