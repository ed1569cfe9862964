"""The training engine: one optimizer step behind five verbs, on one process or on many.

A recipe computes a loss that is already divided by the size of the global batch (over ranks and micro-batches alike),
calls `backward` once per micro-batch and `step` once per batch. Which engine stands behind is not its business:

    PlainEngine        torch on one device
    DeepSpeedEngine    ZeRO over several ranks, chosen when the launcher started more than one
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlhf import distributed
from rlhf.device import autocast, choose_device
from rlhf.errors import StageFailed
from rlhf.schedules import Schedule

log = logging.getLogger(__name__)

BETAS = (0.9, 0.95)
EPSILON = 1e-5
"""Adam's epsilon. The usual 1e-8 makes the first updates of a policy several times larger."""
MAX_BAD_STEPS = 5
"""So many updates in a row with a loss or gradient that is not finite end the stage: it will not recover by itself."""


class Engine(Protocol):
    """What recipes may rely on."""

    device: torch.device
    skipped: int

    @property
    def module(self) -> Any:
        """The wrapped module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward pass of the module in the wanted precision."""

    def backward(self, loss: Tensor, *, final: bool = True) -> None:
        """Add the gradient of `loss`; `final` is False for every micro-batch of a step but the last.

        One loss that is not finite spoils the whole step, whatever its other micro-batches gave.
        """

    def step(self) -> dict[str, float]:
        """Clip, update, advance the schedule; returns `grad_norm` (before clipping), `lr` and `skipped`."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs from the engine."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""

    def gathered(self) -> contextlib.AbstractContextManager[Any]:
        """The module with whole weights on every rank, for generating and saving."""


def prepare(
    model: nn.Module,
    *,
    learning_rate: float,
    schedule: Schedule,
    max_grad_norm: float,
    precision: str = "auto",
    weight_decay: float = 0.0,
    zero_stage: int = 2,
    rates: Mapping[str, float] | None = None,
) -> Engine:
    """An engine for a model that is to be trained.

    Args:
        model: the module; moved to this process's device.
        learning_rate: peak rate of AdamW.
        schedule: factor of the rate by finished steps, `rlhf.schedules`.
        max_grad_norm: gradients are scaled down to this global norm; 0 means never.
        precision: "auto", "float32" or "bfloat16", see `device.autocast`.
        weight_decay: decoupled decay of AdamW.
        zero_stage: 0 to 3, used only with several ranks.
        rates: peak rates of parameters whose names begin with a key, in place of `learning_rate`.
    """
    settings: dict[str, Any] = {
        "learning_rate": learning_rate,
        "schedule": schedule,
        "max_grad_norm": max_grad_norm,
        "precision": precision,
        "weight_decay": weight_decay,
        "rates": rates or {},
    }
    if distributed.world_size() == 1:
        return PlainEngine(model, **settings)
    from rlhf.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(model, **settings, zero_stage=zero_stage)


class PlainEngine:
    """AdamW on one device."""

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        schedule: Schedule,
        max_grad_norm: float,
        precision: str,
        weight_decay: float,
        rates: Mapping[str, float],
    ) -> None:
        """See `prepare`."""
        self.device = choose_device()
        self.module = model.to(self.device)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups, self.peaks = parameter_groups(model, learning_rate, rates)
        self.learning_rate, self.schedule = learning_rate, schedule
        self.max_grad_norm = max_grad_norm or math.inf
        self.precision = precision
        self.optimizer = torch.optim.AdamW(
            groups, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=weight_decay, fused=True
        )
        self.steps, self.skipped, self.bad_in_a_row, self.spoiled = 0, 0, 0, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward pass of the module in the wanted precision."""
        with autocast(self.device, self.precision):
            return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, *, final: bool = True) -> None:
        """Add the gradient of `loss`, unless it is not finite; on one device `final` changes nothing."""
        if bool(torch.isfinite(loss.detach())):
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self.spoiled = True

    def step(self) -> dict[str, float]:
        """Clip and update; the step is dropped and counted when a loss or the gradient is not finite.

        Returns:
            `grad_norm` before clipping (NaN after a bad loss), `lr` used, and `skipped` updates so far.

        Raises:
            StageFailed: `MAX_BAD_STEPS` steps in a row were dropped.
        """
        factor = self.schedule(self.steps)
        norm = math.nan if self.spoiled else float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if math.isfinite(norm):
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * factor
            self.optimizer.step()
            self.bad_in_a_row = 0
        else:
            self.skipped += 1
            self.bad_in_a_row += 1
            refuse_divergence(self.bad_in_a_row, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.spoiled = False
        # The schedule counts skipped updates too, so that it ends with the run.
        self.steps += 1
        return {"grad_norm": norm, "lr": self.learning_rate * factor, "skipped": float(self.skipped)}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and counters."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": [self.steps, self.skipped, self.bad_in_a_row],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.skipped, self.bad_in_a_row = state["counters"]

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Any]:
        """The module itself: its weights are whole."""
        yield self.module


def parameter_groups(
    model: nn.Module, learning_rate: float, rates: Mapping[str, float]
) -> tuple[list[dict[str, Any]], list[float]]:
    """Trainable parameters by peak rate.

    Args:
        model: the module.
        learning_rate: rate of all that `rates` does not name.
        rates: rates by the beginnings of names.

    Returns:
        Groups as torch's optimizers take them, none empty, and their peak rates.
    """
    by_key: dict[str, list[nn.Parameter]] = {"": [], **{key: [] for key in rates}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_key[next((key for key in rates if name.startswith(key)), "")].append(parameter)
    used = [key for key, parameters in by_key.items() if parameters]
    return [{"params": by_key[key]} for key in used], [rates[key] if key else learning_rate for key in used]


def refuse_divergence(bad_in_a_row: int, step: int) -> None:
    """Stop a run whose losses or gradients stay non-finite.

    Raises:
        StageFailed: there were `MAX_BAD_STEPS` of them.
    """
    log.warning("step %d: the loss or its gradient is not finite; update skipped (%d in a row)", step, bad_in_a_row)
    if bad_in_a_row >= MAX_BAD_STEPS:
        raise StageFailed(
            f"step {step}: {bad_in_a_row} updates in a row had a loss or gradient that is not finite, so training "
            "stopped; none of them touched the weights and the last checkpoint is kept; try a lower learning_rate, a "
            "longer warmup_fraction, a smaller max_grad_norm, precision: float32, or another starting model"
        )
