"""ZeRO over several ranks, behind the same verbs as the plain engine; imported only when there are several ranks."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlhf import distributed
from rlhf.device import autocast, choose_device
from rlhf.engine import BETAS, EPSILON, parameter_groups, refuse_divergence
from rlhf.schedules import Schedule


class DeepSpeedEngine:
    """AdamW with optimizer state (ZeRO-1), gradients (2) and weights (3) split over the ranks."""

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        schedule: Schedule,
        max_grad_norm: float,
        precision: str,
        weight_decay: float,
        zero_stage: int,
        rates: Mapping[str, float],
    ) -> None:
        """See `engine.prepare`."""
        distributed.start()
        deepspeed = _import_deepspeed()
        self.device = choose_device()
        self.learning_rate, self.schedule = learning_rate, schedule
        self.precision, self.zero_stage = precision, zero_stage
        groups, self.peaks = parameter_groups(model, learning_rate, rates)
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=weight_decay)
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm,
            "steps_per_print": 10**9,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": zero_stage},
        }
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.gathered_parameters = deepspeed.zero.GatheredParameters
        self.steps, self.skipped, self.bad_in_a_row, self.spoiled = 0, 0, 0, False
        # Gradients are cut up and sent away during the backward pass, so each is looked at where it appears.
        self.size = torch.zeros((), device=self.device)
        for parameter in self.engine.module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._look_at)

    @property
    def module(self) -> Any:
        """The wrapped module."""
        return self.engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward pass of the module in the wanted precision."""
        with autocast(self.device, self.precision):
            return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor, *, final: bool = True) -> None:
        """Add the gradient of `loss`, which is this rank's part of the global mean.

        DeepSpeed averages over ranks; the sum is wanted, since the recipe has divided by the global count already.
        """
        self.spoiled |= not bool(torch.isfinite(loss.detach()))
        self.engine.set_gradient_accumulation_boundary(final)
        self.engine.backward(loss * distributed.world_size())

    def step(self) -> dict[str, float]:
        """Clip and update; when any rank's loss or gradient was not finite, all ranks drop the update.

        Returns:
            `grad_norm` before clipping (NaN where DeepSpeed does not know it), `lr` used, and `skipped` so far.

        Raises:
            StageFailed: too many updates in a row were dropped.
        """
        factor = self.schedule(self.steps)
        bad = distributed.any_rank(self.spoiled or not math.isfinite(float(self.size)))
        if bad:
            self.skipped += 1
            self.bad_in_a_row += 1
            refuse_divergence(self.bad_in_a_row, self.steps)
            # Neither weights nor moments may see the gradient.
            self.engine.optimizer.zero_grad()
        else:
            self.bad_in_a_row = 0
            for group, peak in zip(self.engine.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * factor
            self.engine.step()
        self.spoiled = False
        self.size.zero_()
        self.steps += 1
        norm = None if bad else self.engine.get_global_grad_norm()
        return {
            "grad_norm": math.nan if norm is None else float(norm),
            "lr": self.learning_rate * factor,
            "skipped": float(self.skipped),
        }

    def _look_at(self, gradient: Tensor) -> None:
        """Add the norm of one parameter's gradient: the sum is finite when all of them are."""
        self.size += gradient.detach().float().norm()

    def state_dict(self) -> dict[str, Any]:
        """Whole weights and this rank's part of the optimizer; to be loaded by the same rank of as many ranks."""
        with self.gathered() as module:
            weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
        return {
            "module": weights,
            "optimizer": {key: value for key, value in self.engine.optimizer.state_dict().items() if _is_plain(value)},
            "counters": [self.steps, self.skipped, self.bad_in_a_row],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        with self.gathered(change=True) as module:
            module.load_state_dict(state["module"])
        part: Any = state["optimizer"]
        if self.zero_stage in (1, 2):
            part = [part] * distributed.world_size()
        self.engine.optimizer.load_state_dict(part)
        self.steps, self.skipped, self.bad_in_a_row = state["counters"]

    @contextlib.contextmanager
    def gathered(self, *, change: bool = False) -> Iterator[Any]:
        """The module with whole weights on every rank; `change` writes them back, as rank 0 left them."""
        if self.zero_stage < 3:
            yield self.engine.module
            return
        parameters = list(self.engine.module.parameters())
        with self.gathered_parameters(parameters, modifier_rank=0 if change else None):
            yield self.engine.module


def _is_plain(value: Any) -> bool:
    """Whether a value loads without unpickling code; DeepSpeed's own objects are rebuilt from its settings instead."""
    if isinstance(value, dict):
        return all(_is_plain(item) for item in [*value.keys(), *value.values()])
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str) or type(value) in (Tensor, nn.Parameter)


def _import_deepspeed() -> Any:
    """Import late and quietly, and make its process groups keep our time limit, which it drops."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed
    from deepspeed.comm.torch import TorchBackend
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)

    def new_group(_: Any, ranks: Any) -> Any:
        return torch.distributed.new_group(ranks, timeout=distributed.TIMEOUT)

    TorchBackend.new_group = new_group
    return deepspeed
