from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.gate import decide_and_promote, judge_challenger
from tasks.publish import publish
from tasks.registry import champion, history, promote
from tests.registry_project import retrain

pytest_plugins = ["tests.registry_fixtures"]


def set_mode(root: Path, old: str, new: str) -> None:
    path = root / "mlflow/registry.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_first_champion_has_to_beat_sft_and_the_next_one_the_champion(published: Path) -> None:
    # ppo scores 1 and sft 0 on all eight prompts, with 7 against 6 tokens.
    verdict = judge_challenger(published)
    assert verdict.promote
    assert (verdict.challenger, verdict.champion, verdict.opponent, verdict.prompts) == ("2", None, "sft", 8)
    by_name = {rule.name: rule for rule in verdict.reasons}
    assert (by_name["judge_win"].value, by_name["judge_win"].low) == (1.0, 1.0)
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

    set_mode(published, "mode: enforce", "mode: advise")
    advised = decide_and_promote(published)
    assert advised.move is None
    assert "ratchet promote 2" in advised.sentence
    set_mode(published, "mode: advise", "mode: enforce")
    decided = decide_and_promote(published)
    assert decided.move is not None
    assert (decided.move.before, decided.move.after) == (None, "2")
    assert history(published)[-1].evidence["prompts"] == 8
    again = decide_and_promote(published)
    assert (again.move, again.verdict) == (None, None)
    assert "champion already" in again.sentence

    # The old champion's answers are no longer in the evaluation: they are generated, and kept.
    retrain(published, seed=31)
    publish(published)
    against = judge_challenger(published)
    assert against.champion == "2"
    cached = list((published / ".ratchet/tmp/gate").glob("*/answers.jsonl"))
    assert len(cached) == 1
    written = cached[0].stat().st_mtime_ns
    assert judge_challenger(published) == against
    assert cached[0].stat().st_mtime_ns == written

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
