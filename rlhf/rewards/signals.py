"""The score of a response as a weighted sum of signals by name: reward models, rules, and functions of the user's own.

    reward_model        the reward model (or ensemble) of the stage `reward`, on the ids that were sampled
    exact_answer, format, length, forbidden_phrases          see `rlhf.rewards.rules`
    model:NAME          a reward model in data/base/NAME with a tokenizer of its own, on text
    module:function     function(messages, text, meta) -> float, from a module of the project or an installed one

All but the first read text and work on a thread pool from `submit` on, beside whatever the caller computes until it
asks for the `result`. Each number is a function of one answer, and they are put together in the order of the rows, so
neither timing nor the number of threads can change a result. A function of one's own has to keep that promise: equal
arguments give equal numbers, and it draws nothing from a global random generator.

    signals = build_signals(config.rewards, rule_settings=config.reward_rules, ...)
    pending = signals.submit(batch, response_texts(batch, tokenizer, stops), questions, ended=ended)
    ...                                # forward passes of policy and reference meanwhile
    scored = pending.result()          # {"reward_model": [B], "length": [B], ..., "total": [B]}
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf.batches import Batch
from rlhf.errors import BadInput
from rlhf.reward_model import RewardModel
from rlhf.rewards.answer import Answer, TextFunction
from rlhf.rewards.ensemble import load_members
from rlhf.rewards.sources import REWARD_MODEL, RULES, ModelScore, check_names, model_score, own_function, rule
from rlhf.rewards.text_models import TextModel, load_text_model

TOTAL = "total"
_CURE = "correct it, or take it out of the stage's rewards"
WORKERS = 4
"""Threads that score text."""


class Asked(Protocol):
    """A prompt as `rlhf.showcase.Question` holds it."""

    @property
    def messages(self) -> Sequence[Mapping[str, str]]:
        """The conversation up to the response."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """What else the record says."""


class Signals:
    """Weighted sum of signals; `build_signals` makes one from names."""

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        model: ModelScore | None = None,
        functions: Mapping[str, TextFunction] | None = None,
        text_models: Mapping[str, TextModel] | None = None,
        workers: int = WORKERS,
    ) -> None:
        """Give every name in `weights` its signal.

        Args:
            weights: by name; 0 means that a signal is measured and does not count.
            model: the reward model on ids.
            functions: from one answer to a number, by name.
            text_models: from many answers to their numbers, by name.
            workers: threads, at least 1. Does not change results.

        Raises:
            ValueError: a name without a signal.
        """
        self.weights = dict(weights)
        self.model, self.functions, self.text_models = model, dict(functions or {}), dict(text_models or {})
        known = {*self.functions, *self.text_models, *([] if model is None else [REWARD_MODEL])}
        if unknown := [name for name in self.weights if name not in known]:
            raise ValueError(f"Signals: nothing is known of {', '.join(unknown)}")
        # Threads start with the first answer that needs one: the default reward never does.
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="reward")

    def begin(self, question: Asked, text: str, *, tokens: int, ended: bool) -> dict[str, "Future[Any]"]:
        """Begin to score one answer by the functions, before the batch that it belongs to is complete.

        Args:
            question: the prompt.
            text: the response.
            tokens: its length as sampled.
            ended: False where it was cut.

        Returns:
            What `submit` takes as `begun`: the number that is being computed, by name of the function.
        """
        answer = Answer(question.messages, text, question.meta, tokens, ended)
        names = [name for name in self.weights if name in self.functions]
        return {name: self._pool.submit(self.functions[name], answer) for name in names}

    def submit(
        self, batch: Batch, texts: Sequence[str], questions: Sequence[Asked], *, ended: Tensor | None = None,
        begun: Sequence[Mapping[str, "Future[Any]"]] | None = None,
    ) -> "Pending":  # fmt: skip
        """Begin to score; returns at once.

        Args:
            batch: prompts and responses, as sampled. [B, T]
            texts: B responses, `response_texts`.
            questions: the B prompts, in the order of the rows of the batch.
            ended: False where a response was cut; None: all ended by themselves. [B] bool
            begun: what `begin` gave for each row; None: nothing has begun.

        Raises:
            ValueError: not one text and one question for each row.
        """
        count = len(batch.input_ids)
        if not len(texts) == len(questions) == count:
            raise ValueError(f"got {len(texts)} texts and {len(questions)} questions, wanted {count} of each")
        lengths = batch.response_mask.sum(dim=1).tolist()
        whole = [True] * count if ended is None else [bool(flag) for flag in ended.tolist()]
        answers = [
            Answer(question.messages, text, question.meta, tokens, done)
            for question, text, tokens, done in zip(questions, texts, lengths, whole, strict=True)
        ]
        work: dict[str, list[Future[Any]]] = {}
        for name in self.weights:
            if name in self.text_models:
                work[name] = [self._pool.submit(self.text_models[name], answers)]
            elif name in self.functions and begun is not None:
                work[name] = [row[name] for row in begun]
            elif name in self.functions:
                work[name] = [self._pool.submit(self.functions[name], answer) for answer in answers]
        return Pending(self, batch, answers, work)

    def __call__(
        self, batch: Batch, texts: Sequence[str], questions: Sequence[Asked], *, ended: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`submit` and `result` in one: each signal by its name, and their weighted sum as "total"."""
        return self.submit(batch, texts, questions, ended=ended).result()


@dataclass(frozen=True, slots=True)
class Pending:
    """Scores that are being computed."""

    signals: Signals
    batch: Batch
    answers: Sequence[Answer]
    work: Mapping[str, Sequence[Future[Any]]]

    def result(self) -> dict[str, Tensor]:
        """Wait for the threads and run the reward model, in the caller's thread and under its autocast.

        Returns:
            Each signal by its name, in the order of the weights; "disagreement" of an ensemble; and "total", the
            weighted sum. [B] float32 each, on the batch's device

        Raises:
            BadInput: a signal failed, or gave something that is not a finite number; the first in the order of the
                weights and of the rows, whichever came first in time.
        """
        found: dict[str, Tensor] = {}
        if REWARD_MODEL in self.signals.weights and self.signals.model is not None:
            found.update(self.signals.model(self.batch))
        for name in self.signals.weights:
            if name in self.work:
                found[name] = self._collect(name)
        weighed = {name: weight for name, weight in self.signals.weights.items() if weight != 0}
        # No 0 to start from: a single signal of weight 1 stays bit for bit what it is.
        first, *others = (weight * found[name] for name, weight in weighed.items())
        ordered = {name: found[name] for name in self.signals.weights}
        return {**ordered, **found, TOTAL: sum(others, start=first)}

    def _collect(self, name: str) -> Tensor:
        """The numbers of one signal, in the order of the rows."""
        futures = self.work[name]
        values: list[Any] = []
        for row, future in enumerate(futures):
            error = future.exception()
            if error is not None:
                where = "the responses" if len(futures) != len(self.answers) else self._shown(row)
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise BadInput(f"reward signal {name!r} failed on {where} ({reason}); {_CURE}") from error
            values += future.result() if name in self.signals.text_models else [future.result()]
        for row, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise BadInput(
                    f"reward signal {name!r} gave {value!r} for {self._shown(row)}, wanted a finite number; {_CURE}"
                )
        return torch.tensor(values, dtype=torch.float32, device=self.batch.input_ids.device)

    def _shown(self, row: int) -> str:
        text = " ".join(self.answers[row].text.split())
        return f"the response {text[:60]!r}"


def build_signals(
    weights: Mapping[str, float],
    *,
    rule_settings: Mapping[str, Any],
    reward_model: RewardModel | None,
    reward: Path | None,
    base: Path | None,
    combination: str,
    uncertainty_coef: float,
    rows: int,
    precision: str,
    device: torch.device,
    stage: str = "ppo",
) -> Signals:
    """The signals that a stage's parameters name.

    Args:
        weights: `rewards`, weight by name.
        rule_settings: `reward_rules`, settings by name of the rule.
        reward_model: the model of the folder `reward`, loaded; its further members are loaded here.
        reward: that folder.
        base: folder of reward models with tokenizers of their own.
        combination: "mean", "worst" or "uncertainty" of an ensemble's members.
        uncertainty_coef: price of variance, for "uncertainty".
        rows: answers in one forward pass.
        precision: number format of models on text.
        device: where models go.
        stage: the section, for messages.

    Raises:
        BadInput: an unknown name, a weight that is not finite, no weight but 0, settings that do not fit, or a signal
            that cannot be loaded.
    """
    check_names(weights, rule_settings, stage=stage)
    model: ModelScore | None = None
    functions: dict[str, TextFunction] = {}
    text_models = {}
    for name in weights:
        kind, colon, rest = name.partition(":")
        if name == REWARD_MODEL:
            if reward_model is None or reward is None:
                raise BadInput(f"{stage}.rewards names {REWARD_MODEL}, but no reward model was loaded")
            members = [reward_model, *load_members(reward, device=device, first=1)]
            model = model_score(members, how=combination, coef=uncertainty_coef, rows=rows)
        elif name in RULES:
            functions[name] = rule(name, rule_settings.get(name, {}), stage=stage)
        elif kind == "model" and colon:
            if base is None or not (base / rest).is_dir() or Path(rest).name != rest:
                raise BadInput(
                    f"{stage}.rewards.{name}: no folder {base or 'data/base'}/{rest}; add one with "
                    f"`ratchet ingest --model DIR --as {rest or 'NAME'}`"
                )
            text_models[name] = load_text_model(base / rest, device=device, precision=precision, rows=rows)
        else:
            functions[name] = own_function(name, stage=stage)
    return Signals(weights, model=model, functions=functions, text_models=text_models)
