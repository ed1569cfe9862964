"""New preference pairs from a policy's own answers: several to each training prompt, compared by a judge.

Answers are drawn from (seed, number of the answer, prompt id): more prompts or more answers leave those that a smaller
run would draw as they are (up to rounding in other batches), and the same run writes the same bytes. Only training
prompts are asked: the split is a function of the prompt, so what is collected stays in the training split for ever.

Source: Ouyang et al. 2022, section 3.2 and figure 2 (several answers of the policy to one prompt, all pairs of them),
https://arxiv.org/abs/2203.02155; Bai et al. 2022, section 4.5 (new pairs from the newest policy, again and again),
https://arxiv.org/abs/2204.05862; Lee et al. 2023 (labels by a model), https://arxiv.org/abs/2309.00267.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.answer_pairs import LOST, WHICH, JudgedPair, Which, every_pair, pairs_by_score, pairs_by_verdict, usable
from rlhf.data import rubric
from rlhf.data.records import digest
from rlhf.errors import BadInput
from rlhf.evaluation.answers import Policy, Sampling, sample
from rlhf.evaluation.endpoint import Comparison, EndpointJudge
from rlhf.evaluation.judging import Scorer, gold_score
from rlhf.models import context_length
from rlhf.outputs import read_jsonl, write_jsonl
from rlhf.ranges import require_above_zero, require_at_least, require_choice
from rlhf.tokenizer import encode_prompt

log = logging.getLogger(__name__)

ORIGIN = "collected"
"""Column, later a key of `meta`, that says where a pair came from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to collect."""

    prompts: int
    """Most prompts that are asked."""
    answers: int
    """Answers to each, at least 2."""
    which: Which
    """Pairs of one prompt's answers that are kept: "best_worst" or "all"."""
    temperature: float
    """Divides the logits; above 0."""
    max_new_tokens: int
    """Longest answer, in tokens; longer ones are cut and stand in no pair."""
    seed: int
    """Of the choice of prompts and of the answers."""
    batch: int
    """Answers drawn at once."""
    precision: str
    """Number format of the forward passes, as in `rlhf.device.autocast`."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a field is out of range.
        """
        require_at_least(1, prompts=self.prompts, max_new_tokens=self.max_new_tokens, batch=self.batch)
        require_at_least(2, answers=self.answers)
        require_at_least(0, seed=self.seed)
        require_above_zero(temperature=self.temperature)
        require_choice(WHICH, which=self.which)


class Asked(NamedTuple):
    """A prompt and those of its answers that can stand in a pair."""

    record: Mapping[str, Any]
    texts: list[str]


class Labels(NamedTuple):
    """What a judge says."""

    pairs: list[list[JudgedPair]]
    """For each prompt, by places among its texts."""
    scores: list[list[float]] | None
    """For each prompt, of its texts, where the judge gives scores that may be kept."""
    account: dict[str, int]
    """What the judging cost and where it failed, by name; empty where it cannot fail."""


Label = Callable[[Sequence[Asked], Which], Labels]


class Collection(NamedTuple):
    """What was collected."""

    rows: list[dict[str, Any]]
    """Raw rows of the format `comparison`."""
    counts: dict[str, int]
    """Of prompts, answers and pairs, and the judge's account."""
    gold_accuracy: float | None
    """Share of the decided pairs that the rubric orders alike; None where it does not apply or calls all a tie."""


def label_by_score(scorer: Scorer) -> Label:
    """A judge that scores answers one by one: the judge model or the reward model."""

    def label(asked: Sequence[Asked], which: Which) -> Labels:
        flat = scorer.score_texts([one.record["prompt"] for one in asked for _ in one.texts], _texts(asked))
        scores = _by_prompt(flat, asked)
        return Labels([pairs_by_score(found, which) for found in scores], scores, {})

    return label


def label_by_rubric(asked: Sequence[Asked], which: Which) -> Labels:
    """The truth of the embedded task as the judge; its scores are not kept, since no record carries them.

    Raises:
        BadInput: a prompt does not carry its facts.
    """
    for one in asked:
        if not rubric.applies(one.record["meta"]):
            raise BadInput(
                f"prompt {one.record['id']}: carries no facts ({', '.join(rubric.FACTS)}) in its meta, so the rubric "
                "cannot judge it; it is for the embedded task only, so choose another --judge"
            )
    scores = [[rubric.judge(one.record["meta"], text).points for text in one.texts] for one in asked]
    return Labels([pairs_by_score(found, which) for found in scores], None, {})


def label_by_endpoint(judge: EndpointJudge) -> Label:
    """A judge behind HTTP: every pair of a prompt's answers is compared, in both orders."""

    def label(asked: Sequence[Asked], which: Which) -> Labels:
        places = [(number, pair) for number, one in enumerate(asked) for pair in every_pair(len(one.texts))]
        found, account = judge.compare(
            [
                Comparison(asked[number].record["prompt"], asked[number].texts[a], asked[number].texts[b])
                for number, (a, b) in places
            ]
        )
        verdicts: list[dict[tuple[int, int], float]] = [{} for _ in asked]
        for (number, pair), value in zip(places, found, strict=True):
            if value is not None:
                verdicts[number][pair] = value
        return Labels([pairs_by_verdict(one, which) for one in verdicts], None, account.as_dict())

    return label


def collect(
    policy: Policy,
    records: Iterable[Mapping[str, Any]],
    plan: Plan,
    label: Label,
    *,
    annotator: str,
    origin: Mapping[str, Any],
    work: Path,
) -> Collection:
    """Draw answers, have them judged, and make raw rows of the pairs.

    Args:
        policy: what answers.
        records: prompt records of the training split.
        plan: how many, and how.
        label: the judge.
        annotator: what the rows call it.
        origin: kept with every row beside the plan: policy, its hash, the judge.
        work: folder in which answers are kept until the run is over; one run's own.

    Returns:
        Rows in an order that depends on the plan alone, and counts.

    Raises:
        BadInput: no prompt leaves room for an answer, or the judge cannot judge these prompts.
        StageFailed: the judge stopped answering.
    """
    prompts = chosen_prompts(records, policy, plan)
    if not prompts:
        raise BadInput(
            f"no training prompt leaves {plan.max_new_tokens} tokens of the policy's context for an answer; lower "
            "--max-new-tokens, or run `ratchet run --until validate` where there are no prompts"
        )
    drawn = _drawn(policy, prompts, plan, work)
    places = [usable([text for text, _ in found], [ended for _, ended in found]) for found in drawn]
    asked = [
        Asked(record, [found[place][0] for place in kept])
        for record, found, kept in zip(prompts, drawn, places, strict=True)
    ]
    labels = label(asked, plan.which)
    ended = [text for found in drawn for text, whole in found if whole]
    lost = sum(LOST in text for text in ended)
    settings = {name: getattr(plan, name) for name in ("temperature", "max_new_tokens", "seed", "answers")}
    rows = list(_rows(asked, labels, annotator=annotator, origin={**origin, **settings}))
    counts = {
        "prompts": len(prompts),
        "answers": plan.answers * len(prompts),
        "cut": plan.answers * len(prompts) - len(ended),
        "with_lost_characters": lost,
        "empty_or_repeated": len(ended) - lost - sum(map(len, places)),
        "prompts_without_a_pair": sum(not pairs for pairs in labels.pairs),
        "pairs": len(rows),
        "pairs_called_a_tie": sum(row["label"] == 0.5 for row in rows),
        **labels.account,
    }
    return Collection(rows, counts, _gold_accuracy(rows))


def chosen_prompts(records: Iterable[Mapping[str, Any]], policy: Policy, plan: Plan) -> list[Mapping[str, Any]]:
    """As many prompts as the plan wants, by lot, of those whose answers have room in the policy's context.

    The lot is a hash of seed and id, so that a larger plan asks the prompts of a smaller one and more.
    """
    limit = (context_length(policy.model) or 2**31) - plan.max_new_tokens
    chosen: list[Mapping[str, Any]] = []
    for record in sorted(records, key=lambda record: digest(str(record["id"]), salt=f"collect {plan.seed}")):
        if len(chosen) == plan.prompts:
            break
        if len(encode_prompt(policy.tokenizer, record["prompt"])) <= limit:
            chosen.append(record)
    return chosen


def folder_digest(folder: Path) -> str:
    """A SHA-256 over the names and contents of a model folder's files, hidden ones left out."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\n{content}\n".encode())
    return total.hexdigest()


def _drawn(
    policy: Policy, prompts: Sequence[Mapping[str, Any]], plan: Plan, work: Path
) -> list[list[tuple[str, bool]]]:
    """For each prompt its answers and whether they ended; each round is on disk before the next begins."""
    sampling = Sampling(
        temperature=plan.temperature,
        max_new_tokens=plan.max_new_tokens,
        batch=plan.batch,
        precision=plan.precision,
        seed=plan.seed,
    )
    rounds = []
    for number in range(plan.answers):
        file = work / f"answers-{number}.jsonl"
        if not file.exists():
            found = sample(policy, prompts, sampling, name=f"collect {number}")
            write_jsonl(file, ({"text": answer.text, "ended": answer.ended} for answer in found))
        rounds.append([(row["text"], row["ended"]) for row in read_jsonl(file)])
        log.info("collect: %d of %d answers to %d prompts", number + 1, plan.answers, len(prompts))
    return [list(found) for found in zip(*rounds, strict=True)]


def _rows(
    asked: Sequence[Asked], labels: Labels, *, annotator: str, origin: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Raw rows as a user would write them; what the prompt carried stays in `meta`."""
    for number, (one, pairs) in enumerate(zip(asked, labels.pairs, strict=True)):
        for first, second, label in pairs:
            scores = labels.scores[number] if labels.scores else None
            yield {
                "prompt": one.record["prompt"],
                "response_a": one.texts[first],
                "response_b": one.texts[second],
                "label": label,
                "annotator": annotator,
                **({"score_a": scores[first], "score_b": scores[second]} if scores else {}),
                "meta": one.record["meta"],
                ORIGIN: {**origin, "prompt_id": one.record["id"]},
            }


def _gold_accuracy(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """For measuring only."""
    agreed = []
    for row in rows:
        first, second = (gold_score(row["meta"], row[name]) for name in ("response_a", "response_b"))
        if first is not None and second is not None and first != second and row["label"] != 0.5:
            agreed.append((first > second) == (row["label"] > 0.5))
    return sum(agreed) / len(agreed) if agreed else None


def _texts(asked: Sequence[Asked]) -> list[str]:
    return [text for one in asked for text in one.texts]


def _by_prompt(flat: Sequence[float], asked: Sequence[Asked]) -> list[list[float]]:
    """Cut a flat list into one list per prompt."""
    ends = iter(flat)
    return [[next(ends) for _ in one.texts] for one in asked]
