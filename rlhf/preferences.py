"""Preferences as token ids: pairs, and rankings of several answers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rlhf.batches import cut_response
from rlhf.token_store import Coded, stored
from rlhf.tokenizer import encode_prompts, encode_responses


class Pair(NamedTuple):
    """One preference as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    label: float
    """P(chosen is better); 0.5 is a tie."""
    gap: float = 0.0
    """How far the annotator's score of the chosen answer is ahead, in the annotator's units; 0 where unknown."""

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


class Ranking(NamedTuple):
    """Several answers to one prompt as token ids, with their order."""

    prompt: list[int]
    responses: list[list[int]]
    ranks: list[int]
    """1 is best; equal numbers are a tie."""
    scores: list[float]
    """Of the annotator, in units of its own; all 0 where unknown."""

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest answer."""
        return len(self.prompt) + max(map(len, self.responses))


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[dict[str, Any]], *, max_tokens: int
) -> Sequence[Pair]:
    """Token ids of pairs; long responses are cut, pairs with prompts that leave no room for one are dropped."""

    def coded(rows: Sequence[dict[str, Any]], _: Counter[str]) -> Iterator[Coded]:
        prompts = encode_prompts(tokenizer, [record["prompt"] for record in rows])
        sides = (encode_responses(tokenizer, [record[side] for record in rows]) for side in ("chosen", "rejected"))
        for record, prompt, *answers in zip(rows, prompts, *sides, strict=True):
            cut = [cut_response(prompt, ids, max_tokens=max_tokens) for ids in answers]
            both = [ids for ids in cut if ids is not None]
            if len(both) == 2:
                yield Coded([prompt, *both], [float(record["label"]), score_gap(record)])

    return stored(tokenizer, records, coded, _pair, settings=["pairs", max_tokens]).examples


def encode_rankings(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[dict[str, Any]], *, max_tokens: int
) -> Sequence[Ranking]:
    """Token ids of rankings; long responses are cut, rankings whose prompt leaves no room for one are dropped."""

    def coded(rows: Sequence[dict[str, Any]], _: Counter[str]) -> Iterator[Coded]:
        prompts = encode_prompts(tokenizer, [record["prompt"] for record in rows])
        for record, prompt in zip(rows, prompts, strict=True):
            encoded = encode_responses(tokenizer, record["responses"])
            cut = [ids for full in encoded if (ids := cut_response(prompt, full, max_tokens=max_tokens)) is not None]
            if cut:
                scores = record.get("scores") or [0.0] * len(cut)
                yield Coded([prompt, *cut], [*record["ranks"], *(float(score) for score in scores)])

    return stored(tokenizer, records, coded, _ranking, settings=["rankings", max_tokens]).examples


def _pair(one: Coded) -> Pair:
    prompt, chosen, rejected = one.ids
    return Pair(prompt, chosen, rejected, *one.values)


def _ranking(one: Coded) -> Ranking:
    prompt, *answers = one.ids
    return Ranking(prompt, answers, [int(rank) for rank in one.values[: len(answers)]], [*one.values[len(answers) :]])


def score_gap(record: Mapping[str, Any]) -> float:
    """How far the annotator scored the chosen answer ahead; 0 for ties, unknown scores, and scores against the label.

    Args:
        record: a pair; its label is at least 0.5, since `chosen` is the better answer.
    """
    chosen, rejected = record.get("score_chosen"), record.get("score_rejected")
    if chosen is None or rejected is None or record["label"] == 0.5:
        return 0.0
    return max(0.0, float(chosen) - float(rejected))
