"""Prompt records as token ids, and a policy's answers to a few of them for people to read while it trains."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.batches import Batch, collate
from rlhf.generation import generate, row_uniforms
from rlhf.models import forbidden_ids
from rlhf.record_file import RecordFile
from rlhf.row_views import View
from rlhf.token_store import Coded, stored
from rlhf.tokenizer import decode_response, encode_prompts, pad_of, stop_ids

SHOWN = 4
"""Prompts that are answered at every sampling step."""


class Question(NamedTuple):
    """A prompt as messages and as token ids, with what else its record says."""

    messages: Sequence[Mapping[str, str]]
    ids: list[int]
    meta: Mapping[str, Any] = {}
    """For rewards by rule, such as a reference answer; no model sees it."""


class Questions(Sequence[Question]):
    """Questions whose records and token ids are read when they are asked for."""

    def __init__(self, records: Sequence[Mapping[str, Any]], ids: Sequence[list[int]]) -> None:
        self._records, self._ids = records, ids

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, place: int) -> Question: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Question]: ...
    def __getitem__(self, place: int | slice) -> Question | Sequence[Question]:
        """One question, or some."""
        if isinstance(place, slice):
            return Questions(self._records[place], self._ids[place])
        record = self._records[place]
        return Question(record["prompt"], self._ids[place], record.get("meta") or {})


class Scores(Protocol):
    """What scores whole responses: `rlhf.rewards.signals.Signals`."""

    def __call__(
        self, batch: Batch, texts: Sequence[str], questions: Sequence[Question], *, ended: Tensor | None = None
    ) -> Mapping[str, Tensor]:
        """Each signal by its name, and "total": [B] each."""


def read_questions(
    file: Path, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[Sequence[Question], int]:
    """Prompts of a file of records, in the order of the file.

    Args:
        file: JSON lines with `prompt`.
        tokenizer: the policy's.
        max_tokens: longer prompts are left out, tokens.

    Returns:
        The prompts and how many were left out.
    """

    def coded(rows: Sequence[dict[str, Any]], _: Counter[str]) -> Iterator[Coded]:
        prompts = encode_prompts(tokenizer, [record["prompt"] for record in rows])
        return (Coded([prompt]) for prompt in prompts)

    records = RecordFile(file)
    ids = stored(tokenizer, records, coded, lambda one: one.ids[0], settings=["prompts"]).examples
    kept = [place for place, prompt in enumerate(ids) if len(prompt) <= max_tokens]
    return Questions(View(records, kept), View(ids, kept)), len(records) - len(kept)


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
