"""Demonstrations for the steps of a run that mixes a language-model loss into another one (PPO-ptx)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rlhf import distributed
from rlhf.batches import Batch
from rlhf.demonstrations import Example, encode, to_batch
from rlhf.errors import BadInput
from rlhf.record_file import RecordFile
from rlhf.streams import prompt_indices


class DemonstrationStream:
    """An endless seeded stream of demonstrations: a function of the step, so that resuming needs no state of it."""

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int,
        batch: int,
        micro_batch: int | None,
        seed: int,
        device: torch.device,
    ) -> None:
        """Read and encode the training demonstrations.

        Args:
            folder: has train.jsonl.
            tokenizer: the policy's.
            max_tokens: longest prompt + response; longer responses are cut, longer prompts left out.
            batch: demonstrations of a step, over all ranks.
            micro_batch: demonstrations of a forward pass on one rank; None for all.
            seed: of the order.
            device: where batches go.

        Raises:
            BadInput: no demonstration fits, or the ranks do not divide `batch`.
        """
        self.examples: Sequence[Example] = encode(
            tokenizer, RecordFile(folder / "train.jsonl"), max_tokens=max_tokens
        ).examples
        if not self.examples:
            raise BadInput(f"{folder}/train.jsonl: no demonstration fits {max_tokens} tokens; set ppo.ptx_coef: 0")
        if batch % (ranks := distributed.world_size()):
            raise BadInput(f"ppo.ptx_batch is {batch}, wanted a multiple of the {ranks} ranks")
        self.tokenizer, self.batch, self.seed, self.device = tokenizer, batch, seed, device
        self.micro_batch = micro_batch or batch

    def parts(self, step: int) -> list[Batch]:
        """This rank's demonstrations of a step of the run, shortest first, in micro-batches; as many on every rank."""
        window = prompt_indices(len(self.examples), start=step * self.batch, length=self.batch, seed=self.seed)
        mine = sorted(
            (self.examples[index] for index in distributed.share(window)),
            key=lambda example: len(example.prompt) + len(example.response),
        )
        size = self.micro_batch
        chunks = [mine[start : start + size] for start in range(0, len(mine), size)]
        return [to_batch(chunk, self.tokenizer).to(self.device) for chunk in chunks]
