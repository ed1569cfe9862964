"""ZeRO over several ranks, behind the same verbs as the plain engine; imported only when there are several ranks.

Recipes run the module itself, in parts (trunk, then head) and in as many blocks as a rank's own lengths ask for. Three
things follow. What DeepSpeed does in the forward pass of its own wrapper is done at the loss instead. Under ZeRO-3
weights are fetched where a module needs them and not ahead, since ranks need not run the same modules in one order. And
the head's matrix stays whole on every rank, for the same reason.
"""

import contextlib
import datetime
import gc
import importlib
import logging
import math
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlhf import distributed
from rlhf.device import autocast, choose_device
from rlhf.engine import refuse_divergence
from rlhf.engine_settings import EngineSettings
from rlhf.errors import BadInput
from rlhf.model_settings import without_checkpointing
from rlhf.optimizers import make_optimizer, parameter_groups
from rlhf.schedules import Schedule
from rlhf.split_state import read_pieces, take_back_step, write_pieces
from rlhf.split_weights import SplitWeights

WHOLE_BELOW = 100_000
"""Weights of fewer elements stay whole on every rank under ZeRO-3: they cost little and are asked for often."""

_live: list[Any] = []
"""Weak references to DeepSpeed's engines of this process, which `destroy_all` takes apart."""


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
        rates: Mapping[str, float],
        settings: EngineSettings,
    ) -> None:
        """See `engine.prepare`."""
        self.device = choose_device()
        self.learning_rate, self.schedule = learning_rate, schedule
        self.max_grad_norm = max_grad_norm
        self.precision, self.zero_stage = precision, settings.zero_stage
        self.offloaded = settings.offload != "none" and self.zero_stage > 0
        groups, self.peaks = parameter_groups(model, learning_rate, rates)
        trained = [list(group["params"]) for group in groups]
        optimizer = make_optimizer(groups, settings, learning_rate=learning_rate, weight_decay=weight_decay)
        self.engine = _initialize(model, optimizer, settings, max_grad_norm)
        self.split = SplitWeights(self.engine) if self.zero_stage == 3 else None
        self.steps, self.skipped, self.bad_in_a_row, self.spoiled = 0, 0, 0, False
        # Gradients are cut up and sent away during the backward pass, so each is looked at where it appears.
        self.size = torch.zeros((), device=self.device)
        self.touched = [0.0] * len(groups)
        for number, group in enumerate(trained):
            for parameter in group:
                parameter.register_hook(partial(self._look_at, number))

    @property
    def module(self) -> Any:
        """The wrapped module."""
        return self.engine.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward pass of the module in the wanted precision; DeepSpeed's own would switch autocast off."""
        with autocast(self.device, self.precision):
            return self.engine.module(*args, **kwargs)

    def backward(self, loss: Tensor, *, final: bool = True) -> None:
        """Add the gradient of `loss`, which is this rank's part of the global mean.

        DeepSpeed averages over ranks; the sum is wanted, since the recipe has divided by the global count already.
        """
        self.spoiled |= not bool(torch.isfinite(loss.detach()))
        self.engine.set_gradient_accumulation_boundary(final)
        if self.zero_stage > 0:
            self.engine.optimizer.clear_backward_seen_flag()
        summed = loss * distributed.world_size()
        # First thing in the backward pass, as DeepSpeed has it after a forward pass of its wrapper.
        summed.register_hook(self._begin)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.engine.backward(summed)

    def step(self) -> dict[str, float]:
        """Clip and update; when any rank's loss or gradient was not finite, all ranks drop the update.

        Returns:
            `grad_norm` before clipping (NaN after a bad loss), `lr` used, and `skipped` so far.

        Raises:
            StageFailed: too many updates in a row were dropped.
        """
        factor = self.schedule(self.steps)
        spoiled = float(self.spoiled or not math.isfinite(float(self.size)))
        found = distributed.reduce_sum({"bad": spoiled, **{str(n): value for n, value in enumerate(self.touched)}})
        bad, norm, idle = found["bad"] > 0, math.nan, [n for n in range(len(self.peaks)) if not found[str(n)]]
        if bad:
            self.skipped += 1
            self.bad_in_a_row += 1
            refuse_divergence(self.bad_in_a_row, self.steps)
            self._drop_gradient()
        else:
            self.bad_in_a_row = 0
            # Torch leaves weights without a gradient alone; for DeepSpeed theirs is 0, and a step like any other.
            for number, (group, peak) in enumerate(zip(self.engine.optimizer.param_groups, self.peaks, strict=True)):
                group["lr"] = 0.0 if number in idle else peak * factor
            norm = self._update()
            take_back_step(self.engine, idle)
        if self.zero_stage == 3:
            self._empty_buffers()
        self.spoiled, self.touched = False, [0.0] * len(self.peaks)
        self.size.zero_()
        self.steps += 1
        return {"grad_norm": norm, "lr": self.learning_rate * factor, "skipped": float(self.skipped)}

    def state_dict(self) -> dict[str, Any]:
        """This rank's pieces of weights and moments, and the counters."""
        return {"pieces": read_pieces(self.engine), "counters": [self.steps, self.skipped, self.bad_in_a_row]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        write_pieces(self.engine, state)
        if self.split is not None:
            self.split.refresh()
        self.steps, self.skipped, self.bad_in_a_row = state["counters"]

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Any]:
        """The module with whole weights on every rank, and under ZeRO-3 nothing that would fetch them again."""
        with without_checkpointing(self.engine.module):
            if self.split is None:
                yield self.engine.module
                return
            with self.split.gathered() as module:
                yield module

    def _begin(self, gradient: Tensor) -> None:
        self.engine._backward_prologue()

    def _look_at(self, group: int, gradient: Tensor) -> None:
        """Add the norm of one parameter's gradient: the sum is finite when all of them are."""
        self.size += gradient.detach().float().norm()
        self.touched[group] = 1.0

    def _drop_gradient(self) -> None:
        """Forget what was added up: neither weights nor moments may see it."""
        optimizer = self.engine.optimizer
        optimizer.zero_grad()
        if self.zero_stage in (1, 2):
            # What the next micro-batch finds is overwritten, and not added to, when it counts as the first.
            optimizer.micro_step_id = -1
        if self.offloaded:
            optimizer.reset_cpu_buffers()

    def _empty_buffers(self) -> None:
        """Set to 0 where ZeRO-3 adds gradients up.

        The first micro-batch of a step overwrites what is there and the others add to it, so a weight that only a later
        one touches (a value head beside demonstrations) would add to the gradient of the step before.
        """
        optimizer = self.engine.optimizer
        optimizer.grad_partitions_flat_buffer.zero_()
        for flat in optimizer.fp32_partitioned_groups_flat:
            if flat.grad is not None:
                flat.grad.zero_()

    def _update(self) -> float:
        """Let DeepSpeed take the step; returns the norm of the gradient before clipping."""
        if self.zero_stage > 0:
            self.engine.step()
            return float(self.engine.get_global_grad_norm())
        # Without ZeRO DeepSpeed clips but does not say by how much, so the clipping is done here.
        parameters = [weight for group in self.engine.optimizer.param_groups for weight in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or math.inf))
        self.engine.step()
        return norm


def split_frozen(model: nn.Module, settings: EngineSettings) -> None:
    """Split the weights of a model that is never trained over the ranks (ZeRO-3); its calls fetch what they need.

    Args:
        model: without a weight that needs a gradient; changed in place.
        settings: of the engines beside it.
    """
    # Kept with the model: taken apart, the engine would take its hooks off.
    model.__dict__["split_weights"] = SplitWeights(_initialize(model, None, settings, 0.0))


def destroy_all() -> None:
    """Take apart all engines of this process; no one may use them any more.

    All ranks together, and before the process group goes: ended in another order, ZeRO-3 aborts a run that went well.
    """
    distributed.barrier()
    for found in _live:
        if (engine := found()) is not None:
            engine.destroy()
    _live.clear()
    gc.collect()


def _initialize(model: nn.Module, optimizer: Any, settings: EngineSettings, max_grad_norm: float) -> Any:
    """DeepSpeed's engine around a model.

    Args:
        model: whole; changed in place.
        optimizer: over its trainable weights; None for a model that is never trained.
        settings: of the engine.
        max_grad_norm: 0 for never.
    """
    distributed.start(settings.timeout_s)
    deepspeed = _import_deepspeed()
    zero: dict[str, Any] = {"stage": settings.zero_stage, "stage3_param_persistence_threshold": WHOLE_BELOW}
    place = {"device": "cpu", "pin_memory": choose_device().type == "cuda"}
    if settings.offload != "none" and optimizer is not None:
        zero["offload_optimizer"] = place
    if settings.offload == "parameters":
        zero["offload_param"] = place
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm if settings.zero_stage > 0 else 0.0,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        # Torch's own AdamW runs on the CPU as well, gives the same bits, and needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    _live.append(weakref.ref(engine))
    return engine


def _import_deepspeed() -> Any:
    """Import late and quietly, make its process groups keep our time limit, which it drops, and compile nothing.

    Raises:
        BadInput: it is not installed.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise BadInput(
            f"{distributed.world_size()} ranks need the package deepspeed, which cannot be imported ({error}); install "
            "it with pip, or use launch: python"
        ) from error
    from deepspeed.utils import logger

    backend: Any = importlib.import_module("deepspeed.comm.torch")

    logger.setLevel(logging.ERROR)
    # Once for every exchange, of names that DeepSpeed uses and torch would like to be others.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)

    def new_group(_: Any, ranks: Any) -> Any:
        return torch.distributed.new_group(ranks, timeout=datetime.timedelta(seconds=distributed.timeout_s()))

    backend.TorchBackend.new_group = new_group
    # On a CPU it would compile an extension at its first start, a minute, for a collective that is not used here.
    backend.build_shm_op = lambda: None
    return deepspeed
