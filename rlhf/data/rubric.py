"""The gold judge of the embedded task: a rubric that knows the facts of a ticket and reads every sentence of a reply.

It is the truth that the learned judges are measured against. No stage may use it in a loss, and no record carries its
scores: it needs the facts in a record's `meta`, which training never looks at.

Points of a reply, at most 10:

    right remedy +3, each wrong one -2      right order number +1.5, wrong -1.5     right name +1, wrong -1
    right waiting time +1, wrong -1         right item +0.5, wrong -0.5             first apology +1, each more -0.75
    closing words +0.5                      an act said twice -0.5                  greeting first, closing last +0.5
    nothing to object to +1                 each promise or rude sentence -2        a sentence outside the grammar -1
    filler -0.5, from the second on -0.75   each word beyond 45: -0.05              the reply never ends -1
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf.data.phrases import PHRASES
from rlhf.data.support_desk import ACTIONS, DAYS_TO_ANSWER

MAX_POINTS = 10.0
FACTS = ("action", "name", "order", "item")
"""The keys of `meta` that a record needs to be judged."""
FREE_WORDS = 45

_GAPS = {
    "name": r"(?P<name>[A-Z][a-z]+)",
    "order": r"(?P<order>\d+)",
    "item": r"(?P<item>[a-z]+)",
    "span": r"(?P<span>1 day|(?!1 )\d+ days)",
}
_SENTENCE = re.compile(r"[^.?!]*[.?!]|[^.?!]+\Z")


def _pattern(phrase: str) -> re.Pattern[str]:
    pattern = re.escape(phrase)
    for gap, expression in _GAPS.items():
        pattern = pattern.replace(re.escape(f"{{{gap}}}"), expression)
    return re.compile(pattern)


_FIXED = {phrase: act for act, phrases in PHRASES.items() for phrase in phrases if "{" not in phrase}
_GAPPED = [(act, _pattern(phrase)) for act, phrases in PHRASES.items() for phrase in phrases if "{" in phrase]


class Act(NamedTuple):
    """One understood sentence: what it does and what it states."""

    name: str
    stated: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Gold:
    """What the rubric says of one reply."""

    points: float
    """Sum of `parts`, at most `MAX_POINTS`."""
    parts: dict[str, float]
    """Points by criterion."""
    features: dict[str, float]
    """Counts (words, sentences, warm, filler, empathy, promise, rude, malformed) and 0/1 facts (action_ok, order_ok,
    name_ok, item_ok, sla_ok)."""


def applies(meta: Mapping[str, Any]) -> bool:
    """Whether a record carries the facts that the rubric needs, that is, comes from the embedded task."""
    return all(isinstance(meta.get(fact), str) for fact in FACTS) and meta["action"] in DAYS_TO_ANSWER


def parse(text: str) -> list[Act]:
    """Read every sentence of a reply; one that no phrase of the grammar matches whole is "malformed"."""
    return [_understand(sentence) for part in _SENTENCE.findall(text) if (sentence := part.strip())]


def judge(meta: Mapping[str, Any], text: str, *, ended: bool = True) -> Gold:
    """Score a reply.

    Args:
        meta: the facts of the ticket (see `FACTS`); `applies` must hold.
        text: the reply.
        ended: False when it was cut off before its end token.

    Returns:
        Points, parts and features.
    """
    acts = parse(text)
    count = Counter(act.name for act in acts)
    acted = [act.name for act in acts if act.name in DAYS_TO_ANSWER]
    words = len(text.split())
    repeated = sum(count[name] - 1 for name in (*ACTIONS, "greet", "ack", "sla", "close") if count[name] > 1)
    objections = any(count[name] for name in ("filler", "promise", "rude", "malformed")) or not ended
    parts = {
        **_facts(meta, acts),
        "action": 3.0 * (meta["action"] in acted) - 2.0 * len(set(acted) - {meta["action"]}),
        "empathy": _first_and_more(count["empathy"], 1.0, -0.75),
        "close": 0.5 * bool(count["close"]) - 0.5 * repeated,
        "filler": _first_and_more(count["filler"], -0.5, -0.75),
        "promise": -2.0 * count["promise"],
        "rude": -2.0 * count["rude"],
        "malformed": -1.0 * count["malformed"] - (not ended),
        "flow": 0.5 * _flows([act.name for act in acts]),
        "clean": 1.0 * (bool(acts) and not objections),
        "length": -0.05 * max(0, words - FREE_WORDS),
    }
    features = {
        "words": float(words),
        "sentences": float(len(acts)),
        "warm": float(count["empathy"] + count["filler"] + count["close"]),
        **{name: float(count[name]) for name in ("filler", "empathy", "promise", "rude", "malformed")},
        "action_ok": float(acted == [meta["action"]]),
        **{f"{fact}_ok": float(parts[fact] > 0) for fact in ("order", "name", "item", "sla")},
    }
    return Gold(points=sum(parts.values()), parts=parts, features=features)


def _understand(sentence: str) -> Act:
    act = _FIXED.get(sentence)
    if act is not None:
        return Act(act, {})
    for name, pattern in _GAPPED:
        match = pattern.fullmatch(sentence)
        if match:
            return Act(name, match.groupdict())
    return Act("malformed", {})


def _facts(meta: Mapping[str, Any], acts: Sequence[Act]) -> dict[str, float]:
    """Points for the stated facts; the first statement of each counts."""
    wanted = {
        "name": ("name", meta["name"], 1.0),
        "order": ("order", meta["order"], 1.5),
        "item": ("item", meta["item"], 0.5),
        "sla": ("span", str(DAYS_TO_ANSWER[meta["action"]]), 1.0),
    }
    points = dict.fromkeys(wanted, 0.0)
    for act in acts:
        for criterion, (slot, right, worth) in wanted.items():
            if slot in act.stated and points[criterion] == 0.0:
                # A waiting time is compared by its number: "1 day" and "4 days" differ in grammar, too.
                points[criterion] = worth if act.stated[slot].split()[0] == right else -worth
    return points


def _first_and_more(count: int, first: float, more: float) -> float:
    return first + more * (count - 1) if count else 0.0


def _flows(names: Sequence[str]) -> bool:
    """Whether a greeting, where there is one, comes first and the closing words last."""
    if not names:
        return False
    return ("greet" not in names or names[0] == "greet") and ("close" not in names or names[-1] == "close")
