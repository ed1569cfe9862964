"""Reading curves, and which lines a chart gets."""

from pathlib import Path

import pytest

from tasks.report_curves import CURVES, STAGES, CurveSpec, charts_of, lines_of, read_curve


def test_empty_cells_are_no_points(tmp_path: Path) -> None:
    path = tmp_path / "sft.csv"
    path.write_text("step,loss,dev_loss\n1,2.5,\n2,1.5,1.75\n")
    assert read_curve(path) == {"loss": ([1.0, 2.0], [2.5, 1.5]), "dev_loss": ([2.0], [1.75])}


def test_no_file_is_no_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path / "none.csv") == {}


def test_lines_are_those_that_the_file_has() -> None:
    spec = CurveSpec("sft", "Loss", "nats", {"loss": "train", "dev_loss": "held out"})
    (line,) = lines_of(spec, {"loss": ([1.0], [2.0]), "lr": ([1.0], [0.1])})
    assert (line.name, line.xs, line.ys) == ("train", [1.0], [2.0])


def test_every_trained_stage_has_a_chart() -> None:
    assert {spec.stage for spec in CURVES} == set(STAGES)
    assert len({(spec.stage, spec.title) for spec in CURVES}) == len(CURVES)


def titles(stage: str, header: str) -> list[str]:
    """Titles of the charts that a curve with these columns gets."""
    curve = {name: ([1.0, 2.0], [0.5, 0.25]) for name in header.split(",")}
    return [chart["title"] for spec in CURVES if spec.stage == stage for chart in charts_of("x", spec, curve)]


def test_epochs_are_lines_in_the_order_of_their_numbers() -> None:
    spec = CurveSpec("ppo", "Clipped", "share", {}, prefix="clip_fraction_epoch_", word="epoch ")
    curve = {f"clip_fraction_epoch_{epoch}": ([1.0], [float(epoch)]) for epoch in (10, 2, 1)}
    lines = lines_of(spec, {**curve, "clip_fraction": ([1.0], [0.0])})
    assert [(line.name, line.ys) for line in lines] == [("epoch 1", [1.0]), ("epoch 2", [2.0]), ("epoch 10", [10.0])]


def test_more_lines_than_colours_fill_another_picture() -> None:
    spec = CurveSpec("ppo", "Clipped", "share", {}, prefix="e_", word="epoch ")
    charts = charts_of("mine", spec, {f"e_{epoch}": ([1.0, 2.0], [0.1, 0.2]) for epoch in range(1, 9)})
    assert [chart["title"] for chart in charts] == ["Clipped", "Clipped (2)"]
    assert [f">epoch {epoch}<" in charts[1]["svg"] for epoch in (6, 7, 8)] == [False, True, True]
    assert 'id="mine-2-' in charts[1]["svg"]
    assert charts_of("mine", spec, {}) == []


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("reward_reward_model", []),
        ("reward_reward_model,reward_disagreement", ["Disagreement of the reward models"]),
        ("reward_reward_model,reward_length", ["Signals of the reward"]),
        ("reward,score,reward_a:b,reward_format", ["Reward", "Signals of the reward"]),
        ("ess_tokens_epoch_1,ess_responses_epoch_1", ["Samples that still count"]),
        ("clip_fraction,clip_fraction_epoch_1,approx_kl,approx_kl_epoch_1", ["Clipped tokens", "Size of an update"]),
    ],
)
def test_charts_of_ppo_are_those_that_its_columns_give(header: str, wanted: list[str]) -> None:
    assert titles("ppo", header) == wanted


def test_signals_keep_the_names_that_they_have_in_the_parameters() -> None:
    (spec,) = [spec for spec in CURVES if spec.prefix == "reward_"]
    curve = {name: ([1.0], [0.5]) for name in ("reward_my_rules:polite", "reward_disagreement", "reward_reward_model")}
    assert [line.name for line in lines_of(spec, curve)] == ["my_rules:polite", "reward_model"]


def test_change_of_both_sides_of_dpo_and_of_kto() -> None:
    assert titles("dpo", "chosen_change,rejected_change") == ["Change of log-probability since SFT"]
    assert titles("dpo", "desirable_change") == ["Change of log-probability since SFT, by verdict"]
    assert titles("dpo", "chosen_logprob,rejected_logprob") == []


def test_the_later_charts_explain_themselves() -> None:
    words = ("Signals", "Disagreement", "Samples", "Clipped", "Size", "Change")
    later = [spec for spec in CURVES if spec.title.startswith(words)]
    assert len(later) == 7
    assert all(spec.note.endswith(".") for spec in later)
