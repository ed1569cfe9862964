"""The zero and the unit of a reward model's score, read off the answers of the policy that it will judge.

A Bradley-Terry model knows differences only; without a fixed zero and unit, a penalty for a missing end or a KL
coefficient would mean something else with every reward model.
"""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from rlhf.device import autocast
from rlhf.errors import BadInput
from rlhf.evaluation.judging import Scorer
from rlhf.generation import generate
from rlhf.models import context_length, forbidden_ids
from rlhf.tokenizer import encode_prompt, pad_of, stop_ids


def reference_moments(
    scorer: Scorer,
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[Mapping[str, str]]],
    *,
    samples: int,
    max_new_tokens: int,
    draws: torch.Generator,
) -> tuple[float, float]:
    """Mean and standard deviation of the raw score of a policy's own answers; a spread of 0 counts as 1.

    Args:
        scorer: the trained model, its normaliser still 0 and 1.
        policy: whose answers are scored.
        prompts: conversations; the first ones are answered, over again where there are fewer than `samples`.
        samples: number of answers.
        max_new_tokens: longest answer, tokens.
        draws: source of the answers.

    Raises:
        BadInput: every prompt is too long to be answered.
    """
    room = (context_length(policy) or 2**31) - max_new_tokens
    encoded = [ids for prompt in prompts[:samples] if len(ids := encode_prompt(scorer.tokenizer, prompt)) <= room]
    if not encoded:
        raise BadInput(f"no prompt leaves room for {max_new_tokens} new tokens in the context; lower max_new_tokens")
    chosen = [encoded[index % len(encoded)] for index in range(samples)]
    responses: list[list[int]] = []
    for start in range(0, len(chosen), scorer.batch):
        with autocast(policy.device, scorer.precision):
            result = generate(
                policy,
                chosen[start : start + scorer.batch],
                max_new_tokens=max_new_tokens,
                temperature=1.0,
                stop_ids=stop_ids(scorer.tokenizer, policy),
                forbidden=forbidden_ids(scorer.tokenizer, policy),
                pad_id=pad_of(scorer.tokenizer),
                generator=draws,
            )
        responses += result.responses
    raw = torch.tensor(scorer.score_ids(chosen, responses), dtype=torch.float64)
    return float(raw.mean()), float(raw.std()) or 1.0
