"""Asking a policy and scoring its answers, while text signals are computed on threads beside it.

With `overlap`, an answer is scored by functions as soon as it is complete, while the rest of the batch is still being
sampled; and models score the batch on a thread of their own, beside the caller's forward passes. Nothing else changes:
the same rows are sampled together, with the same random numbers, a function's number depends on one answer alone, and
the models see the same batch. So every number is the same to the last bit, whatever the order in time.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf import distributed
from rlhf.advantages import in_groups, overlong_price
from rlhf.curriculum import BANDS, curriculum_order, difficulty
from rlhf.device import autocast
from rlhf.engine import Engine
from rlhf.group_sampling import Answers, Unscored
from rlhf.ppo_config import Config
from rlhf.rewards.answer import response_texts
from rlhf.rewards.signals import TOTAL, Signals
from rlhf.roles import Roles
from rlhf.rollout import Sampled, finish_scores, sample_responses
from rlhf.shared_value import policy_of
from rlhf.showcase import Question
from rlhf.streams import prompt_indices, random_source
from rlhf.tokenizer import decode_response

CURRICULUM_ANSWERS = 2
"""Answers of the starting policy that tell how hard a prompt is."""
CURRICULUM_STREAM = 2**31
"""First part of the random streams of those answers: no update has this number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Everything that stays the same from one rollout to the next."""

    roles: Roles
    signals: Signals
    questions: Sequence[Question]
    config: Config
    seed: int

    def ask(self, policy: Engine, update: int, prompts: Sequence[int], attempt: int = 0) -> Unscored:
        """Sample one response to each prompt and begin to score them.

        Args:
            policy: engine of the policy, or of the policy with a value head.
            update: number of the update; random numbers belong to it and to the rank, so there is no state to carry.
            prompts: indices of this rank's questions, one for each response.
            attempt: number of the round of dynamic sampling, 0 for the first answers.

        Returns:
            The responses, and the way to their scores.
        """
        config, roles = self.config, self.roles
        begun: dict[int, dict[str, Future[Any]]] = {}

        def finished(place: int, ids: list[int], ended: bool) -> None:
            text = decode_response(roles.tokenizer, ids, stops=roles.stops)
            question = self.questions[prompts[place]]
            begun[place] = self.signals.begin(question, text, tokens=len(ids), ended=ended)

        parts = (self.seed, update, 1 + distributed.rank(), *([attempt] if attempt else []))
        with policy.gathered() as whole, autocast(policy.device, config.precision):
            sampled = sample_responses(
                policy_of(whole), [self.questions[index].ids for index in prompts],
                max_new_tokens=config.max_new_tokens, temperature=config.temperature, stops=roles.stops,
                forbidden=roles.forbidden, pad_id=roles.pad_id, source=random_source(*parts),
                finished=finished if config.overlap else None,
            )  # fmt: skip
        places = sampled.place.tolist()
        pending = self.signals.submit(
            sampled.batch, response_texts(sampled.batch, roles.tokenizer, roles.stops),
            [self.questions[prompts[place]] for place in places], ended=sampled.ended,
            begun=[begun[place] for place in places] if config.overlap else None,
        )  # fmt: skip

        def score() -> Answers:
            # Autocast and gradients are settings of a thread, and this may run on another than the caller's.
            with torch.no_grad(), autocast(policy.device, config.precision):
                found = pending.result()
            total = found.pop(TOTAL)
            return Answers(sampled, list(prompts), found, self._scores(total, sampled))

        return Unscored(sampled, _in_background(score) if self._may_overlap else score)

    def prompts_of(self, update: int, curriculum: Sequence[int]) -> list[int]:
        """Indices of this rank's questions in an update, one for each response.

        Args:
            update: its number.
            curriculum: indices for the whole run; empty for one seeded permutation of all questions after another.
        """
        count = self.config.rollouts // self.config.group_size
        window: Sequence[int] = curriculum[update * count : (update + 1) * count]
        if not curriculum:
            window = prompt_indices(len(self.questions), start=update * count, length=count, seed=self.seed)
        return [index for index in distributed.share(window) for _ in range(self.config.group_size)]

    def spare(self, update: int) -> Callable[[int, int], list[int]]:
        """Other prompts for an update: from the number of a round and a count to indices, drawn for the rank."""

        def draw(attempt: int, count: int) -> list[int]:
            stream = random_source(self.seed, update, 1 + distributed.rank(), attempt, 0).initial_seed()
            return prompt_indices(len(self.questions), start=0, length=count, seed=stream)

        return draw

    def curriculum(self, policy: Engine) -> list[int]:
        """Indices of the questions of a whole run, those first that are easy for a policy.

        Args:
            policy: engine of the starting policy.
        """
        length = self.config.updates * (self.config.rollouts // self.config.group_size)
        bands = min(BANDS, len(self.questions))
        return curriculum_order(self.hardness(policy), length=length, seed=self.seed, bands=bands)

    def hardness(self, policy: Engine) -> Tensor:
        """How hard each question is for a policy: minus the mean score of a few answers, reward units. [N] float64."""
        mine = distributed.share(range(len(self.questions)))
        found = {str(index): 0.0 for index in range(len(self.questions))}
        most = math.ceil(len(self.questions) / distributed.world_size())
        for number, start in enumerate(range(0, most, self.config.rollouts)):
            # All ranks ask equally often, since gathering the weights is a collective; one that is done asks again.
            some = mine[start : start + self.config.rollouts] or [0]
            prompts = [index for index in some for _ in range(CURRICULUM_ANSWERS)]
            answers = self.ask(policy, CURRICULUM_STREAM + number, prompts).score()
            asked = in_groups(
                lambda scores: difficulty(scores).hardness.to(scores).unsqueeze(1).expand_as(scores),
                answers.scores, answers.sampled.place, size=CURRICULUM_ANSWERS,
            )  # fmt: skip
            for place, value in zip(answers.sampled.place.tolist(), asked.tolist(), strict=True):
                if prompts[place] in mine:
                    found[str(prompts[place])] = value
        return torch.tensor(list(distributed.reduce_sum(found).values()), dtype=torch.float64)

    @property
    def _may_overlap(self) -> bool:
        """Several ranks meet in collectives, whose order two threads would not keep."""
        return self.config.overlap and distributed.world_size() == 1

    def _scores(self, total: Tensor, sampled: Sampled) -> Tensor:
        """The signals' sum, the fixed score of responses that were cut, and the price of length."""
        config = self.config
        scores = finish_scores(
            total, sampled.ended, missing_eos_penalty=config.missing_eos_penalty, reward_clip=config.reward_clip
        )
        if config.overlong_buffer == 0:
            return scores
        return scores - overlong_price(
            sampled.batch.response_mask.sum(dim=1), longest=config.max_new_tokens, buffer=config.overlong_buffer,
            penalty=config.overlong_penalty,
        )  # fmt: skip


def _in_background(work: Callable[[], Answers]) -> Callable[[], Answers]:
    """Begin some work on a thread of its own; the function that waits for its result, or for its error."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future.result
