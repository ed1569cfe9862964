"""The reward model against TRL 1.16's RewardTrainer: Bradley-Terry pairs, scored at the last token.

    python -m bench.peers.reward --size M --steps 8
    python -m bench.peers.reward --size M --profile

Ours is `rlhf.reward_batch.losses` and `rlhf.engine`, as the recipe `reward` calls them, without the recipe's additions
(centring, swapped tokens) and with a head without bias, as the peer's. Row `defaults` is the peer as it comes: bf16 and
gradient checkpointing. Exit code 1 when numbers differ by more than rounding. `make bench-envs` builds the peer's
environment.
"""

import sys

from bench.peers.pairing import STATE, arguments, enter_environment, finish

if __name__ == "__main__":
    enter_environment("trl-1.16")  # which alone has what is imported next

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig, RewardTrainer

from bench.peers.breakdown import work_of
from bench.peers.models import PAD, SIZES, make_sequences, write_policy
from bench.peers.models import Sequence as Example
from bench.peers.ours import our_engine
from bench.peers.reward_models import make_classifier, make_reward_model
from bench.peers.stepping import BATCH, ROWS, Peer, Variant, explain_step, run_rows, trainer_arguments
from rlhf.batches import collate
from rlhf.device import autocast
from rlhf.preferences import Pair
from rlhf.reward_batch import Example as Element
from rlhf.reward_batch import losses


class Lane:
    """Ours: the recipe's loss of a batch."""

    def __init__(self, folder: Path, precision: str, matmul: str) -> None:
        """Start a reward model from the policy."""
        self.engine = our_engine(make_reward_model(folder), precision, matmul)
        self.precision, self.matmul = precision, matmul

    @torch.no_grad()
    def probe(self, examples: Sequence[Example]) -> Tensor:
        """Scores of the chosen, then of the rejected answers."""
        prompts = [one.prompt for one in examples]
        answers = [one.response for one in examples] + [one.other for one in examples]
        batch = collate([*prompts, *prompts], answers, pad_id=PAD)
        with autocast(self.engine.device, self.precision):
            scores: Tensor = self.engine.module.score(batch.input_ids, batch.attention_mask, batch.response_mask)
        return scores

    def weight(self) -> Tensor:
        """The head."""
        return self.engine.module.head.weight[0]

    def step(self, examples: Sequence[Example]) -> float:
        """One step of the recipe."""
        part = [Element(Pair(one.prompt, one.response, one.other, 1.0), None) for one in examples]
        preference, swap = losses(self.engine, part, centering=0.0, pad_id=PAD, pairs=len(part), tokens=0.0)
        self.engine.backward(preference.loss + 0.0 * swap.loss)
        self.engine.step()
        return float(preference.loss.detach())


def make_peer(folder: Path, data: Sequence[Example], seed: int, variant: Variant) -> Peer:
    """TRL's trainer on the same pairs."""
    rows = [{"chosen_ids": one.prompt + one.response, "rejected_ids": one.prompt + one.other} for one in data]
    known = {tuple(one.prompt + one.response): one for one in data}

    def find(batch: dict[str, Tensor]) -> list[Example]:
        half = len(batch["input_ids"]) // 2
        real = zip(batch["input_ids"][:half], batch["attention_mask"][:half].bool(), strict=True)
        return [known[tuple(ids[mask].tolist())] for ids, mask in real]

    def read(output: Any, _: dict[str, Tensor]) -> Tensor:
        return output.logits.squeeze(-1)

    return Peer(
        trainer=RewardTrainer, arguments=RewardConfig, model=make_classifier(folder), data=Dataset.from_list(rows),
        settings=trainer_arguments("reward", seed, **variant.settings), find=find, read=read,
    )  # fmt: skip


def main() -> int:
    """Run the comparison; the exit code."""
    options = arguments(__doc__ or "", ROWS, steps=8)
    size = SIZES[options.size]
    torch.set_num_threads(1)
    folder = write_policy(size, STATE / "peers" / f"reward-{options.size}", seed=options.seed)
    data = make_sequences(size, BATCH * (options.steps + 1), pairs=True, seed=options.seed)
    lane, defaults = partial(Lane, folder), {"gradient_checkpointing": True}
    if options.profile:
        batch = data[:BATCH]
        return explain_step("reward", options, lane("float32", options.matmul), work_of(batch, scored=False), batch)
    rows = run_rows(options.rows, partial(make_peer, folder, data, options.seed), lane, defaults)
    return finish("reward", options.size, rows, {"batch": BATCH})


if __name__ == "__main__":
    sys.exit(main())
