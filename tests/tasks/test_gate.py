import json
from dataclasses import asdict
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from rlhf.outputs import read_jsonl, write_jsonl
from tasks.gate import compare, decide_and_promote, judge_challenger, what_would_do
from tasks.gate_looks import read_looks
from tasks.gate_measure import Answer
from tasks.publish import publish
from tasks.registry import champion, history, promote
from tasks.registry_config import load_registry_config
from tests.registry_project import PROMPTS, retrain
from tests.tiny_project import dvc

pytest_plugins = ["tests.registry_fixtures"]


def set_mode(root: Path, old: str, new: str) -> None:
    path = root / "mlflow/registry.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_first_champion_has_to_beat_sft(published: Path) -> None:
    # ppo scores 1 and sft 0 on all prompts, with 7 against 6 tokens.
    verdict = judge_challenger(published)
    assert verdict.promote
    assert (verdict.challenger, verdict.champion, verdict.opponent) == ("2", None, "sft")
    assert (verdict.prompts, verdict.outcome, verdict.look) == (len(PROMPTS), "promote", 1)
    by_name = {rule.name: rule for rule in verdict.reasons}
    win = by_name["judge_win"]
    # An exact low end: 96 wins of 96 have a chance of at most the look's error under any share below it.
    assert (win.value, win.low) == (1.0, pytest.approx(verdict.error ** (1 / 96), abs=1e-6))
    assert win.p_value == pytest.approx(2.0**-96)
    assert by_name["length_ratio"].value == pytest.approx(7 / 6)
    assert by_name["kl"].soft
    # A soft rule that fails does not block, and is not passed over in silence.
    kl = by_name["kl"].value
    set_mode(published, "name: kl, below: 5.0", f"name: kl, below: {kl / 2}")
    warned = judge_challenger(published)
    assert warned.promote
    assert "every rule that binds holds, but kl" in warned.sentence
    set_mode(published, f"name: kl, below: {kl / 2}", "name: kl, below: 5.0")
    # sft itself draws with sft on every prompt: a win rate of one half is not above one half.
    refused = judge_challenger(published, 1)
    assert not refused.promote
    assert "judge_win 0.5 (0.5 to 0.5): low end 0.5 is not above 0.5" in refused.sentence
    assert (refused.outcome, refused.look) == ("refuse", 2)
    assert judge_challenger(published).look == 1  # the same look again

    set_mode(published, "mode: enforce", "mode: advise")
    advised = decide_and_promote(published)
    assert advised.move is None
    assert "ratchet promote 2" in advised.sentence
    set_mode(published, "mode: advise", "mode: enforce")
    decided = decide_and_promote(published)
    assert decided.move is not None
    assert (decided.move.before, decided.move.after) == (None, "2")
    assert history(published)[-1].evidence["prompts"] == len(PROMPTS)
    again = decide_and_promote(published)
    assert (again.move, again.verdict) == (None, None)
    assert "champion already" in again.sentence


def test_the_next_champion_has_to_beat_the_champion_on_the_same_prompts(published: Path) -> None:
    if champion(published) is None:
        decide_and_promote(published)
    before = len(read_looks(published))
    conditions = read_looks(published)[0].conditions
    # The old champion's answers are no longer in the evaluation: they are generated, and kept.
    retrain(published, seed=31)
    publish(published)
    against = judge_challenger(published)
    assert (against.champion, against.look) == ("2", 1)  # a new champion, a new allowance
    assert against.conditions == conditions
    cached = list((published / ".ratchet/tmp/gate").glob("*/answers.jsonl"))
    assert len(cached) == 1
    written = cached[0].stat().st_mtime_ns
    assert judge_challenger(published) == against
    assert cached[0].stat().st_mtime_ns == written

    # Other test prompts: the champion answers these; what it answered before is not compared with.
    rows = list(read_jsonl(published / "seed/answers.jsonl"))
    for row in rows:
        row["prompt"][0]["content"] += " Please."
    write_jsonl(published / "seed/answers.jsonl", rows)
    dvc(published, "repro", "-q")
    publish(published)
    elsewhere = judge_challenger(published)
    assert elsewhere.conditions != against.conditions
    assert (elsewhere.look, len(read_looks(published))) == (2, before + 2)
    assert len(list((published / ".ratchet/tmp/gate").glob("*/answers.jsonl"))) == 2

    # A mistake in the rules moves nothing.
    set_mode(published, "name: repetition, not_worse_by", "name: repetitoin, not_worse_by")
    with pytest.raises(BadInput, match=r"'repetitoin', wanted one of .* did you mean repetition"):
        decide_and_promote(published)
    set_mode(published, "name: repetitoin, not_worse_by", "name: repetition, not_worse_by")
    holder = champion(published)
    assert holder is not None
    assert holder.version == "2"

    set_mode(published, "mode: enforce", "mode: off")
    free = decide_and_promote(published)
    assert free.move is not None
    assert free.move.after == "3"


def test_without_a_challenger_or_an_evaluation_the_gate_says_so(unpublished: Path) -> None:
    with pytest.raises(BadInput, match="nothing is @challenger"):
        judge_challenger(unpublished)
    assert decide_and_promote(unpublished).move is None
    publish(unpublished)
    (unpublished / "data/evaluation/answers.jsonl").unlink()
    with pytest.raises(BadInput, match=r"answers\.jsonl: not there as dvc\.lock records it"):
        judge_challenger(unpublished)
    assert champion(unpublished) is None
    promote(unpublished, 1, reason="by hand")
    assert champion(unpublished) is not None


def answers(*scores: float, **more: object) -> list[Answer]:
    return [Answer(judge=score, tokens=10, ended=True, kl=2.0, repetition=0.0, **more) for score in scores]  # type: ignore[arg-type]


def won(wins: int, prompts: int, **more: object) -> tuple[list[Answer], list[Answer]]:
    ours = answers(*[1.0] * wins, *[0.0] * (prompts - wins), **more)
    return ours, answers(*[0.5] * prompts, **more)


def test_a_small_sample_is_undecided_and_told_from_a_large_one(project: Path) -> None:
    gate = load_registry_config(project).gate
    small = compare(*won(66, 120), gate, error=0.03, tolerance=0.0)
    assert small.sentence.startswith("judge_win 0.55 (0.4")
    assert "ruled out" not in small.sentence
    assert small.prompts_wanted is not None
    assert 700 < small.prompts_wanted < 800
    assert small.detectable == pytest.approx(0.625, abs=0.01)
    assert what_would_do(small, gate) == (
        f"120 prompts find a win rate of {small.detectable:.3f} or more with 80% power, a gain of 0.05 needs "
        f"{small.prompts_wanted} (evaluate.test_prompts)"
    )
    # A clear win, an open margin: the worse end lies at 1 - 0.0125^(1/40) = 0.1038; 40 x (0.1038 / 0.05)^2 = 172.
    margin = compare(*won(40, 40), gate, error=0.03, tolerance=0.0)
    assert [rule.name for rule in margin.rules if rule.verdict == "undecided"] == ["end_rate_change"]
    assert what_would_do(margin, gate) == "end_rate_change needs some 172 (evaluate.test_prompts)"
    large = compare(*won(2020, 4000), gate, error=0.03, tolerance=0.0)  # 0.505, and surely below 0.55
    assert "a gain of 0.05 is ruled out" in large.sentence
    clear = compare(*won(300, 400), gate, error=0.03, tolerance=0.0)
    assert clear.sentence == "every rule holds"


def test_a_later_look_needs_a_clearer_win(project: Path) -> None:
    gate = load_registry_config(project).gate
    pair = won(225, 400)  # p = 0.007
    first, fifth = (compare(*pair, gate, error=error, tolerance=0.0).rules[0] for error in (0.03, 0.0012))
    assert (first.verdict, fifth.verdict) == ("holds", "undecided")
    assert first.p_value == fifth.p_value


def test_a_better_average_does_not_excuse_a_collapsed_slice(project: Path) -> None:
    gate = load_registry_config(project).gate
    late, other = won(1, 40, meta={"intent": "late"}), won(350, 360, meta={"intent": "other"})
    found = compare([*late[0], *other[0]], [*late[1], *other[1]], gate, error=0.03, tolerance=0.0)
    assert [(one.value, one.ok) for one in found.slices] == [("late", False), ("other", True)]
    assert found.sentence.startswith("1 of 2 slices collapsed below a win rate of 0.4: intent late: 0.025 (")


def test_a_better_judge_does_not_excuse_answers_without_an_end(project: Path) -> None:
    gate = load_registry_config(project).gate
    ours, theirs = won(350, 400)
    cut = [Answer(**{**asdict(answer), "ended": row >= 38}) for row, answer in enumerate(ours)]  # 9.5% do not end
    found = compare(cut, theirs, gate, error=0.03, tolerance=0.0)
    assert [rule.name for rule in found.rules if rule.verdict == "fails"] == ["end_rate_change"]
    few = compare(cut[:36], theirs[:36], gate, error=0.03, tolerance=0.0)
    assert {rule.name for rule in few.rules if rule.verdict == "fails"} == {"end_rate", "end_rate_change"}


def test_a_verdict_is_plain_data(published: Path) -> None:
    verdict = judge_challenger(published, 1)
    document = json.loads(json.dumps(asdict(verdict)))
    assert document["outcome"] == verdict.outcome
    assert {"value", "low", "high", "threshold", "verdict", "sentence"} <= set(document["reasons"][0])
