"""Rows of a causal language model from which the logits of response tokens follow.

For known kinds of models a row is a hidden state, so that the head (hidden state to vocabulary) need run at response
positions only and in blocks; for all others it is the row of logits that the model itself computes.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf import packed_attention
from rlhf.matmul import REPLACED
from rlhf.packing import pack
from rlhf.shapes import require_rank, require_same_shape

PROBE_TOKENS = 8
PROBE_TOLERANCE = 1e-4
PROBE_TOLERANCE_HALF = 2e-2
# Configuration fields of architectures that change the logits after the head in a way that this module does not know.
LOGIT_SCALINGS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_scale", "output_multiplier")

PLAIN_HEADS = (nn.Linear, REPLACED[nn.Linear])

_head_can_run_alone: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class TokenBatch(Protocol):
    """What this module reads of a batch (`rlhf.batches.Batch` has it)."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids. [B, T] int64."""

    @property
    def attention_mask(self) -> Tensor:
        """True at real tokens, False at padding. [B, T] bool."""

    @property
    def response_mask(self) -> Tensor:
        """True where the token at that position belongs to the response. [B, T] bool."""


class ResponseRows(NamedTuple):
    """Rows at the positions that predict response tokens, in row-major order of the response mask."""

    rows: Tensor
    """Hidden states or logits; gradient flows. [N, H] or [N, V]"""
    to_logits: Callable[[Tensor], Tensor]
    """From any rows of these to their logits [..., V]."""
    vocabulary: int
    """V."""
    states: Tensor | None
    """Last hidden states at the same positions, which a value head reads; None when not asked for. [N, H]"""
    weight: Tensor | None = None
    """Matrix of a head that is nothing but fp32 logits = rows weight^T; None where there is more to it. [V, H]"""


def response_rows(model: nn.Module, batch: TokenBatch, *, with_states: bool = False) -> ResponseRows:
    """Run a causal language model over a batch and keep what predicts the response tokens.

    Args:
        model: a Hugging Face causal language model, its dropout off; gradient flows.
        batch: ids and masks; padding may be on either side. [B, T]
        with_states: also return the hidden states.

    Returns:
        The rows and the way to logits.

    Raises:
        ValueError: shapes differ, the batch has no response token, or one stands at position 0 with nothing before it.
    """
    _check_batch(batch)
    inputs = _forward_inputs(model, batch)
    # Token t is predicted at t - 1.
    predicts = batch.response_mask[:, 1:]
    if not runs_head_alone(model):
        result = model(**inputs, output_hidden_states=True) if with_states else model(**inputs)
        logits: Tensor = result.logits[:, :-1][predicts]
        states = result.hidden_states[-1][:, :-1][predicts] if with_states else None
        return ResponseRows(logits, nn.Identity(), logits.shape[-1], states)
    hidden, head = _states(_trunk(model), batch, inputs, predicts), _head(model)
    return ResponseRows(
        hidden, lambda rows: _apply_head(model, head, rows), _weight(head).shape[0], hidden, _bare(model, head, hidden)
    )


def _states(trunk: nn.Module, batch: TokenBatch, inputs: dict[str, Tensor | bool], predicts: Tensor) -> Tensor:
    """Hidden states before each response token, without computing any token twice where the model allows it. [N, H]."""
    if "attention_mask" in inputs or not packed_attention.fits(trunk):
        padded: Tensor = trunk(**inputs).last_hidden_state[:, :-1][predicts]
        return padded
    packed = pack(batch.input_ids, batch.attention_mask)
    return packed_attention.hidden_states(trunk, packed).index_select(0, packed.nodes[:, :-1][predicts])


def _bare(model: nn.Module, head: nn.Module, rows: Tensor) -> Tensor | None:
    """The head's matrix where `fused_head` may use it in the head's place."""
    if type(head) not in PLAIN_HEADS or getattr(head, "bias", None) is not None:
        return None
    weight = _weight(head)
    whole = not hasattr(weight, "ds_id")  # ZeRO-3 has a weight in one piece only while its own layer runs
    simple = getattr(model.config, "final_logit_softcapping", None) is None and whole
    halved = torch.is_autocast_enabled(rows.device.type)
    return weight if simple and not halved and rows.dtype == weight.dtype == torch.float32 else None


def runs_head_alone(model: nn.Module) -> bool:
    """Whether trunk, head and soft cap together give the model's own logits.

    Decided once for each model: by its configuration, then by running both on a few tokens.

    Args:
        model: a Hugging Face causal language model, its dropout off.

    Returns:
        True when the head may be applied to chosen positions only.
    """
    known = _head_can_run_alone.get(model)
    if known is None:
        known = _is_plain(model) and _probe(model)
        _head_can_run_alone[model] = known
    return known


def _check_batch(batch: TokenBatch) -> None:
    require_rank(2, input_ids=batch.input_ids)
    require_same_shape(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, response_mask=batch.response_mask
    )
    if not bool(batch.response_mask.any()):
        raise ValueError(f"the batch of shape {tuple(batch.input_ids.shape)} has no response token")
    if bool(batch.response_mask[:, 0].any()):
        raise ValueError("a response token stands at position 0, where there is no token before it to predict it from")


def _forward_inputs(model: nn.Module, batch: TokenBatch) -> dict[str, Tensor | bool]:
    inputs: dict[str, Tensor | bool] = {"input_ids": batch.input_ids, "use_cache": False}
    if bool(batch.attention_mask[:, 0].all()):
        # No mask: causal attention never looks right, where all padding is, and the maskless kernel is quicker. A
        # model's own numbering of positions is right too, and for some families (RoBERTa) not from 0.
        return inputs
    inputs["attention_mask"] = batch.attention_mask.long()
    accepted = inspect.signature(_trunk(model).forward).parameters
    if "position_ids" in accepted or "kwargs" in accepted:
        # GPT-2 numbers positions from the left edge unless told otherwise, so left padding would shift every token.
        inputs["position_ids"] = (batch.attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return inputs


def _trunk(model: nn.Module) -> nn.Module:
    trunk = getattr(model, "base_model", model)
    return trunk if isinstance(trunk, nn.Module) else model


def _head(model: nn.Module) -> nn.Module:
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    if not isinstance(head, nn.Module):
        raise ValueError(f"{type(model).__name__} has no output embeddings, so it is no causal language model")
    return head


def _weight(head: nn.Module) -> Tensor:
    weight = head.weight
    if not isinstance(weight, Tensor):
        raise ValueError(f"the output embeddings are a {type(head).__name__} without a weight matrix")
    return weight


def _apply_head(model: nn.Module, head: nn.Module, rows: Tensor) -> Tensor:
    logits: Tensor = head(rows)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _is_plain(model: nn.Module) -> bool:
    # An adapter inside the trunk (`rlhf.adapters`) leaves both parts what they were; one around it is another class.
    if _trunk(model) is model or not isinstance(_trunk(model), PreTrainedModel):
        return False
    return all(getattr(model.config, name, None) is None for name in LOGIT_SCALINGS)


@torch.no_grad()
def _probe(model: nn.Module) -> bool:
    """Compare both paths on a few tokens: some architectures have layers between the trunk and the output matrix."""
    head = _head(model)
    ids = torch.arange(PROBE_TOKENS, device=next(model.parameters()).device).unsqueeze(0)
    wanted: Tensor = model(input_ids=ids, use_cache=False).logits
    hidden: Tensor = _trunk(model)(input_ids=ids, use_cache=False).last_hidden_state
    if (wanted.shape[-1], hidden.shape[-1]) != tuple(_weight(head).shape):
        return False
    tolerance = PROBE_TOLERANCE if wanted.dtype in (torch.float32, torch.float64) else PROBE_TOLERANCE_HALF
    return torch.allclose(_apply_head(model, head, hidden), wanted, rtol=tolerance, atol=tolerance)
