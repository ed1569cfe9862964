"""Learning from pairs: DPO, cDPO and IPO, with or without a reference, per response or per token."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.dpo_config import Config
from rlhf.logprob_cache import LogprobCache
from rlhf.losses.dpo import DpoLoss, dpo_loss, ipo_loss, length_normalised, preferred_nll
from rlhf.pair_logprobs import all_pair_logprobs, pair_logprobs
from rlhf.preferences import Pair, encode_pairs
from rlhf.record_file import RecordFile
from rlhf.row_views import chosen

SPLITS = ("train", "dev", "test")
UNLIMITED = 2**31

PairLoss = Callable[..., DpoLoss]


class Tokens(NamedTuple):
    """What every forward pass needs to know about the vocabulary."""

    forbidden: Tensor
    """True at tokens that are never sampled. [V] bool"""
    pad_id: int


class Examples(NamedTuple):
    """Examples of one split that can be learnt from, and why others cannot."""

    usable: Sequence[Any]
    counts: dict[str, int]


def read_pairs(file: Path, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, max_pairs: int | None) -> Examples:
    """Pairs that fit and that express a preference; a tie says nothing about which side to make likelier.

    Args:
        file: JSON lines of pair records.
        tokenizer: the policy's.
        max_tokens: longest prompt + response, tokens.
        max_pairs: only the first so many records are read; None for all.
    """
    encoded = encode_pairs(tokenizer, RecordFile(file)[:max_pairs], max_tokens=UNLIMITED)
    fitting = chosen(encoded, lambda pair: pair.longest <= max_tokens)
    usable = chosen(fitting, lambda pair: pair.label != 0.5)
    counts = {"pairs": len(usable), "ties": len(fitting) - len(usable), "too_long": len(encoded) - len(fitting)}
    return Examples(usable, counts)


class PairObjective:
    """Pairs, what the reference says about them, and their loss."""

    def __init__(
        self, config: Config, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, *, pairs: Path, judgements: Path,
        max_tokens: int,
    ) -> None:  # fmt: skip
        """Read the pairs; single judgements are not looked at.

        Args:
            config: settings.
            tokenizer: the policy's.
            tokens: forbidden ids and PAD.
            pairs: folder of pair records.
            judgements: not read.
            max_tokens: longest prompt + response, tokens.
        """
        self.config, self.tokens, self.folder = config, tokens, pairs
        losses: dict[str, PairLoss] = {
            "dpo": partial(dpo_loss, label_smoothing=config.label_smoothing), "ipo": ipo_loss,
        }  # fmt: skip
        self.loss = losses[config.objective]
        self.data = {
            split: read_pairs(
                pairs / f"{split}.jsonl", tokenizer, max_tokens=max_tokens, max_pairs=config.max_pairs
            ) for split in SPLITS
        }  # fmt: skip
        self.reference: dict[str, Any] = {}

    def refusal(self) -> str | None:
        """Why nothing can be learnt; None when something can."""
        train = self.data["train"]
        if train.usable:
            return None
        return f"{self.folder}/train.jsonl: nothing to learn from {train.counts}; add pairs or raise max_tokens"

    def lengths(self, split: str) -> list[int]:
        """Tokens of the longer side of each pair, its prompt included."""
        pairs: Sequence[Pair] = self.data[split].usable
        return [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs]

    def ask_reference(self, policy: PreTrainedModel, plan: Sequence[Sequence[int]], cache: LogprobCache) -> None:
        """Log-probabilities of both sides of all pairs under the policy as it is now.

        Args:
            policy: before the first update.
            plan: not needed for pairs.
            cache: of values that an earlier run has computed.
        """
        for split, examples in self.data.items():
            pairs: Sequence[Pair] = examples.usable
            if self.config.reference_free:
                self.reference[split] = torch.zeros(len(pairs), 2)
                continue
            ids = ([pair.prompt, pair.chosen, pair.rejected] for pair in pairs)

            def compute(pairs: Sequence[Pair] = pairs) -> Tensor:
                return all_pair_logprobs(
                    policy, pairs, self.tokens.forbidden, pad_id=self.tokens.pad_id, rows=self.config.batch_size,
                    precision=self.config.precision,
                )  # fmt: skip

            self.reference[split] = cache.get(ids, (len(pairs), 2), compute)

    def anchor(self, policy: PreTrainedModel, split: str, rows: Sequence[int], place: int) -> Tensor:
        """0: the two sides of a pair are measured against each other."""
        return torch.zeros((), device=policy.device)

    def compare(
        self, policy: PreTrainedModel, split: str, index: Sequence[int], anchor: Tensor, *, total: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of some pairs of a batch and what is recorded of them.

        Args:
            policy: being trained; gradient flows.
            split: "train", "dev" or "test".
            index: B places in the split.
            anchor: not needed for pairs.
            total: pairs of the whole batch.

        Returns:
            The loss, and numbers that add up to the means over the batch.
        """
        config, part = self.config, [self.data[split].usable[row] for row in index]
        sides = pair_logprobs(policy, part, self.tokens.forbidden, pad_id=self.tokens.pad_id)
        references = self.reference[split][index].to(sides[0].device).unbind(dim=1)
        label = torch.tensor([pair.label for pair in part], device=sides[0].device)
        lengths = [torch.tensor([len(side) for side in column]).to(label.device) for column in _columns(part)]
        rewarded = [*sides, *references]
        if config.length_normalised:
            rewarded = [length_normalised(*two) for two in zip(rewarded, [*lengths, *lengths], strict=True)]
        result = self.loss(*rewarded, label, beta=config.beta, total_pairs=total)
        loss, parts = result.loss, {}
        if config.nll_coef:
            chosen, rejected = (length_normalised(*two) for two in zip(sides, lengths, strict=True))
            nll = preferred_nll(chosen, rejected, label, total_pairs=total)
            loss, parts = loss + config.nll_coef * nll, {"nll": float(nll.detach())}
        numbers = {
            "loss": float(loss.detach()), "accuracy": float(result.accuracy) * len(part) / total,
            "margin": float(result.margin), "chosen_reward": float(result.chosen_reward),
            "rejected_reward": float(result.rejected_reward),
        }  # fmt: skip
        for name, side, reference in zip(("chosen", "rejected"), sides, references, strict=True):
            numbers[f"{name}_logprob"] = float(side.detach().sum()) / total
            if not config.reference_free:
                numbers[f"{name}_change"] = float((side.detach() - reference).sum()) / total
        return loss, numbers | parts

    def means(self, sums: dict[str, float], batches: int) -> dict[str, float]:
        """Means from the sums of `compare` over so many batches."""
        return {name: value / batches for name, value in sums.items()}


def _columns(part: Sequence[Pair]) -> tuple[list[list[int]], list[list[int]]]:
    return [pair.chosen for pair in part], [pair.rejected for pair in part]
