"""Prompt records as token ids, and a policy's answers to a few of them for people to read while it trains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.batches import Batch, collate
from rlhf.generation import generate, row_uniforms
from rlhf.models import forbidden_ids
from rlhf.outputs import read_jsonl
from rlhf.tokenizer import decode_response, encode_prompt, pad_of, stop_ids

SHOWN = 4
"""Prompts that are answered at every sampling step."""


class Question(NamedTuple):
    """A prompt as messages and as token ids, with what else its record says."""

    messages: Sequence[Mapping[str, str]]
    ids: list[int]
    meta: Mapping[str, Any] = {}
    """For rewards by rule, such as a reference answer; no model sees it."""


class Scores(Protocol):
    """What scores whole responses: `rlhf.rewards.signals.Signals`."""

    def __call__(
        self, batch: Batch, texts: Sequence[str], questions: Sequence[Question], *, ended: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """Each signal by its name, and "total": [B] each."""


def read_questions(file: Path, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> tuple[list[Question], int]:
    """Prompts of a file of records, in the order of the file.

    Args:
        file: JSON lines with `prompt`.
        tokenizer: the policy's.
        max_tokens: longer prompts are left out, tokens.

    Returns:
        The prompts and how many were left out.
    """
    questions = [
        Question(record["prompt"], encode_prompt(tokenizer, record["prompt"]), record.get("meta") or {})
        for record in read_jsonl(file)
    ]
    kept = [question for question in questions if len(question.ids) <= max_tokens]
    return kept, len(questions) - len(kept)


def show(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    step: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    score: Scores | None = None,
) -> list[dict[str, Any]]:
    """Sample one answer to each of the first few questions.

    The random numbers belong to the seed and the question's place: asked again of a policy that has moved a little,
    most answers change a little, which is what one wants to see.

    Args:
        policy: what answers.
        tokenizer: the policy's.
        questions: what is asked; may be empty.
        step: written into the rows.
        max_new_tokens: longest answer, tokens.
        temperature: divides the logits, above 0.
        seed: source of the random numbers.
        score: gives each row its `reward`, and where several signals make it up, their values as `rewards`.

    Returns:
        Rows with step, prompt, response and ended.
    """
    asked = questions[:SHOWN]
    if not asked:
        return []
    prompts, stops, pad_id = [question.ids for question in asked], stop_ids(tokenizer, policy), pad_of(tokenizer)
    uniforms = row_uniforms([seed + place for place in range(len(asked))], max_new_tokens)
    sampled = generate(
        policy, prompts, max_new_tokens=max_new_tokens, temperature=temperature, stop_ids=stops,
        forbidden=forbidden_ids(tokenizer, policy),
        pad_id=pad_id, generator=None, uniforms=uniforms,
    )  # fmt: skip
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "prompt": list(question.messages),
            "response": decode_response(tokenizer, ids, stops=stops),
            "ended": ended,
        }
        for question, ids, ended in zip(asked, sampled.responses, sampled.ended, strict=True)
    ]
    if score is not None:
        batch = collate(prompts, sampled.responses, pad_id=pad_id).to(policy.device)
        texts, ended = [row["response"] for row in rows], torch.tensor(sampled.ended)
        found = {name: values.tolist() for name, values in score(batch, texts, asked, ended=ended).items()}
        for place, row in enumerate(rows):
            row["reward"] = round(found["total"][place], 4)
            if len(found) > 2:
                row["rewards"] = {name: round(values[place], 4) for name, values in found.items() if name != "total"}
    return rows
