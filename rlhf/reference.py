"""A policy beside the frozen reference on the responses that the policy sampled."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.adapters import AdapterOff, adapter_off
from rlhf.batches import Batch
from rlhf.kl import table_kl
from rlhf.logprobs import in_chunks, log_softmax, response_logits, scatter_response, table_entropy
from rlhf.row_blocks import in_row_blocks

LOGIT_BUDGET = 2**26
"""Most logits of one model that are held at once while two policies are compared (256 MB in fp32)."""


class Comparison(NamedTuple):
    """The policy beside the frozen reference on the sampled tokens; 0 outside the response, no gradient."""

    logprobs: Tensor
    """log pi(token), nats. [B, T]"""
    ref_logprobs: Tensor
    """The same under the reference. [B, T]"""
    entropy: Tensor
    """Entropy of the policy where the token was drawn, nats. [B, T]"""
    kl: Tensor
    """KL(policy || reference) there, summed over the whole vocabulary, nats. [B, T]"""


def reference_logits(reference: PreTrainedModel | AdapterOff, batch: Batch) -> Tensor:
    """What the frozen reference says, from a model of its own or from the policy with its adapter off.

    Args:
        reference: either kind.
        batch: prompts and responses. [B, T]

    Returns:
        Logits in row-major order of `batch.response_mask`. [N, V]
    """
    if isinstance(reference, AdapterOff):
        with adapter_off(reference.model):
            return response_logits(reference.model, batch)
    return response_logits(reference, batch)


@torch.no_grad()
def compare_with_reference(
    policy: PreTrainedModel,
    reference: PreTrainedModel | AdapterOff,
    batch: Batch,
    forbidden: Tensor,
    *,
    temperature: float,
    rows: int,
) -> Comparison:
    """Log-probabilities under policy and reference, entropy and exact KL at every sampled token.

    Old log-probabilities come from here, from the forward pass that training uses, and not from the generator, whose
    kernels may round differently. The comparison needs the policy's logits anyway, so they cost nothing.

    Args:
        policy: the policy that sampled.
        reference: the frozen one it started from, or the policy with its adapter off; shares its vocabulary.
        batch: prompts and responses. [B, T]
        forbidden: True at tokens that are never sampled. [V] bool
        temperature: that of the sampling; divides the logits of both.
        rows: rows of one forward pass; fewer are taken where the logits would exceed `LOGIT_BUDGET`.

    Returns:
        Four measurements for each response token.
    """
    most = LOGIT_BUDGET // (batch.input_ids.shape[1] * len(forbidden))

    def compare(part: Batch) -> Tensor:
        ids = part.input_ids[part.response_mask]
        ours, theirs = response_logits(policy, part), reference_logits(reference, part)

        def measure(rows_p: Tensor, rows_q: Tensor, ids: Tensor) -> Tensor:
            return _compare(rows_p, rows_q, ids, forbidden, temperature)

        found = in_chunks(measure, ours, theirs, ids, width=ours.shape[1])
        return torch.stack([scatter_response(column, part.response_mask) for column in found.unbind(dim=1)], dim=-1)

    return Comparison(*in_row_blocks(compare, batch, max(1, min(rows, most))).unbind(dim=-1))


def _compare(logits_p: Tensor, logits_q: Tensor, ids: Tensor, forbidden: Tensor, temperature: float) -> Tensor:
    """The four columns of a `Comparison` from one table of log-probabilities per model; no gradient. [N, 4]."""
    log_p, log_q = (log_softmax(rows, temperature=temperature, forbidden=forbidden) for rows in (logits_p, logits_q))
    chosen = [table.gather(1, ids.unsqueeze(1)).squeeze(1) for table in (log_p, log_q)]
    return torch.stack((*chosen, table_entropy(log_p, forbidden), table_kl(log_p, log_q, forbidden)), dim=1)
