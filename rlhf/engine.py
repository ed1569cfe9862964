"""The training engine: one optimizer step behind five verbs, on one process or on many.

A recipe computes a loss that is already divided by the size of the global batch (over ranks and micro-batches alike),
calls `backward` once per micro-batch and `step` once per batch. Which engine stands behind is not its business:

    PlainEngine        torch on one device
    DeepSpeedEngine    ZeRO over several ranks, chosen when the launcher started more than one
"""

import contextlib
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rlhf import distributed
from rlhf.device import autocast, choose_device
from rlhf.engine_settings import DEFAULTS, EngineSettings
from rlhf.engine_state import WEIGHT, cut, piece
from rlhf.errors import StageFailed
from rlhf.model_settings import apply_settings, refuse_unsupported, without_checkpointing
from rlhf.optimizers import make_optimizer, parameter_groups
from rlhf.schedules import Schedule

log = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

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
        """What this rank needs for an exact resume, see `engine_state`; frozen weights are not in it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state_dict` of this rank of as many ranks, or from `engine_state.merge` of any number."""

    def gathered(self) -> contextlib.AbstractContextManager[Any]:
        """The module with whole weights on every rank, for generating, measuring and saving.

        All ranks enter and leave it together; inside, each may run as many forward passes as it likes, without
        gradient.
        """


def prepare(
    model: nn.Module,
    *,
    learning_rate: float,
    schedule: Schedule,
    max_grad_norm: float,
    precision: str = "auto",
    weight_decay: float = 0.0,
    settings: EngineSettings = DEFAULTS,
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
        settings: how it is trained on the devices there are; ZeRO and offload are for several ranks only.
        rates: peak rates of parameters whose names begin with a key, in place of `learning_rate`.

    Raises:
        BadInput: a setting that this machine has no place for.
    """
    refuse_unsupported(settings, device=choose_device(), ranks=distributed.world_size())
    apply_settings(model, settings)
    values: dict[str, Any] = {
        "learning_rate": learning_rate,
        "schedule": schedule,
        "max_grad_norm": max_grad_norm,
        "precision": precision,
        "weight_decay": weight_decay,
        "rates": rates or {},
        "settings": settings,
    }
    if distributed.world_size() == 1:
        return PlainEngine(model, **values)
    from rlhf.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(model, **values)


def freeze(model: M, settings: EngineSettings = DEFAULTS) -> M:
    """A model that is only asked and never trained; under ZeRO-3 its weights too are split over the ranks.

    A split model answers as a whole one does, but all ranks have to call it equally often.

    Args:
        model: changed in place.
        settings: those of the engines beside it.
    """
    model.requires_grad_(False)
    if distributed.world_size() > 1 and settings.zero_stage == 3:
        from rlhf.deepspeed_engine import split_frozen

        split_frozen(model, settings)
    return model


def shutdown() -> None:
    """Leave the process group; call last on every rank of a run that went well, when no engine is in use any more.

    Without it ZeRO-3 kills good runs at their end.
    """
    if (split := sys.modules.get("rlhf.deepspeed_engine")) is not None:
        split.destroy_all()
    distributed.finish()


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
        settings: EngineSettings,
    ) -> None:
        """See `prepare`."""
        self.device = choose_device()
        self.module = model.to(self.device)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups, self.peaks = parameter_groups(model, learning_rate, rates)
        self.learning_rate, self.schedule = learning_rate, schedule
        self.max_grad_norm = max_grad_norm or math.inf
        self.precision = precision
        self.optimizer = make_optimizer(groups, settings, learning_rate=learning_rate, weight_decay=weight_decay)
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
        """Whole weights, optimizer and counters."""
        pieces = {}
        for name, parameter in self._trained():
            state = dict(self.optimizer.state.get(parameter, {}))
            step = float(state.pop("step", 0.0))
            pieces[name] = piece(parameter.shape, 0, {WEIGHT: parameter, **state}, step)
        return {"pieces": pieces, "counters": [self.steps, self.skipped, self.bad_in_a_row]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name, parameter in self._trained():
            found = state["pieces"][name]
            parameter.data.copy_(cut(state, name, WEIGHT, 0, parameter.numel()).view(parameter.shape))
            moments = {key: value for key, value in found["values"].items() if key != WEIGHT}
            if moments:
                shaped = {key: _like(value, parameter) for key, value in moments.items()}
                step = torch.tensor(found["step"], dtype=torch.float32, device=parameter.device)
                self.optimizer.state[parameter] = {"step": step, **shaped}
        self.steps, self.skipped, self.bad_in_a_row = state["counters"]

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Any]:
        """The module itself: its weights are whole."""
        with without_checkpointing(self.module):
            yield self.module

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad]


def _like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A tensor of the optimizer where its weight lies, in its shape where it has as many elements; a copy."""
    there = value.to(parameter.device, copy=True)
    return there.view(parameter.shape) if there.numel() == parameter.numel() else there


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
