"""Where signals come from: the reward model on ids, rules with their settings, functions of the user's own."""

import difflib
import importlib
import importlib.util
import inspect
import math
import site
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rlhf.batches import Batch
from rlhf.config import build
from rlhf.errors import BadInput
from rlhf.reward_model import RewardModel
from rlhf.rewards import rules
from rlhf.rewards.answer import Answer, TextFunction
from rlhf.rewards.ensemble import COMBINATIONS, combine, disagreement
from rlhf.row_blocks import in_row_blocks

REWARD_MODEL = "reward_model"
DISAGREEMENT = "disagreement"
RULES: dict[str, type] = {
    "exact_answer": rules.ExactAnswer,
    "format": rules.Format,
    "length": rules.Length,
    "forbidden_phrases": rules.ForbiddenPhrases,
}

ModelScore: TypeAlias = Callable[[Batch], Mapping[str, Tensor]]
"""From a batch to the score of the reward model, by its name, and what else it says about each row."""


def check_names(weights: Mapping[str, float], rule_settings: Mapping[str, Any], *, stage: str = "ppo") -> None:
    """Refuse what can be seen to be wrong before anything runs: names, and the settings of the rules in use.

    Args:
        weights: `rewards`, weight by name.
        rule_settings: `reward_rules`, settings by name of the rule.
        stage: the section, for messages.

    Raises:
        BadInput: no weight but 0 or one that is not finite, an unknown signal or rule, or settings that do not fit.
    """
    if not all(math.isfinite(weight) for weight in weights.values()) or not any(weights.values()):
        raise BadInput(
            f"params.yaml: {stage}.rewards is {dict(weights)}, wanted at least one signal with a finite weight that is "
            "not 0, such as reward_model: 1.0"
        )
    for name in rule_settings:
        if name not in RULES:
            raise BadInput(f"params.yaml: {stage}.reward_rules.{name}: no such rule; {_nearest(name, [*RULES])}")
    for name in weights:
        if name in RULES:
            rule(name, rule_settings.get(name, {}), stage=stage)
        elif name != REWARD_MODEL and ":" not in name:
            hint = _nearest(name, [REWARD_MODEL, *RULES], "model:NAME", "module:function")
            raise BadInput(f"params.yaml: {stage}.rewards.{name}: no such signal; {hint}")


def _nearest(name: str, known: Sequence[str], *also: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join([*known, *also])}"


def model_score(members: Sequence[RewardModel], *, how: str, coef: float, rows: int) -> ModelScore:
    """The score of the reward model on ids; of an ensemble, combined, with its disagreement.

    Args:
        members: one model, or several.
        how: combination of several.
        coef: price of variance.
        rows: rows of one forward pass.
    """
    if how not in COMBINATIONS:
        raise BadInput(f"reward_combination is {how!r}, wanted one of {', '.join(COMBINATIONS)}")

    @torch.no_grad()
    def score(batch: Batch) -> dict[str, Tensor]:
        each = [in_row_blocks(partial(_normalised, member), batch, rows) for member in members]
        if len(each) == 1:
            return {REWARD_MODEL: each[0]}
        together = torch.stack(each)
        return {REWARD_MODEL: combine(together, how, coef=coef), DISAGREEMENT: disagreement(together)}

    return score


def _normalised(member: RewardModel, batch: Batch) -> Tensor:
    return member.normalised(member(batch.input_ids, batch.attention_mask, batch.response_mask))


def rule(name: str, values: Any, *, stage: str) -> TextFunction:
    """A rule with its settings.

    Args:
        name: one of `RULES`.
        values: a mapping of the fields that differ from their defaults.
        stage: the section, for messages.

    Raises:
        BadInput: an unknown, missing or unusable setting.
    """
    cls, prefix = RULES[name], f"{stage}.reward_rules.{name}"
    if not isinstance(values, Mapping):
        raise BadInput(f"params.yaml: {prefix} is {values!r}, wanted a mapping of its settings")
    defaults = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
    for field in fields(cls):
        if field.name not in defaults and field.name not in values:
            raise BadInput(f"params.yaml: missing key {prefix}.{field.name}, which the signal {name} needs")
    settings: Any = build(cls, {**defaults, **values}, where="params.yaml: ", prefix=f"{prefix}.")
    return {
        "exact_answer": lambda answer: _exact_answer(answer, settings),
        "format": lambda answer: rules.matches_format(answer.text, settings),
        "length": lambda answer: rules.length(answer.text, answer.tokens, settings),
        "forbidden_phrases": lambda answer: rules.forbidden_phrases(answer.text, settings),
    }[name]


def _exact_answer(answer: Answer, settings: rules.ExactAnswer) -> float:
    reference = answer.meta.get(settings.key)
    if isinstance(reference, bool) or not isinstance(reference, str | int | float):
        raise ValueError(f"the prompt's record has no text or number under meta.{settings.key}")
    return rules.exact_answer(answer.text, str(reference), settings)


def own_function(name: str, *, stage: str) -> TextFunction:
    """A function of the user's own, from "module:function".

    Only modules of the project (the working folder) and installed ones are imported.

    Raises:
        BadInput: there is no such module or function, it lies elsewhere, or it does not take three arguments.
    """
    where = f"{stage}.rewards.{name}"
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise BadInput(f"{where}: wanted module:function, both in Python's spelling")
    top = module_name.partition(".")[0]
    spec = importlib.util.find_spec(top)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    if not any(place and _inside(Path(place)) for place in places):
        problem = "no such module" if spec is None else "it lies outside the project and is not installed"
        raise BadInput(f"{where}: {top}: {problem}; wanted a module of the project or an installed one")
    try:
        function = getattr(importlib.import_module(module_name), attribute, None)
    except Exception as error:  # whatever the user's module does at import
        raise BadInput(f"{where}: the module cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(function):
        raise BadInput(f"{where}: {module_name} has no function {attribute}; wanted {attribute}(messages, text, meta)")
    _check_arguments(function, where)
    return lambda answer: function(answer.messages, answer.text, answer.meta)


def _check_arguments(function: Callable[..., Any], where: str) -> None:
    try:
        inspect.signature(function).bind([], "", {})
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where}: cannot be called as function(messages, text, meta) ({error})") from error


def _inside(place: Path) -> bool:
    """Whether a file lies in the project or where packages are installed."""
    homes: list[str | Path] = [Path.cwd(), *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))]
    homes += [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return any(place.resolve().is_relative_to(Path(home).resolve()) for home in homes)
