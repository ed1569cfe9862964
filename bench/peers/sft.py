"""Supervised fine-tuning against TRL 1.16's SFTTrainer, the loss on responses only.

    python -m bench.peers.sft --size M --steps 8
    python -m bench.peers.sft --size M --profile

Ours is `rlhf.logprobs.response_logprobs`, `rlhf.losses.language_model` and `rlhf.engine`, as the recipe `sft` calls
them. Row `defaults` is the peer as it comes: bf16 and gradient checkpointing. Exit code 1 when numbers differ by more
than rounding. `make bench-envs` builds the peer's environment.
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
from trl import SFTConfig, SFTTrainer

from bench.peers.breakdown import work_of
from bench.peers.models import EOS, PAD, SIZES, make_sequences, write_policy
from bench.peers.models import Sequence as Example
from bench.peers.ours import embedding_of, our_engine
from bench.peers.stepping import BATCH, ROWS, Peer, Variant, explain_step, run_rows, trainer_arguments
from rlhf.batches import Batch, collate
from rlhf.device import autocast
from rlhf.logprobs import response_logprobs
from rlhf.losses.language_model import completion_loss
from rlhf.models import load_policy

IGNORED = -100


class Lane:
    """Ours: the body of the recipe's loop."""

    def __init__(self, folder: Path, precision: str, matmul: str) -> None:
        """Load the policy."""
        policy = load_policy(folder, device="cpu")
        self.engine, self.precision, self.matmul = our_engine(policy, precision, matmul), precision, matmul
        self.forbidden = torch.zeros(policy.config.vocab_size, dtype=torch.bool)

    def _logprobs(self, batch: Batch) -> Tensor:
        with autocast(self.engine.device, self.precision):
            return response_logprobs(
                self.engine.module, batch, temperature=1.0, forbidden=self.forbidden
            ).logprobs  # fmt: skip

    @torch.no_grad()
    def probe(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities of all response tokens."""
        batch = _collate(examples)
        return self._logprobs(batch)[batch.response_mask]

    def weight(self) -> Tensor:
        """The end token's row, which every answer reads."""
        return embedding_of(self.engine.module, EOS)

    def step(self, examples: Sequence[Example]) -> float:
        """One step of the recipe."""
        batch = _collate(examples)
        tokens = sum(len(one.response) for one in examples)
        loss = completion_loss(self._logprobs(batch), batch.response_mask, total_tokens=tokens)
        self.engine.backward(loss)
        self.engine.step()
        return float(loss.detach())


def _collate(examples: Sequence[Example]) -> Batch:
    return collate([one.prompt for one in examples], [one.response for one in examples], pad_id=PAD)


def make_peer(folder: Path, data: Sequence[Example], seed: int, variant: Variant) -> Peer:
    """TRL's trainer on the same demonstrations."""
    rows = [
        {"input_ids": one.prompt + one.response, "labels": [IGNORED] * len(one.prompt) + one.response} for one in data
    ]
    known = {tuple(one.prompt + one.response): one for one in data}

    def find(batch: dict[str, Tensor]) -> list[Example]:
        real = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        return [known[tuple(ids[mask].tolist())] for ids, mask in real]

    def read(output: Any, batch: dict[str, Tensor]) -> Tensor:
        return output.log_probs[batch["labels"][:, 1:] != IGNORED]

    return Peer(
        trainer=SFTTrainer, arguments=SFTConfig, model=load_policy(folder, device="cpu"), data=Dataset.from_list(rows),
        settings=trainer_arguments("sft", seed, **variant.settings), find=find, read=read,
    )  # fmt: skip


def main() -> int:
    """Run the comparison; the exit code."""
    options = arguments(__doc__ or "", ROWS, steps=8)
    size = SIZES[options.size]
    torch.set_num_threads(1)
    folder = write_policy(size, STATE / "peers" / f"sft-{options.size}", seed=options.seed)
    data = make_sequences(size, BATCH * (options.steps + 1), pairs=False, seed=options.seed)
    lane, defaults = partial(Lane, folder), {"gradient_checkpointing": True}
    if options.profile:
        batch = data[:BATCH]
        return explain_step("sft", options, lane("float32", options.matmul), work_of(batch, scored=True), batch)
    rows = run_rows(options.rows, partial(make_peer, folder, data, options.seed), lane, defaults)
    return finish("sft", options.size, rows, {"batch": BATCH})


if __name__ == "__main__":
    sys.exit(main())
