"""Answers of policies to held-out prompts: one sample each, scored, with the divergence from SFT that was spent.

Every sample belongs to (seed, sample name, prompt id), not to a place in a batch: another batch size, other prompts or
another list of policies leave it as it is, up to rounding.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.batches import Batch, collate, sorted_batches
from rlhf.device import autocast
from rlhf.evaluation.judging import Scorer, gold_score
from rlhf.generation import generate, row_uniforms
from rlhf.kl import full_kl
from rlhf.logprobs import response_logits, scatter_response
from rlhf.models import context_length, forbidden_ids, load_policy
from rlhf.tokenizer import decode_response, encode_prompt, load_tokenizer, pad_of, stop_ids

LOGIT_BUDGET = 2**26
"""Most logits of one model that are held at once while a full-vocabulary KL is taken (256 MB in fp32)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    temperature: float
    """Divides the logits, in sampling and in KL alike; above 0."""
    max_new_tokens: int
    """Longest answer, in tokens."""
    batch: int
    """Answers drawn at once."""
    precision: str
    """Number format of the forward passes, as in `rlhf.device.autocast`."""
    seed: int
    """Seed that all samples derive from."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A causal language model with what it needs to answer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    forbidden: torch.Tensor
    """True at tokens that are never sampled. [V] bool"""
    stops: tuple[int, ...]
    """Tokens that end an answer."""

    @classmethod
    def load(cls, folder: Path, *, device: torch.device) -> "Policy":
        """Load a policy folder.

        Raises:
            BadInput: the folder holds no loadable policy.
        """
        model, tokenizer = load_policy(folder, device=device), load_tokenizer(folder)
        return cls(model, tokenizer, forbidden_ids(tokenizer, model), stop_ids(tokenizer, model))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sampled answer."""

    prompt: Mapping[str, Any]
    """The prompt record it answers."""
    prompt_ids: list[int]
    ids: list[int]
    """Sampled tokens, with the stop token where one was sampled."""
    text: str
    ended: bool


def fitting(
    prompts: Iterable[Mapping[str, Any]], policy: Policy, *, max_new_tokens: int, most: int
) -> list[Mapping[str, Any]]:
    """The first `most` prompt records, by id, whose answers have room in the policy's context.

    Ids are arbitrary, so the first by id are a sample that does not depend on the order of the file.
    """
    limit = (context_length(policy.model) or 2**31) - max_new_tokens
    ordered = sorted(prompts, key=lambda record: str(record["id"]))
    return [record for record in ordered if len(encode_prompt(policy.tokenizer, record["prompt"])) <= limit][:most]


def sample(policy: Policy, prompts: Sequence[Mapping[str, Any]], sampling: Sampling, *, name: str) -> list[Answer]:
    """Draw one answer to each prompt.

    Args:
        policy: what answers.
        prompts: prompt records.
        sampling: temperature, lengths, seed.
        name: name of this set of samples; two names give independent samples of one policy.

    Returns:
        Answers in the order of the prompts.
    """
    encoded = [encode_prompt(policy.tokenizer, record["prompt"]) for record in prompts]
    answers: dict[int, Answer] = {}
    for rows in sorted_batches([len(ids) for ids in encoded], sampling.batch):
        seeds = [_sample_seed(sampling.seed, name, str(prompts[row]["id"])) for row in rows]
        with autocast(policy.model.device, sampling.precision):
            drawn = generate(
                policy.model,
                [encoded[row] for row in rows],
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                stop_ids=policy.stops,
                forbidden=policy.forbidden,
                pad_id=pad_of(policy.tokenizer),
                generator=None,
                uniforms=row_uniforms(seeds, sampling.max_new_tokens),
            )
        for row, ids, ended in zip(rows, drawn.responses, drawn.ended, strict=True):
            answers[row] = Answer(
                prompt=prompts[row],
                prompt_ids=encoded[row],
                ids=ids,
                text=decode_response(policy.tokenizer, ids, stops=policy.stops),
                ended=ended,
            )
    return [answers[row] for row in range(len(prompts))]


@torch.no_grad()
def divergences(policy: Policy, reference: Policy, answers: Sequence[Answer], sampling: Sampling) -> list[float]:
    """KL(policy || reference) of each answer, summed over its tokens, each over the whole vocabulary.

    The expectation at each token is exact, so the sum has far less variance than that of log-ratios of the sampled
    tokens; it is never negative.

    Args:
        policy: what sampled the answers.
        reference: the SFT model; must share the policy's tokens.
        answers: the policy's answers.
        sampling: the temperature at which they were drawn.

    Returns:
        Nats per response, in the order of the answers.
    """
    if policy.model is reference.model:
        return [0.0] * len(answers)
    result = [0.0] * len(answers)
    tokens = max(len(answer.ids) for answer in answers) if answers else 1
    rows_at_once = max(1, min(sampling.batch, LOGIT_BUDGET // (len(policy.forbidden) * tokens)))
    forbidden = policy.forbidden | reference.forbidden
    for rows in sorted_batches([len(answer.prompt_ids) + len(answer.ids) for answer in answers], rows_at_once):
        batch = _batch(policy, [answers[row].prompt_ids for row in rows], [answers[row].ids for row in rows])
        with autocast(policy.model.device, sampling.precision):
            ours, theirs = response_logits(policy.model, batch), response_logits(reference.model, batch)
        per_token = full_kl(ours, theirs, temperature=sampling.temperature, forbidden=forbidden)
        for row, value in zip(rows, scatter_response(per_token, batch.response_mask).sum(dim=1).tolist(), strict=True):
            result[row] = value
    return result


def answer_rows(
    answers: Sequence[Answer], *, split: str, policy: str, kl: Sequence[float], reward: Scorer, judge: Scorer
) -> list[dict[str, Any]]:
    """Score answers and make the rows of `answers.jsonl`, sorted by prompt id.

    Args:
        answers: one policy's answers.
        split: "dev", "test" or "unlike".
        policy: name of the policy, or "sft_again" for the second independent sample of SFT.
        kl: nats per response, one for each answer.
        reward: the reward model that training saw.
        judge: the one that it did not see.
    """
    prompt_ids, ids = [answer.prompt_ids for answer in answers], [answer.ids for answer in answers]
    rewards, verdicts = reward.score_ids(prompt_ids, ids), judge.score_ids(prompt_ids, ids)
    rows = [
        {
            "split": split,
            "policy": policy,
            "id": answer.prompt["id"],
            "prompt": answer.prompt["prompt"],
            "response": answer.text,
            "ended": answer.ended,
            "tokens": len(answer.ids),
            "kl": divergence,
            "judge": verdict,
            "reward": score,
            "gold": gold_score(answer.prompt["meta"], answer.text, ended=answer.ended),
            "meta": answer.prompt["meta"],
        }
        for answer, divergence, verdict, score in zip(answers, kl, verdicts, rewards, strict=True)
    ]
    return sorted(rows, key=lambda row: str(row["id"]))


def _batch(policy: Policy, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Batch:
    return collate(prompts, responses, pad_id=pad_of(policy.tokenizer)).to(policy.model.device)


def _sample_seed(seed: int, name: str, prompt_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}:{prompt_id}".encode()).digest()[:8], "big")
