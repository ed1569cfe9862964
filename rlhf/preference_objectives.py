"""The objectives of the stage `dpo` by name, and what each of them can do."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.batches import sorted_batches
from rlhf.device import autocast
from rlhf.dpo_config import Config
from rlhf.judgement_objective import JudgementObjective
from rlhf.logprob_cache import LogprobCache
from rlhf.pair_objective import Examples, PairObjective


class Objective(Protocol):
    """One kind of example, pairs or judgements, and the loss on it."""

    config: Config
    data: dict[str, Examples]
    """Examples by split."""
    reference: dict[str, Any]
    """What the reference says: what `ask_reference` found, or what a checkpoint kept of it."""

    def refusal(self) -> str | None:
        """Why nothing can be learnt; None when something can."""

    def lengths(self, split: str) -> list[int]:
        """Longest sequence of each example, tokens."""

    def ask_reference(self, policy: PreTrainedModel, plan: Sequence[Sequence[int]], cache: LogprobCache) -> None:
        """Fill `reference` from the policy as it is before the first update."""

    def anchor(self, policy: PreTrainedModel, split: str, rows: Sequence[int], place: int) -> Tensor:
        """A number of a whole batch that its losses are measured against, without gradient, a scalar."""

    def compare(
        self, policy: PreTrainedModel, split: str, index: Sequence[int], anchor: Tensor, *, total: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a part of a batch of `total` examples, and sums for `means`."""

    def means(self, sums: dict[str, float], batches: int) -> dict[str, float]:
        """What is shown, from the sums of `compare` over so many batches."""


OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "dpo": PairObjective,
    "ipo": PairObjective,
    "kto": JudgementObjective,
}
"""By `dpo.objective`; which loss it is for pairs, the settings say."""


@torch.no_grad()
def held_out(objective: Objective, policy: PreTrainedModel, split: str) -> dict[str, float]:
    """The numbers of `compare` on examples that are not trained on; all ranks compute all of them.

    Args:
        objective: knows the examples and what the reference says about them.
        policy: as it is now.
        split: "dev" or "test".

    Returns:
        Means over the split; nothing for an empty one.
    """
    count, sums = len(objective.data[split].usable), dict[str, float]()
    if not count:
        return sums
    anchor = objective.anchor(policy, split, range(count), 0)
    for index in sorted_batches(objective.lengths(split), objective.config.batch_size):
        with autocast(policy.device, objective.config.precision):
            _, numbers = objective.compare(policy, split, index, anchor, total=count)
        sums = {name: sums.get(name, 0.0) + value for name, value in numbers.items()}
    return objective.means(sums, 1)
