"""The embedded task: customers of a shop write to a support desk, and the desk answers.

Tickets and replies come from a grammar, so the right answer to every ticket is known. Which remedy a ticket earns is a
policy that no text states: a model has to find it in the data. Replies are drawn at three levels of skill, from mostly
right to careless, and every fact in them can go wrong on its own.

Sentences are short on purpose: a ticket is about 26 tokens and a reply about 32 under a BPE trained on them.
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhf.data.phrases import ITEMS, KNOWN, NAMES, ORDERS, PHRASES, Words

INTENTS = ("damaged", "late", "wrong_item", "cancel", "return")
DAYS_TO_ANSWER = {
    "cancel": 1, "track": 2, "reship": 3, "replace": 4, "refund": 5, "label": 6, "credit": 7, "decline": 8, "repair": 9,
}  # fmt: skip
"""The one right waiting time of each remedy, days."""
ACTIONS = tuple(DAYS_TO_ANSWER)

AGES = {"damaged": (1, 30), "late": (3, 20), "wrong_item": (1, 30), "cancel": (1, 6), "return": (1, 30)}
PLUS_AGES = {**AGES, "damaged": (1, 50), "cancel": (1, 8), "return": (1, 50)}
PLUS_SHARE = 0.4
PLUS_NOTE = "Plus member."

FLIPS = ("order", "name", "item", "action", "sla", "promise", "rude", "apology")
"""The single changes that turn a right reply into a worse one (see `flipped`)."""


class Ticket(NamedTuple):
    """One customer's case and the facts behind it."""

    intent: str
    plus: bool
    days: int
    name: str
    item: str
    order: str
    action: str
    text: str

    def messages(self) -> list[dict[str, str]]:
        """The ticket as chat messages: the desk's note on membership, then the customer's words."""
        note = [{"role": "system", "content": PLUS_NOTE}] if self.plus else []
        return [*note, {"role": "user", "content": self.text}]

    def facts(self) -> dict[str, str | int | bool]:
        """What the rubric needs to know, without the text."""
        return {name: value for name, value in self._asdict().items() if name != "text"}


class Sentence(NamedTuple):
    """One act of a reply: its phrase and what fills the gaps."""

    act: str
    phrase: str
    values: Mapping[str, str]

    def text(self) -> str:
        """The sentence as it is written."""
        return self.phrase.format(**self.values)


class Skill(NamedTuple):
    """How often an agent of one tier goes wrong: probabilities in [0, 1]."""

    share: float
    no_greeting: float
    wrong_name: float
    no_empathy: float
    second_apology: float
    no_order: float
    wrong_order: float
    no_action: float
    wrong_action: float
    no_sla: float
    wrong_sla: float
    no_close: float
    filler: float
    promise: float
    rude: float


TIERS = {
    "expert": Skill(0.20, 0.05, 0.01, 0.10, 0.05, 0.05, 0.01, 0.02, 0.03, 0.10, 0.05, 0.10, 0.08, 0.02, 0.00),
    "fair": Skill(0.45, 0.30, 0.04, 0.40, 0.20, 0.35, 0.08, 0.10, 0.20, 0.40, 0.25, 0.40, 0.35, 0.15, 0.05),
    "sloppy": Skill(0.35, 0.55, 0.08, 0.55, 0.25, 0.55, 0.20, 0.20, 0.40, 0.55, 0.45, 0.60, 0.55, 0.30, 0.20),
}


def right_action(intent: str, days: int, plus: bool) -> str:
    """The hidden policy: which remedy a ticket earns. Plus members have every window twice as long."""
    window = 2 if plus else 1
    if intent == "damaged":
        return "refund" if days <= 10 * window else "replace" if days <= 20 * window else "repair"
    if intent == "late":
        return "track" if days <= 10 else "reship"
    if intent == "wrong_item":
        return "label"
    if intent == "cancel":
        return "cancel" if days <= 2 * window else "credit"
    return "refund" if days <= 10 * window else "credit" if days <= 20 * window else "decline"


def span(days: int) -> str:
    """A number of days in words: "1 day", "4 days"."""
    return "1 day" if days == 1 else f"{days} days"


def draw_ticket(rng: random.Random, words: Words = KNOWN) -> Ticket:
    """Draw a ticket: intent, membership, age and names independently and uniformly."""
    intent = rng.choice(INTENTS)
    plus = rng.random() < PLUS_SHARE
    days = rng.randint(*(PLUS_AGES if plus else AGES)[intent])
    name, item, order = rng.choice(words.names), rng.choice(words.items), rng.choice(words.orders)
    fault = rng.choice(words.faults)
    text = rng.choice(words.tickets[intent]).format(name=name, item=item, order=order, fault=fault, age=span(days))
    return Ticket(intent, plus, days, name, item, order, right_action(intent, days, plus), text)


def draw_reply(ticket: Ticket, rng: random.Random) -> tuple[list[Sentence], str]:
    """Draw a reply by an agent of a random tier; returns its sentences, at least one, and the tier."""
    tier = rng.choices(list(TIERS), [skill.share for skill in TIERS.values()])[0]
    return _reply(ticket, TIERS[tier], rng), tier


def faultless_reply(ticket: Ticket, rng: random.Random) -> list[Sentence]:
    """A reply with every fact right, every wanted act once and no defect."""
    return _reply(ticket, Skill(1.0, *[0.0] * 14), rng)


def render(sentences: Sequence[Sentence]) -> str:
    """The text of a reply."""
    return " ".join(sentence.text() for sentence in sentences)


def flipped(ticket: Ticket, sentences: Sequence[Sentence], change: str, rng: random.Random) -> list[Sentence] | None:
    """The same reply with exactly one thing made worse.

    Args:
        ticket: whose facts count as right.
        sentences: the reply to start from.
        change: one of `FLIPS`: a fact replaced by a wrong one, or a promise, a rude sentence or a second apology added.
        rng: where the wrong fact and the place of an added sentence come from.

    Returns:
        The changed reply, or None when this reply does not state that fact rightly in the first place.
    """
    added = {"promise": "promise", "rude": "rude", "apology": "empathy"}.get(change)
    if added is not None:
        if change == "apology" and not any(sentence.act == "empathy" for sentence in sentences):
            return None
        # After the greeting and before the closing words, so that only the addition counts.
        place = rng.randint(1, max(1, len(sentences) - 1))
        return [*sentences[:place], _say(added, ticket, rng), *sentences[place:]]
    for index, sentence in enumerate(sentences):
        worse = _worse(ticket, sentence, change, rng)
        if worse is not None:
            return [*sentences[:index], worse, *sentences[index + 1 :]]
    return None


def _worse(ticket: Ticket, sentence: Sentence, change: str, rng: random.Random) -> Sentence | None:
    """The sentence with the fact made wrong, or None when it does not hold the right fact."""
    if change == "action":
        wrong = rng.choice([action for action in ACTIONS if action != ticket.action])
        return _say(wrong, ticket, rng) if sentence.act == ticket.action else None
    slot, right, choices = {
        "order": ("order", ticket.order, ORDERS),
        "name": ("name", ticket.name, NAMES),
        "item": ("item", ticket.item, ITEMS),
        "sla": ("span", span(DAYS_TO_ANSWER[ticket.action]), [span(days) for days in DAYS_TO_ANSWER.values()]),
    }[change]
    if sentence.values.get(slot) != right:
        return None
    return sentence._replace(values={**sentence.values, slot: _other(choices, right, rng)})


def _other(choices: Sequence[str], right: str, rng: random.Random) -> str:
    return rng.choice([choice for choice in choices if choice != right])


def _say(act: str, ticket: Ticket, rng: random.Random, **values: str) -> Sentence:
    """A random phrase for an act; only the values that the phrase has gaps for are kept."""
    phrase = rng.choice(PHRASES[act])
    known = {"name": ticket.name, "order": ticket.order, "item": ticket.item, **values}
    return Sentence(act, phrase, {name: value for name, value in known.items() if f"{{{name}}}" in phrase})


def _reply(ticket: Ticket, skill: Skill, rng: random.Random) -> list[Sentence]:
    def happens(probability: float) -> bool:
        return rng.random() < probability

    reply: list[Sentence] = []
    if not happens(skill.no_greeting):
        name = _other(NAMES, ticket.name, rng) if happens(skill.wrong_name) else ticket.name
        reply.append(_say("greet", ticket, rng, name=name))
    if not happens(skill.no_empathy):
        reply += [_say("empathy", ticket, rng) for _ in range(2 if happens(skill.second_apology) else 1)]
    if happens(skill.filler):
        reply.append(_say("filler", ticket, rng))
    if not happens(skill.no_order):
        order = _other(ORDERS, ticket.order, rng) if happens(skill.wrong_order) else ticket.order
        reply.append(_say("ack", ticket, rng, order=order))
    if happens(skill.rude):
        reply.append(_say("rude", ticket, rng))
    action = ticket.action
    if not happens(skill.no_action):
        action = _other(ACTIONS, ticket.action, rng) if happens(skill.wrong_action) else ticket.action
        reply.append(_say(action, ticket, rng))
    if not happens(skill.no_sla):
        days = DAYS_TO_ANSWER[action]
        wrong = [other for other in DAYS_TO_ANSWER.values() if other != days]
        reply.append(_say("sla", ticket, rng, span=span(rng.choice(wrong) if happens(skill.wrong_sla) else days)))
    if happens(skill.promise):
        reply.append(_say("promise", ticket, rng))
    if happens(skill.filler):
        reply.append(_say("filler", ticket, rng))
    if not happens(skill.no_close) or not reply:
        reply.append(_say("close", ticket, rng))
    return reply
