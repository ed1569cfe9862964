"""DPO against TRL 1.16's DPOTrainer; both compute the reference's log-probabilities once, before the training.

    python -m bench.peers.dpo --size M --steps 6
    python -m bench.peers.dpo --size M --profile

Ours is `rlhf.pair_objective` with `rlhf.engine`, as the recipe `dpo` calls them. Row `defaults` is the peer as it
comes: bf16, gradient checkpointing, and the reference asked again in every step. Exit code 1 when numbers differ by
more than rounding. `make bench-envs` builds the peer's environment.
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
from trl import DPOConfig, DPOTrainer

from bench.peers.breakdown import work_of
from bench.peers.models import EOS, PAD, SIZES, make_sequences, make_tokenizer, write_policy
from bench.peers.models import Sequence as Example
from bench.peers.ours import choosing, embedding_of, our_engine, our_settings
from bench.peers.stepping import BATCH, ROWS, Peer, Variant, explain_step, run_rows, trainer_arguments
from rlhf.device import autocast
from rlhf.dpo_config import Config
from rlhf.logprob_cache import LogprobCache
from rlhf.models import load_policy
from rlhf.pair_logprobs import pair_logprobs
from rlhf.pair_objective import Examples, PairObjective, Tokens
from rlhf.preferences import Pair

BETA = 0.1
LIMITS = {"float32": (2e-5, 1e-5), "bfloat16": (2e-2, 1e-2)}
"""Of means over an answer's tokens, in which rounding evens out."""


class Lane:
    """Ours: the recipe's objective and engine."""

    def __init__(self, folder: Path, data: Sequence[Example], precision: str, matmul: str) -> None:
        """Load the policy and ask the reference, which is the policy before training, about all pairs."""
        policy = load_policy(folder, device="cpu")
        self.engine = our_engine(policy, precision, matmul)
        self.precision, self.matmul = precision, matmul
        self.place = {tuple(one.prompt + one.response): at for at, one in enumerate(data)}
        forbidden = torch.zeros(policy.config.vocab_size, dtype=torch.bool)
        self.tokens = Tokens(forbidden, PAD)
        config = our_settings("dpo", Config, objective="dpo", beta=BETA, batch_size=BATCH, precision=precision)
        empty = folder / "pairs"
        empty.mkdir(exist_ok=True)
        for split in ("train", "dev", "test"):
            (empty / f"{split}.jsonl").touch()
        self.objective = PairObjective(
            config, make_tokenizer(SIZES["T"]), self.tokens, pairs=empty, judgements=empty, max_tokens=512
        )
        self.pairs = [Pair(one.prompt, one.response, one.other, 1.0) for one in data]
        self.objective.data["train"] = Examples(self.pairs, {})
        cache = LogprobCache(folder, forbidden, rows=BATCH, precision=precision)
        with choosing(matmul):
            self.objective.ask_reference(policy, [], cache)

    @torch.no_grad()
    def probe(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities of the chosen, then of the rejected answers, by their lengths."""
        part = [self.pairs[row] for row in self._rows(examples)]
        with autocast(self.engine.device, self.precision):
            sides = pair_logprobs(self.engine.module, part, self.tokens.forbidden, pad_id=PAD)
        lengths = [len(pair.chosen) for pair in part] + [len(pair.rejected) for pair in part]
        return torch.cat(sides) / torch.tensor(lengths)

    def weight(self) -> Tensor:
        """The end token's row, which every answer reads."""
        return embedding_of(self.engine.module, EOS)

    def step(self, examples: Sequence[Example]) -> float:
        """One step of the recipe."""
        index = self._rows(examples)
        with autocast(self.engine.device, self.precision):
            anchor = self.objective.anchor(self.engine.module, "train", index, 0)
            loss, _ = self.objective.compare(self.engine.module, "train", index, anchor, total=len(index))
        self.engine.backward(loss)
        self.engine.step()
        return float(loss.detach())

    def _rows(self, examples: Sequence[Example]) -> list[int]:
        return [self.place[tuple(one.prompt + one.response)] for one in examples]


def make_peer(folder: Path, data: Sequence[Example], seed: int, variant: Variant) -> Peer:
    """TRL's trainer on the same pairs."""
    rows = [{"prompt_ids": one.prompt, "chosen_ids": one.response, "rejected_ids": one.other} for one in data]
    known = {tuple(one.prompt + one.response): one for one in data}

    def find(batch: dict[str, Tensor]) -> list[Example]:
        half = len(batch["input_ids"]) // 2
        real = zip(batch["input_ids"][:half], batch["attention_mask"][:half].bool(), strict=True)
        return [known[tuple(ids[mask].tolist())] for ids, mask in real]

    def read(output: Any, batch: dict[str, Tensor]) -> Tensor:
        return output.log_probs.sum(dim=1) / batch["completion_mask"].sum(dim=1)

    settings = {"beta": BETA, "precompute_ref_log_probs": True, **variant.settings}
    return Peer(
        trainer=DPOTrainer, arguments=DPOConfig, model=load_policy(folder, device="cpu"), data=Dataset.from_list(rows),
        settings=trainer_arguments("dpo", seed, **settings), find=find, read=read,
    )  # fmt: skip


def main() -> int:
    """Run the comparison; the exit code."""
    options = arguments(__doc__ or "", ROWS, steps=6)
    size = SIZES[options.size]
    torch.set_num_threads(1)
    folder = write_policy(size, STATE / "peers" / f"dpo-{options.size}", seed=options.seed)
    data = make_sequences(size, BATCH * (options.steps + 1), pairs=True, seed=options.seed)
    lane = partial(Lane, folder, data)
    defaults = {"gradient_checkpointing": True, "precompute_ref_log_probs": False}
    if options.profile:
        batch = data[:BATCH]
        return explain_step("dpo", options, lane("float32", options.matmul), work_of(batch, scored=True), batch)
    rows = run_rows(options.rows, partial(make_peer, folder, data, options.seed), lane, defaults, limits=LIMITS)
    return finish("dpo", options.size, rows, {"batch": BATCH})


if __name__ == "__main__":
    sys.exit(main())
