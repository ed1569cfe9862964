"""Paired judge scores of models whose quality is known: what the gate is simulated on.

A score is the sum of the model's quality, the prompt's difficulty (shared by all models), a taste that the models of
one training run share, a taste of the model's own, and the luck of its one sample. The spreads are chosen so that two
equal models' scores have the correlations that were measured on the embedded task: 0.2 between methods of one run,
0.1 between other models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rlhf.evaluation.comparison import select
from rlhf.evaluation.paired_tests import WinInterval, paired_wins
from rlhf.evaluation.statistics import win_points
from tasks.gate_config import Gate
from tasks.gate_looks import allowance
from tasks.gate_rules import Measured, RuleSpec, apply_rules

Scores = NDArray[np.float64]
Spend = Callable[[int], float]
"""Number of a look -> chance of error that it gets."""

DIFFICULTY, RUN_TASTE, TASTE, LUCK = 0.32, 0.32, 0.4, 0.8
"""Standard deviations, in those of a score: their squares are 0.10, 0.10, 0.16 and 0.64."""
BASELINE = -0.8
"""Quality of the sft model that the dev choice is made against; that of the champion is 0."""
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """How large and how even the comparisons are."""

    prompts: int = 400
    """On test."""
    dev_prompts: int = 200
    methods: int = 2
    """Of each run, of which one is chosen."""
    ties: float = 0.0
    """Share of prompts on which a challenger answers exactly as the champion does."""
    choose_on: str = "dev"
    """`dev`, or `test` to see what that does."""


def quality_of(rate: float) -> float:
    """Quality that wins against a champion of quality 0 at a rate, without ties."""
    spread = np.sqrt(2 * (RUN_TASTE**2 + TASTE**2 + LUCK**2))
    return float(NormalDist().inv_cdf(rate) * spread)


def win_rule(gate: Gate) -> RuleSpec:
    """The rule that a challenger is promoted for."""
    return next(rule for rule in gate.rules if rule.name == "judge_win" and rule.direction == "above")


def is_promoted(rule: RuleSpec, ours: Scores, theirs: Scores, error: float) -> bool:
    """Apply the gate's own arithmetic to two rows of scores."""
    return _holds(rule, paired_wins(ours, theirs, tolerance=TOLERANCE, tail=error))


def run_of_challengers(
    world: World, rule: RuleSpec, spend: Spend, rng: np.random.Generator, *, looks: int, quality: float = 0.0
) -> int:
    """Hold one challenger after another against a champion, each the choice of a run of its own.

    Args:
        world: sizes.
        rule: what promotes.
        spend: the error of each look.
        rng: of the scores.
        looks: most challengers.
        quality: of every method of every run.

    Returns:
        Number of the look that promoted, 0 where none did.
    """
    easy_dev, easy_test = (rng.normal(0, DIFFICULTY, n) for n in (world.dev_prompts, world.prompts))
    sft_dev = BASELINE + easy_dev + _own(rng, world.dev_prompts)
    champion = easy_test + _own(rng, world.prompts)
    for look in range(1, looks + 1):
        dev, test = (_methods(rng, easy, world.methods, quality) for easy in (easy_dev, easy_test))
        same = rng.random((world.methods, world.prompts)) < world.ties
        test = np.where(same, champion, test)
        at = _choice(dev, sft_dev, rng) if world.choose_on == "dev" else _choice(test, champion, rng)
        if is_promoted(rule, test[at], champion, spend(look)):
            return look
    return 0


def spending(gate: Gate) -> Spend:
    """What the gate does."""
    return lambda look: allowance(gate.false_promotions, look)


def always(error: float) -> Spend:
    """Each look as if it were the only one."""
    return lambda look: error


def few_prompts(rng: np.random.Generator, rule: RuleSpec, prompts: int, error: float) -> tuple[bool, bool, bool]:
    """Hold two equal models against each other: does the bootstrap alone promote, the exact end alone, both?"""
    ours, theirs = rng.normal(size=(2, prompts))
    won = paired_wins(ours, theirs, tolerance=TOLERANCE, tail=error)
    alone = [_holds(rule, won._replace(low=end)) for end in (won.bootstrap_low, won.exact_low)]
    return alone[0], alone[1], _holds(rule, won)


def _holds(rule: RuleSpec, won: WinInterval) -> bool:
    measured = Measured(value=won.rate, low=won.low, high=won.high)
    return apply_rules([rule], {rule.name: measured})[0].ok


def _own(rng: np.random.Generator, prompts: int) -> Scores:
    """What a model of another run adds to the difficulty of prompts."""
    return rng.normal(0, np.sqrt(RUN_TASTE**2 + TASTE**2 + LUCK**2), prompts)


def _methods(rng: np.random.Generator, easy: Scores, methods: int, quality: float) -> Scores:
    """Scores of the methods of one run, [methods, prompts]."""
    shared = easy + rng.normal(0, RUN_TASTE, len(easy))
    return quality + shared + rng.normal(0, np.sqrt(TASTE**2 + LUCK**2), (methods, len(easy)))


def _choice(scores: Scores, against: Scores, rng: np.random.Generator) -> int:
    """Choose as `evaluate` does: best win rate, and of nearly equal ones the lowest KL, which says nothing here."""
    found = {
        str(at): {
            "judge_win_vs_sft": float(win_points(own, against, tolerance=TOLERANCE).mean()),
            "kl": float(rng.random()),
        }
        for at, own in enumerate(scores)
    }
    names: Sequence[str] = list(found)
    return int(select(found, names, tolerance=0.01))
