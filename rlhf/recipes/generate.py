"""The raw files of the embedded task: support-desk tickets, replies, noisy preferences, minimal pairs, and some dirt.

Each file is drawn from a stream of its own, so that asking for more pairs does not change the demonstrations. The
gold score is used to simulate annotators and is reported as a statistic; it is in no record.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from itertools import chain, cycle
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf.data.agreement import cohen_kappa
from rlhf.data.annotators import compare, draw_annotator
from rlhf.data.dirt import soil
from rlhf.data.rubric import judge
from rlhf.data.support_desk import FLIPS, Sentence, Ticket, draw_reply, draw_ticket, faultless_reply, flipped, render
from rlhf.data.unlike_phrases import SHIFTS
from rlhf.outputs import atomic_writer, write_metrics

log = logging.getLogger(__name__)

FILES = ("demonstrations", "pairs", "prompts", "probes", "unlike_prompts")
MEASURES = ("probes", "unlike_prompts")
"""Files that stay clean, because they are there to measure by."""
MINIMAL_FLIPS = {"order": 6, "name": 5, "item": 5, "action": 2, "sla": 2}
"""Weights of the facts that minimal training pairs differ in: most where two random replies hardly ever differ."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of `generate`."""

    files: tuple[str, ...]
    """What `validate` reads (its own setting, handed over); nothing is generated unless one names this folder."""
    seed: int
    """Of the data, apart from the seed of the run: other seeds of training shall see the same data."""
    demonstrations: int
    """Replies to imitate, at least 1."""
    pairs: int
    """Pairs of replies to the same ticket, before second opinions, at least 1."""
    prompts: int
    """Tickets without a reply, all different, at least 1."""
    unlike_prompts: int
    """Tickets of other customers, things and order numbers, in other words; never trained on. At least 0: no file."""
    probes_per_fact: int
    """Minimal pairs for measuring, for each of the changes in `support_desk.FLIPS`, at least 1."""
    minimal_share: float
    """Share of the pairs in which the second reply is the first with one fact made wrong, in [0, 1]."""
    second_opinion_share: float
    """Share of the pairs that a second annotator labels as well, in [0, 1]."""
    duplicate_share: float
    """Exact copies added, relative to the good rows, in [0, 1]."""
    contradiction_share: float
    """Pairs added that the same annotator labels the other way round, relative to the good rows, in [0, 0.5]."""
    broken_share: float
    """Broken rows added, relative to the good rows, in [0, 1]."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_share") and not 0 <= value <= (0.5 if "contradiction" in field.name else 1):
                raise ValueError(f"{field.name} is {value}, wanted a share of the rows, at least 0")
            if field.name in ("demonstrations", "pairs", "prompts", "probes_per_fact") and value < 1:
                raise ValueError(f"{field.name} is {value}, wanted at least 1")
        if self.unlike_prompts < 0:
            raise ValueError(f"unlike_prompts is {self.unlike_prompts}, wanted at least 0")


def main(config: Config, *, seed: int, stage: str, raw: Path, metrics: Path) -> None:
    """Write the embedded task's raw files, or an empty folder when nobody reads them.

    Args:
        config: settings.
        seed: not used: the data have a seed of their own, `config.seed`.
        stage: not used; the recipe serves one stage.
        raw: folder to write demonstrations.jsonl, pairs.jsonl, prompts.jsonl, probes.jsonl, unlike_prompts.jsonl to.
        metrics: file to write.
    """
    raw.mkdir(parents=True, exist_ok=True)
    if not is_wanted(config.files, raw.name):
        for name in FILES:
            (raw / f"{name}.jsonl").unlink(missing_ok=True)
        write_metrics(metrics, {name: {"rows": 0} for name in FILES})
        log.info("nothing to generate: validate.files names nothing in %s/", raw.name)
        return
    # 1. good rows; probes come last because their tickets must be unlike all others
    rows: dict[str, list[Row]] = {}
    figures: dict[str, dict[str, Any]] = {}
    rows["demonstrations"], figures["demonstrations"] = _demonstrations(config, _stream(config, "demonstrations"))
    rows["pairs"], figures["pairs"] = _pairs(config, _stream(config, "pairs"))
    rows["prompts"], figures["prompts"] = _prompts(config, _stream(config, "prompts"))
    used = {row["prompt"][-1]["content"] for kind in rows.values() for row in kind}
    rows["probes"], figures["probes"] = _probes(config, _stream(config, "probes"), used)
    rows["unlike_prompts"] = _unlike_prompts(config, _stream(config, "unlike_prompts"))
    figures["unlike_prompts"] = {}
    # 2. dirt among them (not among what is a measure), and out
    for name in FILES:
        if not rows[name]:  # a file without rows would be refused
            (raw / f"{name}.jsonl").unlink(missing_ok=True)
            figures[name] = {"rows": 0}
            continue
        dirty = name not in MEASURES
        lines, counts = soil(
            rows[name],
            _stream(config, f"dirt in {name}"),
            duplicate_share=config.duplicate_share if dirty else 0.0,
            contradiction_share=config.contradiction_share if dirty else 0.0,
            broken_share=config.broken_share if dirty else 0.0,
        )
        with atomic_writer(raw / f"{name}.jsonl") as stream:
            stream.writelines(f"{line}\n" for line in lines)
        figures[name] = {"rows": len(lines), **figures[name], "planted": counts}
        log.info("%s: %d rows", name, len(lines))
    write_metrics(metrics, figures)


def is_wanted(files: Iterable[str], folder: str) -> bool:
    """Whether a list of names or patterns speaks of anything in a folder."""
    return any(fnmatch(folder, PurePosixPath(name).parts[0]) for name in files if PurePosixPath(name).parts)


def _stream(config: Config, purpose: str) -> random.Random:
    return random.Random(f"{config.seed} {purpose}")


def _row(identity: str, ticket: Ticket, **columns: Any) -> Row:
    return {"id": identity, "prompt": ticket.messages(), **columns, **ticket.facts()}


def _demonstrations(config: Config, rng: random.Random) -> tuple[list[Row], dict[str, Any]]:
    rows: list[Row] = []
    points: dict[str, list[float]] = defaultdict(list)
    for number in range(config.demonstrations):
        ticket = draw_ticket(rng)
        sentences, tier = draw_reply(ticket, rng)
        reply = render(sentences)
        rows.append(_row(f"d{number}", ticket, response=reply, tier=tier))
        points[tier].append(judge(ticket.facts(), reply).points)
    gold = {tier: _mean(points[tier]) for tier in sorted(points)}
    return rows, {"gold": {"all": _mean(chain(*points.values())), **gold}}


def _pairs(config: Config, rng: random.Random) -> tuple[list[Row], dict[str, Any]]:
    rows: list[Row] = []
    agrees: dict[str, list[bool]] = defaultdict(list)
    twice: list[tuple[int, int]] = []
    minimal = ties = 0
    for number in range(config.pairs):
        ticket = draw_ticket(rng)
        if rng.random() < config.minimal_share:
            first, second = _minimal_pair(ticket, rng)
            minimal += 1
        else:
            first, second = _two_replies(ticket, rng)
        gold_first, gold_second = (judge(ticket.facts(), reply) for reply in (first, second))
        people = [draw_annotator(rng)]
        if rng.random() < config.second_opinion_share:
            people.append(draw_annotator(rng, other_than=people[0]))
        labels = {}
        for copy, person in enumerate(people):
            label = labels[person] = compare(person, gold_first, gold_second, rng)
            said = {"label": _tidy(label), "annotator": person}
            rows.append(_row(f"p{number}{'b' * copy}", ticket, response_a=first, response_b=second, **said))
            ties += label == 0.5
            if label != 0.5 and gold_first.points != gold_second.points:
                agrees[person].append((label == 1) == (gold_first.points > gold_second.points))
        if len(people) == 2:
            twice.append((_tidy_sign(labels[min(people)]), _tidy_sign(labels[max(people)])))
    by_person = {person: _mean(agrees[person]) for person in sorted(agrees)}
    return rows, {
        "minimal": minimal,
        "tie_share": ties / len(rows),
        "labels_agree_with_gold": {"all": _mean(chain(*agrees.values())), **by_person},
        "rated_twice": len(twice),
        **({"kappa": cohen_kappa(twice)} if twice else {}),
    }


def _two_replies(ticket: Ticket, rng: random.Random) -> tuple[str, str]:
    """Two independent replies that are not the same."""
    first = render(draw_reply(ticket, rng)[0])
    while (second := render(draw_reply(ticket, rng)[0])) == first:
        pass
    return first, second


def _minimal_pair(ticket: Ticket, rng: random.Random) -> tuple[str, str]:
    """A reply and the same with one fact made wrong, in random order."""
    change = rng.choices(list(MINIMAL_FLIPS), list(MINIMAL_FLIPS.values()))[0]
    worse: list[Sentence] | None = None
    while worse is None:
        better = draw_reply(ticket, rng)[0]
        worse = flipped(ticket, better, change, rng)
    replies = [render(better), render(worse)]
    rng.shuffle(replies)
    return replies[0], replies[1]


def _prompts(config: Config, rng: random.Random) -> tuple[list[Row], dict[str, Any]]:
    tickets: dict[str, Ticket] = {}
    while len(tickets) < config.prompts:
        ticket = draw_ticket(rng)
        tickets.setdefault(ticket.text, ticket)
    return [_row(f"t{number}", ticket) for number, ticket in enumerate(tickets.values())], {}


def _unlike_prompts(config: Config, rng: random.Random) -> list[Row]:
    """Tickets that differ from all others in their wording, in their facts or in both, in turn; no two are alike."""
    tickets: dict[str, Row] = {}
    shifts = cycle(SHIFTS)
    for number in range(config.unlike_prompts):
        shift = next(shifts)
        while (ticket := draw_ticket(rng, SHIFTS[shift])).text in tickets:
            pass
        tickets[ticket.text] = _row(f"u{number}", ticket, unlike=True, shift=shift)
    return list(tickets.values())


def _probes(config: Config, rng: random.Random, used: set[str]) -> tuple[list[Row], dict[str, Any]]:
    rows: list[Row] = []
    # The changes take turns, so that any number of rows from the top covers all of them alike.
    for number in range(config.probes_per_fact):
        for change in FLIPS:
            while (ticket := draw_ticket(rng)).text in used:
                pass
            used.add(ticket.text)
            right = faultless_reply(ticket, rng)
            wrong = flipped(ticket, right, change, rng)
            if wrong is None:
                raise RuntimeError(f"{change} could not be changed in a reply that states everything: {render(right)}")
            rows.append(_row(f"{change}{number}", ticket, chosen=render(right), rejected=render(wrong), probe=change))
    return rows, {}


def _tidy(label: float) -> float | int:
    return label if label == 0.5 else int(label)


def _tidy_sign(label: float) -> int:
    return int(2 * label) - 1


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else float("nan")
