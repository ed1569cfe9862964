"""Three simulated people who compare two replies of the embedded task, each with faults of their own.

    careful   goes by the rubric, with little noise
    skimmer   reads the tone and not the facts: likes warm words, length and even forbidden promises
    hurried   goes by the rubric, but noisily, favours the first answer and sometimes does not read at all

A label is drawn from a Bradley-Terry model on the annotator's own idea of quality, so what a reward model learns from
them is what they see and not the gold score.
"""

import math
import random
from typing import NamedTuple

from rlhf.data.rubric import Gold

TIE_BAND = 0.25
"""Differences below this (logits) look equal, ..."""
TIE_SHARE = 0.6
"""... and are then called a tie with this probability."""


class Annotator(NamedTuple):
    """How one person judges."""

    share: float
    """Part of the work that this person does."""
    temperature: float
    """Points that make one logit; larger is noisier."""
    position_bias: float
    """Logits in favour of whatever stands first."""
    lapse: float
    """Probability of a blind guess."""


ANNOTATORS = {
    "careful": Annotator(0.5, 1.0, 0.0, 0.02),
    "skimmer": Annotator(0.3, 1.2, 0.2, 0.04),
    "hurried": Annotator(0.2, 1.6, 0.4, 0.10),
}


def draw_annotator(rng: random.Random, *, other_than: str | None = None) -> str:
    """Pick who labels a pair, by share of the work."""
    names = [name for name in ANNOTATORS if name != other_than]
    return rng.choices(names, [ANNOTATORS[name].share for name in names])[0]


def utility(annotator: str, gold: Gold) -> float:
    """How good a reply looks to this annotator, in points."""
    if annotator != "skimmer":
        return gold.points
    parts, features = gold.parts, gold.features
    facts = parts["order"] + parts["item"] + parts["action"] + parts["sla"]
    tone = features["warm"] + 0.04 * features["words"] + 0.8 * features["promise"]
    return 0.5 * facts + parts["name"] + parts["rude"] + parts["malformed"] + tone


def compare(annotator: str, first: Gold, second: Gold, rng: random.Random) -> float:
    """Draw a label: 1 when the first reply is preferred, 0 when the second is, 0.5 for a tie."""
    person = ANNOTATORS[annotator]
    if rng.random() < person.lapse:
        return float(rng.random() < 0.5)
    difference = (utility(annotator, first) - utility(annotator, second)) / person.temperature + person.position_bias
    if abs(difference) < TIE_BAND and rng.random() < TIE_SHARE:
        return 0.5
    # Beyond 30 logits the answer is certain in floating point anyway, and exp would overflow far out.
    return float(rng.random() < 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, difference)))))
