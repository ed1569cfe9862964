"""Learning from single judgements: KTO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.dpo_config import Config
from rlhf.judgements import Judgement, encode_judgements, judgements_of_pairs, mismatched
from rlhf.logprob_cache import LogprobCache
from rlhf.losses.kto import kto_loss, reference_point
from rlhf.outputs import read_jsonl
from rlhf.pair_logprobs import Answer, all_answer_logprobs, answer_logprobs
from rlhf.pair_objective import SPLITS, Examples, Tokens, read_pairs


class JudgementObjective:
    """Judgements, what the reference says about them, and their loss."""

    def __init__(
        self, config: Config, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, *, pairs: Path, judgements: Path,
        max_tokens: int,
    ) -> None:  # fmt: skip
        """Read the judgements, and the pairs as two judgements each.

        Args:
            config: settings.
            tokenizer: the policy's.
            tokens: forbidden ids and PAD.
            pairs: folder of pair records.
            judgements: folder of judgement records; its files may be empty.
            max_tokens: longest prompt + response, tokens.
        """
        self.config, self.tokens, self.max_tokens = config, tokens, max_tokens
        self.where = f"{judgements}/train.jsonl and {pairs}/train.jsonl"
        self.data = {}
        for split in SPLITS:
            preferred = read_pairs(
                pairs / f"{split}.jsonl", tokenizer, max_tokens=max_tokens, max_pairs=config.max_pairs
            )
            records = list(read_jsonl(judgements / f"{split}.jsonl"))[: config.max_pairs]
            single = encode_judgements(tokenizer, records, max_tokens=max_tokens)
            usable = [*single, *judgements_of_pairs(preferred.usable)]
            good = sum(one.good for one in usable)
            too_long = preferred.counts["too_long"] + len(records) - len(single)
            counts = {**preferred.counts, "judgements": len(single), "too_long": too_long}
            self.data[split] = Examples(usable, {**counts, "desirable": good, "undesirable": len(usable) - good})
        self.reference: dict[str, Any] = {}

    def refusal(self) -> str | None:
        """Why nothing can be learnt; None when something can."""
        counts = self.data["train"].counts
        if not self.data["train"].usable:
            return f"{self.where}: nothing to learn from {counts}; add judgements or pairs, or raise max_tokens"
        for name, other in (("desirable", "undesirable"), ("undesirable", "desirable")):
            if not counts[name]:
                return (
                    f"{self.where}: all {counts[other]} judgements are {other}; kto needs both kinds, so add "
                    f"{name} ones or pairs"
                )
        return None

    def lengths(self, split: str) -> list[int]:
        """Tokens of each prompt and answer."""
        judgements: Sequence[Judgement] = self.data[split].usable
        return [len(one.prompt) + len(one.response) for one in judgements]

    def ask_reference(self, policy: PreTrainedModel, plan: Sequence[Sequence[int]], cache: LogprobCache) -> None:
        """Log-probabilities of all judged answers, and of the mismatched answers of every batch, as things are now.

        Args:
            policy: before the first update.
            plan: places in the training split of every batch of the run.
            cache: of values that an earlier run has computed.
        """
        for split, examples in self.data.items():
            own = [Answer(one.prompt, one.response) for one in examples.usable]
            self.reference[split] = self._ask(policy, own, cache)
            batches = plan if split == "train" else [range(len(own))]
            strangers = [self._mismatched(split, rows) for rows in batches]
            flat = self._ask(policy, [answer for group in strangers for answer in group], cache)
            self.reference[f"{split}_mismatched"] = [*torch.split(flat, [len(group) for group in strangers])]

    def anchor(self, policy: PreTrainedModel, split: str, rows: Sequence[int], place: int) -> Tensor:
        """The reference point z0 of a whole batch, the same on every rank.

        Args:
            policy: being trained.
            split: "train", "dev" or "test".
            rows: places in the split of the whole batch.
            place: of the batch among those that the reference was asked about.

        Returns:
            Nats, no gradient. scalar
        """
        now = self._logprobs(policy, self._mismatched(split, rows), rows=self.config.micro_batch)
        return reference_point(now, self.reference[f"{split}_mismatched"][place]).to(policy.device)

    def compare(
        self, policy: PreTrainedModel, split: str, index: Sequence[int], anchor: Tensor, *, total: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of some judgements of a batch and what is recorded of them.

        Args:
            policy: being trained; gradient flows.
            split: "train", "dev" or "test".
            index: B places in the split.
            anchor: z0 of the whole batch, nats. scalar
            total: judgements of the whole batch.

        Returns:
            The loss, and sums for `means`.
        """
        part: list[Judgement] = [self.data[split].usable[row] for row in index]
        answers = [Answer(one.prompt, one.response) for one in part]
        logprobs = answer_logprobs(policy, answers, self.tokens.forbidden, pad_id=self.tokens.pad_id)
        reference = self.reference[split][index].to(logprobs.device)
        good = torch.tensor([one.good for one in part], device=logprobs.device)
        result = kto_loss(
            logprobs, reference, good, reference_point=anchor, beta=self.config.beta,
            desirable_weight=self.config.desirable_weight, undesirable_weight=self.config.undesirable_weight,
            total_judgements=total,
        )  # fmt: skip
        # 1 for the right side of z0, 0 for the wrong one, half for neither.
        side = 0.5 + 0.5 * torch.sign(result.rewards - self.config.beta * anchor) * torch.where(good, 1.0, -1.0)
        numbers = {"loss": result.loss, "accuracy": side.sum() / total, "z0": anchor * len(part) / total}
        for name, members in (("desirable", good), ("undesirable", ~good)):
            numbers[name] = members.sum()
            numbers[f"{name}_reward"] = result.rewards[members].sum()
            numbers[f"{name}_logprob"] = logprobs[members].sum()
            numbers[f"{name}_change"] = (logprobs - reference)[members].sum()
        return result.loss, {name: float(value.detach()) for name, value in numbers.items()}

    def means(self, sums: dict[str, float], batches: int) -> dict[str, float]:
        """Means from the sums of `compare` over so many batches; a class without a member has none."""
        found = {name: sums[name] / batches for name in ("loss", "accuracy", "z0")}
        for name in ("desirable", "undesirable"):
            if count := sums[name]:
                found |= {f"{name}_{what}": sums[f"{name}_{what}"] / count for what in ("reward", "logprob", "change")}
        if sums["desirable"] and sums["undesirable"]:
            found["margin"] = found["desirable_reward"] - found["undesirable_reward"]
        return found

    def _mismatched(self, split: str, rows: Sequence[int]) -> list[Answer]:
        return mismatched([self.data[split].usable[row] for row in rows], max_tokens=self.max_tokens)

    def _ask(self, policy: PreTrainedModel, answers: Sequence[Answer], cache: LogprobCache) -> Tensor:
        return cache.get([[*answer] for answer in answers], (len(answers),), lambda: self._logprobs(policy, answers))

    def _logprobs(self, policy: PreTrainedModel, answers: Sequence[Answer], rows: int | None = None) -> Tensor:
        return all_answer_logprobs(
            policy, answers, self.tokens.forbidden, pad_id=self.tokens.pad_id, rows=rows or self.config.batch_size,
            precision=self.config.precision,
        )  # fmt: skip
