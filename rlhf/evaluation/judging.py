"""Scoring answers with a reward model or the judge, and telling how far such a scorer can be trusted.

The judge is a reward model of the same make that was trained on pairs which the reward model never saw; no policy is
trained against it, so its verdict does not rise merely because a policy found the reward model's weak spots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from rlhf.batches import collate, sorted_batches
from rlhf.data import rubric
from rlhf.device import autocast
from rlhf.evaluation.calibration import pair_accuracy, pair_calibration_error
from rlhf.models import context_length
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import encode_prompt, encode_response, load_tokenizer

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """A reward model with what it needs to read text."""

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    batch: int
    """Responses scored at once."""
    precision: str
    """Number format of the trunk, as in `rlhf.device.autocast`; the head is always fp32."""

    @classmethod
    def load(cls, folder: Path, *, device: torch.device, batch: int, precision: str) -> "Scorer":
        """Load a folder that the reward recipe wrote.

        Raises:
            BadInput: the folder holds no reward model.
        """
        return cls(
            model=RewardModel.load(folder, device=device),
            tokenizer=load_tokenizer(folder),
            batch=batch,
            precision=precision,
        )

    @torch.no_grad()
    def score_ids(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Normalised scores of tokenised responses; the ids must be of this scorer's own tokenizer.

        An exchange longer than the model's context is read without the beginning of its prompt.

        Args:
            prompts: token ids of B prompts.
            responses: token ids of B responses as they were sampled, none of them empty.

        Returns:
            Scores in standard deviations of the reference answers, in the order given. B numbers.
        """
        limit = context_length(self.model.trunk) or 2**31
        scores = [0.0] * len(responses)
        for rows in sorted_batches([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], self.batch):
            cut = [_fit(prompts[row], responses[row], limit) for row in rows]
            batch = collate([p for p, _ in cut], [r for _, r in cut], pad_id=0).to(self.model.device)
            with autocast(self.model.device, self.precision):
                raw = self.model.score(batch.input_ids, batch.attention_mask, batch.response_mask)
            for row, value in zip(rows, self.model.normalised(raw.float()).tolist(), strict=True):
                scores[row] = value
        return scores

    def score_texts(
        self, prompts: Sequence[Messages], texts: Sequence[str], *, ended: Sequence[bool] | None = None
    ) -> list[float]:
        """Normalised scores of responses given as text.

        Args:
            prompts: B conversations that end with a user's message.
            texts: B responses.
            ended: whether each response ended by itself; an unended one is scored without an end token. None: all did.

        Returns:
            Scores in standard deviations of the reference answers, in the order given. B numbers.
        """
        responses = [encode_response(self.tokenizer, text) for text in texts]
        if ended is not None:
            # A lone end token stays: a response without any token cannot be scored.
            responses = [ids if done or len(ids) == 1 else ids[:-1] for ids, done in zip(responses, ended, strict=True)]
        return self.score_ids([encode_prompt(self.tokenizer, prompt) for prompt in prompts], responses)

    def score_pairs(self, pairs: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
        """Normalised scores (chosen, rejected) of pair or probe records."""
        prompts = [pair["prompt"] for pair in pairs]
        both = self.score_texts([*prompts, *prompts], [pair[side] for side in ("chosen", "rejected") for pair in pairs])
        return list(zip(both[: len(pairs)], both[len(pairs) :], strict=True))


def gold_score(meta: Mapping[str, Any], text: str, *, ended: bool = True) -> float | None:
    """Rubric points of a response to a prompt of the embedded task; None where the rubric does not apply."""
    return rubric.judge(meta, text, ended=ended).points if rubric.applies(meta) else None


def pair_metrics(
    pairs: Sequence[Mapping[str, Any]], scores: Sequence[tuple[float, float]], *, scale: float = 1.0
) -> dict[str, float]:
    """How well a scorer agrees with annotators, and with the rubric where it applies.

    A tie of the scorer counts half. Pairs that annotators called a tie, or that the rubric scores alike, have no right
    order and are left out of the two accuracies.

    Args:
        pairs: pair records.
        scores: (chosen, rejected) scores of each.
        scale: factor from score differences to logits of the preference; the `std` of the scorer's normaliser.

    Returns:
        "pairs"; "accuracy" against labels and "accuracy_gold" against the rubric's order (each only where there is
        something to compare); "calibration_error", the expected gap between predicted and observed preference.

    Raises:
        ValueError: not one score pair per pair.
    """
    if len(pairs) != len(scores):
        raise ValueError(f"got {len(pairs)} pairs and {len(scores)} score pairs, wanted as many")
    metrics: dict[str, float] = {"pairs": len(pairs)}
    margins, labels = [scale * (a - b) for a, b in scores], [pair["label"] for pair in pairs]
    if any(label > 0.5 for label in labels):
        metrics["accuracy"] = pair_accuracy(margins, labels)
        metrics["calibration_error"] = pair_calibration_error(margins, labels)
    agreed = []
    for pair, (chosen, rejected) in zip(pairs, scores, strict=True):
        better, worse = gold_score(pair["meta"], pair["chosen"]), gold_score(pair["meta"], pair["rejected"])
        if better is not None and worse is not None and better != worse:
            agreed.append(_win((chosen - rejected) * (better - worse)))
    if agreed:
        metrics["accuracy_gold"] = sum(agreed) / len(agreed)
    return metrics


def probe_metrics(probes: Sequence[Mapping[str, Any]], scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Share of minimal pairs that a scorer orders rightly, by the one fact that was flipped.

    Args:
        probes: probe records; `meta.probe` names the fact.
        scores: (chosen, rejected) scores of each; chosen is right by construction, and a tie counts half.

    Returns:
        Accuracy by fact in alphabetical order; empty without probes. 0.5 is what a blind scorer reaches.
    """
    groups: dict[str, list[float]] = {}
    for probe, (chosen, rejected) in zip(probes, scores, strict=True):
        groups.setdefault(str(probe["meta"]["probe"]), []).append(_win(chosen - rejected))
    return {name: sum(groups[name]) / len(groups[name]) for name in sorted(groups)}


def correlation(scores: Sequence[float], others: Sequence[float]) -> float | None:
    """Pearson correlation, such as that of a scorer with the rubric over sampled answers.

    Args:
        scores: one number for each answer.
        others: the other measure of the same answers.

    Returns:
        In [-1, 1]; None when a measure is constant or there are fewer than three answers.

    Raises:
        ValueError: the lengths differ.
    """
    if len(scores) != len(others):
        raise ValueError(f"got {len(scores)} and {len(others)} numbers, wanted as many")
    if len(scores) < 3 or len(set(scores)) == 1 or len(set(others)) == 1:
        return None
    return float(np.corrcoef(scores, others)[0, 1])


def trust(
    scorer: Scorer,
    measure: str,
    pairs: Sequence[Mapping[str, Any]],
    probes: Sequence[Mapping[str, Any]],
    sampled: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Agreement of a scorer with annotators, with the rubric on pairs and on a model's own answers, and on probes.

    Args:
        scorer: a reward model or the judge.
        measure: its column in `sampled`: "reward" or "judge".
        pairs: held-out pair records; may be empty.
        probes: probe records; may be empty.
        sampled: rows of `answer_rows`.

    Returns:
        `pair_metrics`, "correlation_gold" and, under "probes", `probe_metrics`, as far as there are records.
    """
    result: dict[str, Any] = pair_metrics(pairs, scorer.score_pairs(pairs), scale=scorer.model.std) if pairs else {}
    graded = [(row[measure], row["gold"]) for row in sampled if row["gold"] is not None]
    agreement = correlation([score for score, _ in graded], [points for _, points in graded])
    if agreement is not None:
        result["correlation_gold"] = agreement
    if probes:
        result["probes"] = probe_metrics(probes, scorer.score_pairs(probes))
    return result


def _win(difference: float) -> float:
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


def _fit(prompt: Sequence[int], response: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
    """Cut an exchange to the model's context: first the beginning of the prompt, then the end of the response."""
    kept = list(response[: limit - 1])
    return list(prompt[-(limit - len(kept)) :]), kept
