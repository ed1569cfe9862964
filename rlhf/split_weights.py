"""Weights that ZeRO-3 has split over the ranks: keeping some whole, and putting all together for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class SplitWeights:
    """What one of DeepSpeed's ZeRO-3 engines does to the weights of its module, with or without an optimizer."""

    def __init__(self, engine: Any) -> None:
        """Stop fetching weights ahead, and keep the heads whole on every rank.

        Fetching ahead follows the order of modules of the step before, has all ranks compare that order, and waits for
        ever when one of them had more blocks of rows to run the head on than another.

        Args:
            engine: DeepSpeed's.
        """
        self.engine, self.module = engine, engine.module
        optimizer = engine.optimizer
        self.offload = getattr(optimizer, "parameter_offload", optimizer)
        self.depth = 0
        self.offload.fwd_pre_hook.remove()
        # One list where there is an optimizer; it is what the optimizer refreshes after each step.
        self.whole: list[Any] = getattr(optimizer, "persistent_parameters", self.offload.persistent_parameters)
        for weight in _head_weights(self.module):
            if not weight.ds_persist:
                weight.ds_persist = True
                self.whole.append(weight)
        for weight in self.whole:
            # Without an order of modules to go by, DeepSpeed lets go of every weight after use but for these.
            weight.is_external_param = True
        self.refresh()

    def refresh(self) -> None:
        """Fetch again what is whole on every rank, after the parts have been changed."""
        if self.whole:
            self.whole[0].partition(self.whole)
            self.whole[0].all_gather(self.whole)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Any]:
        """The module with whole weights on every rank: one exchange, and then it runs as a plain module.

        The hooks that fetch and drop weights module by module are off inside, and on again however it ends. DeepSpeed's
        own helper leaves them off after an error.
        """
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        if self.depth:
            yield self.module
            return
        parts = [weight for weight in self.module.parameters() if not weight.ds_persist]
        with GatheredParameters(parts):
            offload = self.offload
            for hook in [*offload.forward_hooks, *offload.backward_hooks]:
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            self.depth += 1
            try:
                yield self.module
            finally:
                self.depth -= 1
                offload._register_deepspeed_module(offload.module)


def _head_weights(module: nn.Module) -> list[Any]:
    """The weights of the output matrices inside a module, shared ones once; frozen or not."""
    heads = [part.get_output_embeddings() for part in module.modules() if isinstance(part, PreTrainedModel)]  # type: ignore[no-untyped-call]
    found = [weight for head in heads if isinstance(head, nn.Module) for weight in head.parameters()]
    return list({id(weight): weight for weight in found}.values())
